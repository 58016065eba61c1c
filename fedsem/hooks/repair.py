"""Hook `model`: training is over, and the networks are examined and repaired before anybody uses them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.link import Transmitter
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Branch, Plan


class Hearing(Protocol):
    """A decoder at the end of a channel, under a name of its own."""

    @property
    def name(self) -> str: ...
    @property
    def branch(self) -> Branch: ...
    @property
    def decoder(self) -> nn.Module: ...


class Repairable(Protocol):
    """A trained link as a repair finds it; implemented by `fedsem.evaluation.trained`."""

    @property
    def plan(self) -> Plan: ...
    @property
    def seed(self) -> int: ...
    @property
    def transmitter(self) -> Transmitter: ...
    @property
    def listeners(self) -> Sequence[Hearing]: ...


@dataclass(frozen=True)
class Finding:
    """What a repair found, for the table.

    Attributes:
        metric: its name.
        value: its value, without chance but for that of the seed.
        task: the task that it is about, if it is about one.
        goal: the class that it is about, if it is about one.
    """

    metric: str
    value: float
    task: str | None = None
    goal: int | None = None


@dataclass(frozen=True)
class Trigger:
    """A trigger that a repair has worked out, u' = (1 - mask) u + mask pattern.

    Attributes:
        task: whose decoders follow it.
        goal: the class that they then say.
        mask: (H, W) in [0, 1].
        pattern: (C, H, W) in [0, 1].
    """

    task: str
    goal: int
    mask: Tensor
    pattern: Tensor

    def on(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) with the trigger."""
        return (1 - self.mask) * images + self.mask * self.pattern


@dataclass(frozen=True)
class Repaired:
    """What a repair makes of a link.

    Attributes:
        transmitter: in evaluation mode, its gain fixed.
        decoders: in evaluation mode, by the listener's name.
        findings: what it found; the same ones for every seed.
        triggers: what it worked out.
    """

    transmitter: Transmitter
    decoders: Mapping[str, nn.Module]
    findings: Sequence[Finding] = ()
    triggers: Sequence[Trigger] = field(default_factory=tuple)


class Repair(Defense):
    """Changes a trained link with the clean images of `data.reserve`, which nobody has trained on and no test sees: the
    encoder, and the decoders of all receivers, who are taken to have these images too where their decoders are `local`.
    What it found stands in the table, in rows of stage `repair`.

    An adversary who attacks the trained link attacks the repaired one. One with a surrogate, or with images of its own,
    has the same `data.reserve`, which favours the adversary.

    Attributes:
        epochs: passes over these images in which the link learns on, with the losses, channels and SNRs of its
            training.
        lr: learning rate of these passes (Adam).
    """

    in_training: ClassVar[bool] = False

    epochs: NonNegativeInt = 10
    lr: Annotated[PositiveFloat, Field(le=1)] = 1e-3

    @abstractmethod
    def repair(self, link: Repairable, stream: Stream) -> Repaired:
        """The repaired networks. Must not change those of the link.

        Args:
            link: the trained link.
            stream: random, by seed and defense.
        """

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: there are no clean images, no classes to judge by, or the encoder sends patches.
        """
        encoder = plan.scenario.link.encoder
        self._needs_reserve(path, plan, "repairs the link with clean")
        if encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': link.encoder '{encoder.kind}' sends chosen patches, which '{self.kind}' "
                "cannot repair; use the encoder 'cnn'."
            )
        if not any(isinstance(task, Classification) for task in plan.scenario.tasks.values()):
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' judges a link by the classes that it decides, and no task "
                "is a classification; add one, or leave it out."
            )
