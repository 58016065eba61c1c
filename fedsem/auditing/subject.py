"""A trained link as the audit sees it: one task, attacked at one site, on some test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Site
from fedsem.hooks.evasion_losses import Loss, measure, objective
from fedsem.registry import find
from fedsem.streams import Stream
from fedsem.units import achieved_psr, from_db, l2_radius

SCORED, CHOSEN = -11, -12
"""Numbers of the channel draws that score a perturbation, and of those that choose among several: attacks climb others,
from 0 up."""
LEAST_DB, MOST_DB, STEP_DB = -60.0, 20.0, 2.5
"""PSRs between which an attack is looked for that breaks half of the images; at the most it is unbounded, since pixels
stay in [0, 1]."""
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
    steps: int = 20
    queries: int = 1000


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


@dataclass(eq=False)
class LinkSubject:
    """A link, one of its tasks, and a site.

    Attributes:
        link: the trained link, with its defense at test time if it has one.
        task: name of the task in its scenario.
        site: where it is attacked.
        norm: of the perturbations.
        snr_db, sensing_snr_db: where it is attacked.
        others: links of the same run that perturbations may be transferred from, by what they are called.
        effort: how much is done.
    """

    link: TrainedLink
    task: str
    site: Site
    norm: Norm
    snr_db: float
    sensing_snr_db: float
    others: Mapping[str, TrainedLink] = field(default_factory=dict)
    effort: Effort = Effort()

    def attack(self, kind: str, **options: Any) -> Evasion:
        """An attack on this task at this site."""
        shared = {"sites": [self.site], "norm": self.norm, "objective": {self.task: 1.0}, "draws": self.effort.climbed}
        attack: Evasion = find("attack", kind).model_validate({**shared, **options})  # type: ignore[assignment]
        return attack

    def problem(self, psr_db: float, attack: Evasion | None = None, link: TrainedLink | None = None) -> LinkProblem:
        """What an attack sees of the link, or of another one."""
        seen = some_images(link or self.link, self.effort.images)
        problem = LinkProblem(seen, Air(seen, "audit"), attack or self.attack("pgd"), self.snr_db, self.sensing_snr_db)
        problem.psr = from_db(psr_db)
        return problem

    def perturbation(self, kind: str, psr_db: float, link: TrainedLink | None = None, **options: Any) -> Perturbation:
        """What an attack makes, on this link or on another one."""
        attack = self.attack(kind, **options)
        return attack.perturb(self.problem(psr_db, attack, link), self.stream(kind))

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
        """Share of receptions of each image that are told rightly, (N,), over draws that are the same for all."""
        failures = (problem or self._calm).failures(delta, draws, self.effort.draws)
        right: np.ndarray = 1 - failures.double().cpu().numpy()
        return right

    @cached_property
    def clean(self) -> np.ndarray:
        """`right` without attack."""
        return self.right(self.nothing)

    def climbed(self, psr_db: float, steps: int | None = None) -> np.ndarray:
        """`right` under PGD's last iterate; kept."""
        key = (psr_db, steps or self.effort.steps)
        if key not in self._climbed:
            self._climbed[key] = self.right(self.steepest(*key))
        return self._climbed[key]

    def steepest(self, psr_db: float, steps: int | None = None) -> Perturbation:
        """PGD's last iterate."""
        return self.perturbation("pgd", psr_db, steps=steps or self.effort.steps)

    @cached_property
    def half_db(self) -> float:
        """The PSR at which PGD leaves about half of the clean accuracy, found by bisection; 0 dB where it never does:
        there an attack that finds its way breaks every link."""
        low, high = round(LEAST_DB / STEP_DB), round(MOST_DB / STEP_DB)
        goal = self.clean.mean() / 2
        if self.climbed(MOST_DB).mean() > goal:
            return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            if self.climbed(middle * STEP_DB).mean() > goal:
                low = middle
            else:
                high = middle
        nearest = min((low, high), key=lambda at: abs(self.climbed(at * STEP_DB).mean() - goal))
        return nearest * STEP_DB

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / len(self.link.plan.dataset.classes)

    @property
    def classifies(self) -> bool:
        return self._calm.classifies

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

    @cached_property
    def _climbed(self) -> dict[tuple[float, int], np.ndarray]:
        return {}


def some_images(link: TrainedLink, count: int) -> TrainedLink:
    """The same link with so many test images, evenly spaced, as a test set may be sorted by class."""
    total = len(link.labels)
    count = min(count, total)
    return replace(link, examples=link.examples.at(torch.arange(count, device=link.images.device) * total // count))
