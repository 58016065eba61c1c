"""The interface of every task."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import PositiveFloat
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.registry import Options


@dataclass(frozen=True)
class DecoderFormat:
    """What a decoder must know of its surroundings.

    Attributes:
        width: real numbers that the channel delivers for each image.
        channel_uses: nc.
        image_shape: channels, height, width.
        classes: number of labels.
        range_bins: bins of the sensing channel; 1 for other channels.
    """

    width: int
    channel_uses: int
    image_shape: tuple[int, int, int]
    classes: int
    range_bins: int


class Share(NamedTuple):
    """A metric as numerator and denominator of each example: its value is sum(numerator) / sum(denominator)."""

    numerator: Tensor
    denominator: Tensor


class Task(Options):
    """A task of a receiver. Outputs have the shape (..., B, outputs), with leading dimensions for channel draws.

    Attributes:
        weight: lambda; a receiver counts n_i * (sum of its tasks' lambda) in the shared average.
    """

    weight: PositiveFloat = 1.0

    @property
    def is_sensing(self) -> bool:
        """Whether the task needs a sensing channel."""
        return False

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that figures show first."""

    @abstractmethod
    def build(self, decoder: DecoderFormat) -> nn.Module:
        """A new decoder (..., width) -> (..., outputs), initialised from torch's global generator."""

    @abstractmethod
    def truth(self, images: Tensor, labels: Tensor, realisation: Realisation) -> Tensor:
        """What the decoder should say, broadcastable to (..., B)."""

    @abstractmethod
    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        """How many goals a targeted attack can choose from, numbered from 0."""

    @abstractmethod
    def aim(self, goal: int, images: Tensor, labels: Tensor) -> Tensor:
        """What a targeted attack wants the decoder to say, in the form of `truth`."""

    @abstractmethod
    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Loss of each example, (..., B)."""

    def calibrate(self, output: Tensor, truth: Tensor) -> float | None:
        """A decision threshold from clean outputs, for metrics that need one."""
        return None

    @abstractmethod
    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """All metrics of the task, each as shares of shape (..., B)."""

    @abstractmethod
    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """How far a targeted attack reached its aim."""
