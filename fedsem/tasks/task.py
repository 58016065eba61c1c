"""The interface of every task."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from pydantic import NonNegativeFloat
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
        paints: whether decoders see the picture (..., 3, H, W) that a MAE painted, rather than received numbers.
        categories: names of the categories of annotated objects.
        keypoints: annotated keypoints of an object.
    """

    width: int
    channel_uses: int
    image_shape: tuple[int, int, int]
    classes: int
    range_bins: int
    paints: bool = False
    categories: tuple[str, ...] = ()
    keypoints: int = 0


@dataclass(frozen=True)
class Examples:
    """Images with all that is known of them.

    Attributes:
        images: in [0, 1], (B, C, H, W).
        labels: their classes, (B,).
        boxes: of annotated objects, (B, M, 5), laid out as `fedsem.models.detector.Detector` says.
        keypoints: of the same objects, (B, M, K, 3): x, y in pixels and visibility.
        segmentation: uint8 (B, H, W), 0 for background, else 1 + category.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    keypoints: Tensor | None = None
    segmentation: Tensor | None = None

    def at(self, index: Tensor | slice) -> Examples:
        """Some of the examples."""
        held: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        picked: dict[str, Any] = {name: None if value is None else value[index] for name, value in held.items()}
        return Examples(**picked)

    def __len__(self) -> int:
        return len(self.labels)


class Share(NamedTuple):
    """A metric as numerator and denominator of each example: its value is sum(numerator) / sum(denominator)."""

    numerator: Tensor
    denominator: Tensor


class Task(Options):
    """A task of a receiver. Outputs have the shape (..., B, outputs), with leading dimensions for channel draws.

    Attributes:
        weight: lambda; a receiver counts n_i * (sum of its tasks' lambda) in the shared average. 0: the encoder learns
            nothing from the task; its decoder, if it has something to learn, does.
    """

    weight: NonNegativeFloat = 1.0

    @property
    def is_sensing(self) -> bool:
        """Whether the task needs a sensing channel."""
        return False

    @property
    def needs(self) -> Literal["picture", "boxes", "keypoints", "segmentation"] | None:
        """What the task cannot do without: a painted picture, or annotations (and then a picture too)."""
        return None

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that figures show first."""

    @abstractmethod
    def build(self, decoder: DecoderFormat) -> nn.Module:
        """A new decoder (..., width) -> (..., outputs), initialised from torch's global generator."""

    @abstractmethod
    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        """What the decoder should say, broadcastable to (..., B)."""

    @abstractmethod
    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        """How many goals a targeted attack can choose from, numbered from 0."""

    @abstractmethod
    def aim(self, goal: int, examples: Examples) -> Tensor:
        """What a targeted attack wants the decoder to say of all test examples, in the form of `truth`."""

    @abstractmethod
    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Loss of each example, (..., B)."""

    def objective(self, decoder: nn.Module, heard: Tensor, truth: Tensor) -> Tensor:
        """The loss of a decoder on what its receiver's front end heard, (..., B): what training minimises and an attack
        maximises."""
        return self.loss(decoder(heard), truth)

    def failure(self, decoder: nn.Module, heard: Tensor, truth: Tensor) -> Tensor:
        """How badly the task fails, (..., B), by which the worst of several perturbations is chosen: 0 or 1 where there
        is a decision, else the loss."""
        return self.objective(decoder, heard, truth)

    @property
    def compares(self) -> bool:
        """Whether `divergence` is defined."""
        return False

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """How far another output of a decoder is from its output, (..., B), in the units of the loss."""
        raise NotImplementedError(f"the outputs of '{self.kind}' cannot be compared")

    def calibrate(self, output: Tensor, truth: Tensor) -> float | None:
        """A decision threshold from clean outputs, for metrics that need one."""
        return None

    @abstractmethod
    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """All metrics of the task, each as shares of shape (..., B)."""

    @abstractmethod
    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """How far a targeted attack reached its aim."""
