"""Hooks `input` and `air` at test time: an adversary adds a perturbation to what is sent, within a budget.

The image u of an example may be perturbed before the encoder (site `input`) and the signal x at the adversary's
antenna (site `air`). The budget is ||delta||^2 <= PSR * E for every example: E = ||u||^2 of raw pixels at the input,
E = ||x||^2 of the transmitted signal over the air. A perturbation is fixed before noise is drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from fedsem.errors import ScenarioError, closest
from fedsem.registry import Options
from fedsem.streams import Stream
from fedsem.strict import Strict

if TYPE_CHECKING:
    from fedsem.plan import Plan

Site = Literal["input", "air"]
Norm = Literal["l2", "linf"]
Perturbation = dict[str, Tensor]
"""Site -> delta, (B, ...); of a backdoor that turns received symbols `phase` -> radians, (B,)."""


@dataclass(frozen=True)
class SiteState:
    """What an attack knows of a site.

    Attributes:
        clean: the unperturbed signal (B, ...): pixels in [0, 1] at the input, transmitted numbers over the air.
        energy: E of each example, (B,).
        bounded: whether clean + delta must stay in [0, 1].
    """

    clean: Tensor
    energy: Tensor
    bounded: bool


class Problem(Protocol):
    """Test examples as a white-box adversary sees them; implemented by `fedsem.evaluation.problem`.

    Attributes:
        sites: what can be perturbed.
        psr: the budget (linear), for each site.
    """

    sites: Mapping[str, SiteState]
    psr: float

    def gradient(self, delta: Perturbation, step: int) -> Perturbation:
        """Gradient of each example's objective (to be maximised), averaged over the channel draws of `step`."""
        ...

    def objective(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor:
        """The objective of the examples in `index`, to which `delta` belongs, over the draws of `step`;
        differentiable."""
        ...

    def logits(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor:
        """log of the mean class probabilities over the draws of `step`, (B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        ...

    def batches(self) -> Sequence[slice]:
        """Slices that cut the examples into batches."""
        ...

    @property
    def labels(self) -> Tensor:
        """True classes, or the target class of a targeted attack, (N,)."""
        ...


class Knowledge(Strict):
    """What the adversary knows.

    Attributes:
        weights: `all`: the trained encoder and decoders (white box).
        signal: `exact`: what each example sends, the image and the transmitted signal x (a jammer that hears only x
            would know less).
        channel: `statistics`: the distribution of gains and noise, not their values.
    """

    weights: Literal["all"] = "all"
    signal: Literal["exact"] = "exact"
    channel: Literal["statistics"] = "statistics"


class Evasion(Options):
    """A test-time attack. Subclasses say how to maximise the problem's objective within the budget.

    Attributes:
        sites: where it acts; with both, each site has the whole PSR.
        norm: `l2`: ||delta||_2 <= sqrt(PSR E); `linf`: ||delta||_inf <= sqrt(PSR E / size), which lies inside it.
        objective: weight of each task's loss in what is maximised; by default every task with weight 1.
        targeted: goal of each task of the objective (class, sensing state, or number of a test picture); the attack
            then minimises the loss to that goal. Empty: untargeted, it maximises the loss to the truth.
        knowledge: what the adversary knows.
    """

    sites: list[Site] = Field(["input"], min_length=1)
    norm: Norm = "l2"
    objective: dict[str, NonNegativeFloat] = {}
    targeted: dict[str, NonNegativeInt] = {}
    knowledge: Knowledge = Knowledge()

    @abstractmethod
    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        """A perturbation of every example of the problem, within the budget."""

    def goals(self, plan: Plan) -> dict[str, float]:
        """The objective with its default filled in."""
        return dict(self.objective) or dict.fromkeys(plan.scenario.tasks, 1.0)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: an unknown task, no positive weight, or a goal that does not exist.
        """
        tasks = plan.scenario.tasks
        for key, named in (("objective", self.objective), ("targeted", self.targeted)):
            for task in named:
                if task not in tasks:
                    raise ScenarioError(
                        f"In the scenario, '{path}.{key}': unknown task '{task}'.{closest(task, tasks)}"
                    )
        weights = self.goals(plan)
        if not any(weights.values()):
            raise ScenarioError(f"In the scenario, '{path}.objective': at least one weight must be positive.")
        if len(set(self.sites)) != len(self.sites):
            raise ScenarioError(f"In the scenario, '{path}.sites': lists a site twice.")
        if not self.targeted:
            return
        if missing := [task for task, weight in weights.items() if weight and task not in self.targeted]:
            raise ScenarioError(
                f"In the scenario, '{path}.targeted': the objective's task '{missing[0]}' has no goal; give it one, or "
                "leave it out of the objective."
            )
        for branch in plan.branches:
            goal = self.targeted.get(branch.task)
            if goal is None:
                continue
            count = plan.task(branch).goals(plan.decoder_format(branch), len(plan.dataset.test.labels))
            if goal >= count:
                where = f"{path}.targeted.{branch.task}"
                raise ScenarioError(f"In the scenario, '{where}': there is no goal {goal}; choose 0 to {count - 1}.")
