"""Hooks `input` and `air` at test time: an adversary adds a perturbation to what is sent, within a budget.

The image u of an example may be perturbed before the encoder (site `input`) and the signal x at the adversary's
antenna (site `air`). The budget is ||delta||^2 <= PSR * E for every example: E = ||u||^2 of raw pixels at the input,
E = ||x||^2 of the transmitted signal over the air. A perturbation is fixed before noise is drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, Tag, model_validator
from torch import Tensor

from fedsem.channels.sensing import Sensing
from fedsem.channels.symbols import Symbols
from fedsem.errors import ScenarioError, closest
from fedsem.registry import Options, Plugin
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

    @cached_property
    def room(self) -> tuple[Tensor, Tensor]:
        """Least and largest perturbation of each number of a bounded signal, -clean and 1 - clean: kept, for an attack
        needs them in every step."""
        return -self.clean, 1 - self.clean


class Problem(Protocol):
    """Test examples as an adversary sees them, one a row; implemented by `fedsem.evaluation.problem`.

    Attributes:
        sites: what can be perturbed.
        psr: the budget (linear) of each site, a number or one for each row, (B,).
        symbols: how numbers go on air.
    """

    sites: Mapping[str, SiteState]
    psr: float | Tensor
    symbols: Symbols

    def objective(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor:
        """The objective (to be maximised) of the rows in `index`, to which `delta` belongs, averaged over the channel
        draws of `step`; differentiable."""
        ...

    def gradient(self, delta: Perturbation, step: int) -> Perturbation:
        """Gradient of each row's objective, averaged over the channel draws of `step`."""
        ...

    def scores(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor:
        """Class scores for every draw of `step` and every listener, (draws, B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        ...

    def logits(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor:
        """log of the mean class probabilities over the draws of `step`, (B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        ...

    @property
    def classifies(self) -> bool:
        """Whether the objective is the loss of one classification task, untargeted, so that it has class scores."""
        ...

    def failures(self, delta: Perturbation, step: int, draws: int) -> Tensor:
        """How badly the objective's tasks fail at each row (`Task.failure`), the weighted mean over so many draws of
        `step`, (B,)."""
        ...

    def alarm(self, delta: Perturbation, step: int, index: slice = ...) -> Tensor | float:
        """What being flagged by a detector that the adversary works around costs each row, (B,), in units of the loss;
        `objective` has it in it already. Differentiable."""
        ...

    @property
    def watched(self) -> bool:
        """Whether there is a detector that the adversary works around; what it flags is no failure."""
        ...

    def avoiding(self, penalty: float) -> Problem:
        """The same problem with another weight on not being flagged."""
        ...

    def batches(self) -> Sequence[slice]:
        """Slices that cut the rows into batches."""
        ...

    @property
    def labels(self) -> Tensor:
        """True classes, or the target class of a targeted attack, (B,)."""
        ...

    def select(self, rows: Tensor) -> Problem:
        """The same problem for some of the rows, by number; a row may be named several times, as restarts do."""
        ...

    def quiet(self) -> Problem:
        """The same problem without channel noise; fading stays."""
        ...

    @property
    def own(self) -> int:
        """How many images the adversary has of its own: those of `data.reserve`, or else the training images; at most
        4,096 of either."""
        ...

    def imagine(self, images: Tensor) -> Problem:
        """The same link with images of the adversary's own, by number, in place of those that it does not know, and
        other channel draws; where the rows are receptions that it knows, one image for each of them."""
        ...

    def surrogate(self) -> Problem | None:
        """The same rows through the adversary's surrogate link, if it has trained one."""
        ...


class Knowledge(Strict):
    """What the adversary knows. The design's `oracle` is signal `exact` and channel `csi`, its `csi` is signal
    `statistics` and channel `csi`, its `statistics` is `statistics` for both.

    Attributes:
        weights: `all`: the trained encoder and decoders (white box); `surrogate`: those of a link that it has trained
            itself; `none`: it can only try what the link answers (black box), or does not even do that.
        signal: `exact`: what each example sends, the image and the transmitted signal x; `statistics`: images of its
            own, from the same distribution.
        channel: `csi`: the gains h and g of every reception (but not its noise); `statistics`: their distribution.
        defense: of a defense that acts on the trained link (`evaluation.grids`): `exact`: the attack meets it, and
            differentiates it as far as it can be; `adaptive`: it works around it, in the way that the defense itself
            says (`Defense.adaptive`); `none`: it is made for the link without it.
    """

    weights: Literal["all", "surrogate", "none"] = "all"
    signal: Literal["exact", "statistics"] = "exact"
    channel: Literal["csi", "statistics"] = "statistics"
    defense: Literal["exact", "adaptive", "none"] = "exact"


class Surrogate(Strict):
    """A link that the adversary trains itself, centrally, on the images of `data.reserve`, which no receiver holds,
    from an initialisation of its own; all else as in the scenario.

    Attributes:
        encoder: another architecture (black box); None: the link's own (grey box).
        epochs: passes over its images.
    """

    encoder: Annotated[Any, Plugin("encoder")] | None = None
    epochs: PositiveInt = 30


class Evasion(Options):
    """A test-time attack. Subclasses say how to maximise the problem's objective within the budget.

    Attributes:
        sites: where it acts; with both, each site has the whole PSR.
        norm: `l2`: ||delta||_2 <= sqrt(PSR E); `linf`: ||delta||_inf <= sqrt(PSR E / size), which lies inside it.
        objective: weight of each task's loss in what is maximised, by default every task with weight 1; or `joint`:
            min over tasks of (L - L_clean) / L_wrong, the smallest increase of a loss in units of what the loss is for
            the truth of another example, which no task escapes.
        targeted: goal of each task of the objective (class, sensing state, or number of a test picture); the attack
            then minimises the loss to that goal. Empty: untargeted, it maximises the loss to the truth.
        knowledge: what the adversary knows; an attack refuses what it cannot make use of.
        surrogate: the link that it trains itself; for weights: surrogate, and for attacks that use one beside.
        draws: channel draws of the expectation in each step; None: `evaluation.draws.attack`.
    """

    sites: list[Site] = Field(["input"], min_length=1)
    norm: Norm = "l2"
    objective: Annotated[
        Annotated[dict[str, NonNegativeFloat], Tag("weights")] | Annotated[Literal["joint"], Tag("joint")],
        Discriminator(
            lambda value: {str: "joint", dict: "weights"}.get(type(value)),
            "choice",
            "should be a mapping from tasks to weights, or 'joint'",
        ),
    ] = {}
    targeted: dict[str, NonNegativeInt] = {}
    knowledge: Knowledge = Knowledge()
    surrogate: Surrogate | None = None
    draws: PositiveInt | None = None

    knows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weights": ("all", "surrogate"),
        "signal": ("exact",),
        "channel": ("statistics", "csi"),
    }
    """Levels of knowledge that the attack can make use of; the first of each is its default."""
    minimal: ClassVar[bool] = False
    """Whether it looks for the least power in each example, rather than the most harm within the grid's PSR."""
    avoids: ClassVar[bool] = True
    """Whether it can work around a detector (`knowledge.defense: adaptive`)."""
    mean_power: ClassVar[bool] = False
    """Whether the budget holds for the mean power over all examples, as of one perturbation for all, instead of in each
    of them."""

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, options: Any) -> Any:
        given = options.get("knowledge", {}) if isinstance(options, dict) else None
        if not isinstance(given, dict):
            return options
        return {**options, "knowledge": {what: levels[0] for what, levels in cls.levels(options).items()} | given}

    @classmethod
    def levels(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
        """`knows` of the attack with these options."""
        return cls.knows

    @abstractmethod
    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        """A perturbation of every example of the problem, within the budget."""

    def goals(self, plan: Plan) -> dict[str, float]:
        """The objective's weights with their default filled in."""
        weights = {} if self.objective == "joint" else dict(self.objective)
        return weights or dict.fromkeys(plan.scenario.tasks, 1.0)

    def expectation(self, plan: Plan) -> int:
        """Channel draws in each step."""
        return self.draws or plan.scenario.evaluation.draws.attack

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: an unknown task, no positive weight, a goal that does not exist, or knowledge that the attack
                cannot use.
        """
        tasks = plan.scenario.tasks
        self._check_knowledge(path, plan)
        if self.objective == "joint" and self.targeted:
            raise ScenarioError(
                f"In the scenario, '{path}.objective': joint harms every task and aims at no goal; remove 'targeted', "
                "or name the tasks and their weights."
            )
        for key, named in (("objective", self.goals(plan)), ("targeted", self.targeted)):
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

    def _check_knowledge(self, path: str, plan: Plan) -> None:
        known = {"defense": ("exact", "adaptive", "none"), **self.levels(self.model_dump())}
        for what, level in self.knowledge:
            if level not in known[what]:
                raise ScenarioError(
                    f"In the scenario, '{path}.knowledge.{what}': '{self.kind}' works with "
                    f"{' or '.join(known[what])}, not '{level}'."
                )
        if self.knowledge.channel == "csi" and self.sites != ["air"]:
            raise ScenarioError(
                f"In the scenario, '{path}.knowledge.channel': what is done to an image comes before the channel is "
                "there; use sites: [air], or channel: statistics."
            )
        if self.knowledge.channel == "csi" and (far := self._distances(plan)):
            raise ScenarioError(
                f"In the scenario, '{path}.knowledge.channel': over '{far}' the gain of the reflected path tells how "
                "far the target is, which is not the channel's; use channel: statistics, or path_loss: 0."
            )
        if self.knowledge.channel == "csi" and plan.scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}.knowledge.channel': csi is for encoders that send all their numbers; use "
                "channel: statistics with one that sends patches."
            )
        if self.knowledge.weights == "surrogate" and self.surrogate is None:
            raise ScenarioError(
                f"In the scenario, '{path}.surrogate': weights: surrogate needs a link that the adversary trains; "
                "write surrogate: {} for one of the same architecture."
            )
        if self.knowledge.weights == "surrogate" and self.knowledge.channel == "csi":
            raise ScenarioError(
                f"In the scenario, '{path}.knowledge': to know the receivers' gains but not their weights is not "
                "modelled; use weights: all, or channel: statistics."
            )
        if self.surrogate is not None and any(
            encoder is not None and encoder.paints for encoder in (plan.scenario.link.encoder, self.surrogate.encoder)
        ):
            raise ScenarioError(
                f"In the scenario, '{path}.surrogate': an encoder of patches begins with trained networks, which an "
                "adversary's own could not; use another encoder, or weights: all."
            )
        if self.surrogate is not None and self.surrogate.encoder is not None and "air" in self.sites:
            uses = self.surrogate.encoder.uses(plan.images)
            if uses != plan.channel_uses:
                raise ScenarioError(
                    f"In the scenario, '{path}.surrogate.encoder': it sends {uses} numbers and the link "
                    f"{plan.channel_uses}; over the air the two must be equal."
                )
        if self.surrogate is not None and not plan.dataset.reserve:
            raise ScenarioError(
                f"In the scenario, '{path}.surrogate': the adversary trains on images that no receiver holds; keep "
                "some of them with data.reserve."
            )

    def _distances(self, plan: Plan) -> str:
        """The objective's first sensing channel whose gain depends on the target's distance; empty: none does."""
        weights = self.goals(plan)
        for branch in plan.branches:
            channel = plan.channel(branch)
            far = isinstance(channel, Sensing) and channel.path_loss and channel.range_bins > 1
            if far and weights.get(branch.task):
                return branch.channel
        return ""
