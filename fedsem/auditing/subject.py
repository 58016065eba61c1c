"""A trained link as the audit sees it: one task, attacked at one site, on some test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.flagging import Alarms
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.trained import TrainedLink
from fedsem.evaluation.voting import Ballots, together
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Site
from fedsem.hooks.evasion_losses import Loss, measure, objective
from fedsem.hooks.vote import ManyReceptions
from fedsem.registry import find
from fedsem.streams import Stream
from fedsem.units import achieved_psr, from_db, l2_radius

SCORED, CHOSEN = -11, -12
"""Numbers of the channel draws that score a perturbation, and of those that choose among several: attacks climb others,
from 0 up."""
LEAST_DB, MOST_DB, STEP_DB = -60.0, 20.0, 2.5
"""PSRs between which an attack is looked for that breaks half of the images; at the most it is unbounded, since pixels
stay in [0, 1]."""
WEIGHTS = (0.0, 1.0, 10.0)
"""On not being flagged by a detector, of which each image keeps the worst: none fits all (Tramer et al., On Adaptive
Attacks to Adversarial Example Defenses, 2020)."""
LEAST_IMAGES = 50
"""On which an attack of many steps is run again with more."""
WEAK_DB = -40.0
"""PSR of the noise that lifts images off their ties: flat parts have pixels that are equal, and max-pooling no
derivative there."""


@dataclass(frozen=True)
class Effort:
    """How much the audit does.

    Attributes:
        images: test images, evenly spaced.
        draws: channel draws that score each perturbation.
        climbed: channel draws in each step of an attack.
        steps: of PGD, the white-box attack that others are compared with.
        queries: of Square.
    """

    images: int = 100
    draws: int = 20
    climbed: int = 8
    steps: int = 40
    queries: int = 1000

    @property
    def few_steps(self) -> int:
        """Of PGD where little depends on them: with power without bounds or next to none, and while a PSR is looked
        for."""
        return max(1, self.steps // 2)

    @property
    def of_chance(self) -> Effort:
        """As much where each draw of a random transform is encoded: fewer images, and draws in each step."""
        return replace(self, images=max(1, self.images // 4), climbed=max(1, self.climbed // 2))


@dataclass(frozen=True)
class Slope:
    """What automatic differentiation says at some signals.

    Attributes:
        values: of each row, (B,).
        gradient: of each row, (B, ...).
        attached: whether the value depends on the signal at all, as far as autograd knows.
    """

    values: Tensor
    gradient: Tensor
    attached: bool

    @property
    def norms(self) -> Tensor:
        """Of each row's gradient, in float64: squares of small ones are zero in float32."""
        return torch.linalg.vector_norm(self.gradient.flatten(1).double(), dim=1)


@dataclass(frozen=True)
class Iterated:
    """An attack in steps.

    Attributes:
        name: what it is called.
        attack: the attack, at one task and site.
    """

    name: str
    attack: Evasion

    @property
    def steps(self) -> int:
        return int(self.attack.steps)  # type: ignore[attr-defined]

    @property
    def length(self) -> int:
        """Steps of all its runs."""
        return self.steps * int(getattr(self.attack, "restarts", 1))

    @property
    def anywhere(self) -> dict[str, bool]:
        """Options with which it starts at a random point."""
        return {"random_start": True} if "random_start" in type(self.attack).model_fields else {}


@dataclass(eq=False)
class LinkSubject:
    """A link, one of its tasks, and a site.

    Attributes:
        link: the trained link, with its defense at test time if it has one. What a vote over receptions decides is what
            counts; of noisy copies, each by itself.
        task: name of the task in its scenario.
        site: where it is attacked.
        norm: of the perturbations.
        snr_db, sensing_snr_db: where it is attacked.
        others: links of the same run that perturbations may be transferred from, by what they are called.
        effort: how much is done.
        declared: whether attacks differentiate what the defense itself puts in its place.
        alarms: a detector that attacks work around; what is flagged counts as right.
        weighs: whether the scenario's attack tries weights of its own on not being flagged.
        own: the scenario's own attack in steps; None: it has none.
    """

    link: TrainedLink
    task: str
    site: Site
    norm: Norm
    snr_db: float
    sensing_snr_db: float
    others: Mapping[str, TrainedLink] = field(default_factory=dict)
    effort: Effort = Effort()
    declared: bool = False
    alarms: Alarms | None = None
    weighs: bool = False
    own: Iterated | None = None

    def attack(self, kind: str, **options: Any) -> Evasion:
        """An attack on this task at this site."""
        shared = {"sites": [self.site], "norm": self.norm, "objective": {self.task: 1.0}, "draws": self.effort.climbed}
        attack: Evasion = find("attack", kind).model_validate({**shared, **options})  # type: ignore[assignment]
        return attack

    def problem(self, psr_db: float, attack: Evasion | None = None, link: TrainedLink | None = None) -> LinkProblem:
        """What an attack sees of the link, or of another one."""
        seen = some_images(link or self.link, self.effort.images)
        snrs, alarms = (self.snr_db, self.sensing_snr_db), self.alarms if link is None else None
        problem = LinkProblem(seen, Air(seen, "audit"), attack or self.attack("pgd"), *snrs, alarms=alarms)
        problem.psr = from_db(psr_db)
        return problem

    def perturbation(self, kind: str, psr_db: float, link: TrainedLink | None = None, **options: Any) -> Perturbation:
        """What an attack makes, on this link or on another one."""
        attack = self.attack(kind, **options)
        return attack.perturb(self.problem(psr_db, attack, link), self.stream(kind))

    @cached_property
    def iterated(self) -> Iterated:
        """The scenario's own attack in steps, or PGD."""
        return self.own or Iterated("PGD", self.attack("pgd", steps=self.effort.steps))

    @cached_property
    def repeated(self) -> LinkSubject:
        """This, with fewer images where that attack is so long that to repeat it on all of them would take too much
        time."""
        few = self.effort.images * self.effort.steps // self.iterated.length
        return replace(self, effort=replace(self.effort, images=min(self.effort.images, max(few, LEAST_IMAGES))))

    def run(self, psr_db: float, name: str = "own", **changes: Any) -> Perturbation:
        """What that attack makes, with some options changed; kept.

        Args:
            psr_db: the budget.
            name: of the random stream.
            changes: options that are not the attack's own.
        """
        key = (psr_db, name, *changes.items())
        if key not in self._runs:
            attack = self.iterated.attack.model_copy(update=changes)
            self._runs[key] = attack.perturb(self.problem(psr_db, attack), self.stream(name))
        return self._runs[key]

    def stream(self, name: str) -> Stream:
        """A source of randomness of that name."""
        return Stream(self.link.seed).child("audit", name)

    def noise(self, psr_db: float) -> Perturbation:
        """Gaussian noise of that PSR."""
        problem = self.problem(psr_db)
        energies = {name: site.energy * problem.psr for name, site in problem.sites.items()}
        return gaussian(problem.sites, energies, self.stream("noise"))

    @property
    def nothing(self) -> Perturbation:
        """No perturbation."""
        return {self.site: torch.zeros_like(self._calm.sites[self.site].clean)}

    def right(self, delta: Perturbation, problem: LinkProblem | None = None, draws: int = SCORED) -> np.ndarray:
        """Share of receptions of each image that are told rightly, or flagged, (N,), over draws that are the same for
        all; behind a vote over receptions, whether that is right."""
        if problem is None and isinstance(self.link.vote, ManyReceptions):
            return self._voted(delta, draws)
        failures = (problem or self._calm).failures(delta, draws, self.effort.draws)
        right: np.ndarray = 1 - failures.double().cpu().numpy()
        return right

    @cached_property
    def clean(self) -> np.ndarray:
        """`right` without attack."""
        return self.right(self.nothing)

    @cached_property
    def strongest(self) -> Perturbation:
        """What PGD makes at the PSR where things are compared."""
        return self.steepest(self.problem(self.half_db), self.effort.steps)

    @cached_property
    def climbed(self) -> np.ndarray:
        """`right` under it."""
        return self.right(self.strongest)

    @cached_property
    def heeding(self) -> np.ndarray:
        """The same, where PGD minds being flagged as much as the detector says."""
        return self.right(self.perturbation("pgd", self.half_db, steps=self.effort.steps))

    @cached_property
    def overwhelmed(self) -> np.ndarray:
        """`right` under PGD with power without bounds."""
        return self.right(self.steepest(self.problem(MOST_DB), self.effort.few_steps))

    def searched(self, psr_db: float) -> np.ndarray:
        """`right` under a few steps of PGD; kept."""
        if psr_db not in self._searched:
            self._searched[psr_db] = self.right(self.perturbation("pgd", psr_db, steps=self.effort.few_steps))
        return self._searched[psr_db]

    def steepest(self, problem: LinkProblem, steps: int) -> Perturbation:
        """PGD's last iterate; where a detector is to be worked around, the worst of those with several weights on not
        being flagged."""
        attack = self.attack("pgd", steps=steps)
        if not self.watched:
            return attack.perturb(problem, self.stream("pgd"))
        return self.worst([attack.perturb(problem.avoiding(weight), self.stream("pgd")) for weight in WEIGHTS])

    def worst(self, runs: Sequence[Perturbation]) -> Perturbation:
        """Of each image the perturbation that does most harm, by other draws than those that score."""
        chosen = torch.from_numpy(np.stack([self.right(run, draws=CHOSEN) for run in runs]).argmin(0))
        kept = torch.stack([run[self.site] for run in runs])
        chosen = chosen.to(kept.device)
        return {self.site: kept[chosen, torch.arange(len(chosen), device=kept.device)]}

    @cached_property
    def half_db(self) -> float:
        """The PSR at which PGD leaves about half of the clean accuracy, found by bisection; 0 dB where it never does,
        or there is no accuracy: there an attack that finds its way breaks every link."""
        if not self.classifies:
            return 0.0
        low, high = round(LEAST_DB / STEP_DB), round(MOST_DB / STEP_DB)
        goal = self.clean.mean() / 2
        if self.overwhelmed.mean() > goal:
            return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            if self.searched(middle * STEP_DB).mean() > goal:
                low = middle
            else:
                high = middle
        nearest = min((low, high), key=lambda at: abs(self.searched(at * STEP_DB).mean() - goal))
        return nearest * STEP_DB

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / len(self.link.plan.dataset.classes)

    @property
    def classifies(self) -> bool:
        return self._calm.classifies

    @cached_property
    def watched(self) -> bool:
        """Whether a detector watches the task, and attacks work around it."""
        return self.alarms is not None and any(
            self.alarms.alarm(listener, self._calm.snr[self.link.is_sensing(listener)]) is not None
            for listener in self._calm.weights
        )

    @cached_property
    def attached(self) -> bool:
        """Whether autograd sees that the loss depends on the signal."""
        return self.loss_slope.attached

    @cached_property
    def loss_slope(self) -> Slope:
        """Of the loss that attacks climb, at the clean signal."""
        return self.slope(objective, self.nothing)

    @cached_property
    def lifted(self) -> Perturbation:
        """Noise of little power."""
        return self.noise(WEAK_DB)

    def slope(self, of: Loss, at: Perturbation) -> Slope:
        """Values and gradients of a loss, over the draws of step 0."""
        values, gradients, attached = [], [], False
        for index in self._calm.batches():
            leaf = at[self.site][index].detach().requires_grad_(True)
            some = of(self._calm, {self.site: leaf}, 0, index)
            found = None
            if some.requires_grad:
                (found,) = torch.autograd.grad(some.sum(), leaf, allow_unused=True)
            attached |= found is not None
            values.append(some.detach())
            gradients.append(torch.zeros_like(leaf) if found is None else found)
        return Slope(torch.cat(values), torch.cat(gradients), attached)

    def values(self, of: Loss, at: Perturbation) -> Tensor:
        """A loss of each row, over the draws of step 0, (N,)."""
        return measure(self._calm, at, 0, of)

    @property
    def labels(self) -> Tensor:
        """True classes, (N,)."""
        return self._calm.labels

    def radius(self, psr_db: float) -> Tensor:
        """Norm of a perturbation of that PSR, (N,), in float64."""
        return l2_radius(self._calm.sites[self.site].energy.double(), from_db(psr_db))

    def achieved(self, delta: Perturbation) -> Tensor:
        """PSR of each image's perturbation (linear), (N,)."""
        return achieved_psr(delta[self.site], self._calm.sites[self.site].energy)

    @cached_property
    def _calm(self) -> LinkProblem:
        return self.problem(0.0)

    def _voted(self, delta: Perturbation, draws: int) -> np.ndarray:
        """Whether the vote over each image's receptions is right, the mean over listeners."""
        vote = self.link.vote
        assert isinstance(vote, ManyReceptions)
        if draws not in self._ballots:
            few = replace(some_images(self.link, self.effort.images), vote=vote.model_copy(update={"gains": 1}))
            self._ballots[draws] = Ballots(few, Air(few, f"audit{draws}", 1))
        ballots = self._ballots[draws]
        listeners = [one for one in ballots.link.listeners if one.branch.task == self.task]
        tallies = [
            ballots.score([one], [self._calm.snr[self.link.is_sensing(one)]], delta)[0][one] for one in listeners
        ]
        accuracy = together(tallies)["accuracy"]
        right: np.ndarray = accuracy.numerator / accuracy.denominator
        return right

    @cached_property
    def _searched(self) -> dict[float, np.ndarray]:
        return {}

    @cached_property
    def _runs(self) -> dict[tuple[Any, ...], Perturbation]:
        return {}

    @cached_property
    def _ballots(self) -> dict[int, Ballots]:
        return {}


def some_images(link: TrainedLink, count: int) -> TrainedLink:
    """The same link with so many test images, evenly spaced, as a test set may be sorted by class."""
    total = len(link.labels)
    count = min(count, total)
    return replace(link, examples=link.examples.at(torch.arange(count, device=link.images.device) * total // count))
