"""Hook `leakage`: after training an adversary reads what was not meant for it, and changes nothing.

An eavesdropper hears the symbols over a channel of its own; an honest-but-curious server looks into an update. What is
measured is what they learn of images that are none of theirs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from fedsem.registry import Options
from fedsem.streams import Stream
from fedsem.tasks.task import Examples, Share

if TYPE_CHECKING:
    from fedsem.plan import Plan, Receiver

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Picture:
    """An image and what an adversary made of it, for the report.

    Attributes:
        image: its number among those that were attacked.
        label: its class.
        private: the image itself in [0, 1], (C, H, W).
        leaked: what the adversary made of it.
    """

    image: int
    label: int
    private: Tensor
    leaked: Tensor


@dataclass(frozen=True)
class Leak:
    """What an adversary learnt at one point.

    Attributes:
        columns: of the table, beside the attack's name and options.
        metrics: metric -> share of each image that was attacked, (N,) each, summed over channel draws.
        receptions: channel draws behind each image.
        guess: nothing was seen: the best that someone can say who has the adversary's own images alone. The first guess
            that an attack yields is what its other points are compared with.
        rival: the task whose receivers, at the same SNR and on the same images, this is compared with.
        pictures: examples.
    """

    columns: Mapping[str, Any]
    metrics: Mapping[str, Share]
    receptions: int
    guess: bool = False
    rival: str | None = None
    pictures: Sequence[Picture] = field(default_factory=tuple)


class Exposed(Protocol):
    """A trained link as adversaries of privacy find it; implemented by `fedsem.evaluation.leakage`.

    Attributes:
        plan: what it was trained for.
        seed: of its training.
        snrs: those of the grids that name the attack, in dB, rising.
    """

    plan: Plan
    seed: int
    snrs: Sequence[float]

    @property
    def own(self) -> Examples:
        """The adversary's images, `data.reserve`; no receiver has trained on them, and none is a test image."""
        ...

    @property
    def test(self) -> Examples:
        """Test images, which the adversary must not learn from."""
        ...

    def send(self, images: Tensor) -> Tensor:
        """What the trained transmitter sends for these images, (B, nc)."""
        ...

    def parameters(self, receiver: Receiver, trained: bool) -> tuple[Parameters, dict[str, Parameters]]:
        """Parameters of the encoder and of a receiver's decoders by branch key, before the first round or after the
        last."""
        ...


class Leakage(Options):
    """An attack on privacy. It disturbs nothing, so that it has no power budget: grids name it without `psr_db`."""

    budgeted: ClassVar[bool] = False

    @abstractmethod
    def measure(self, link: Exposed, stream: Stream) -> Iterator[Leak]:
        """What leaks, point by point; every point of one seed has its like with the others."""

    @abstractmethod
    def points(self, snrs: int) -> int:
        """How many of its points take time, at so many SNRs; for the progress bar."""

    @abstractmethod
    def knowledge(self) -> dict[str, str]:
        """What the adversary knows, for the table."""

    @abstractmethod
    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: the attack cannot be made on this link.
        """
