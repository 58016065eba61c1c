"""The interface of every transmitter encoder."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from fedsem.registry import Options


@dataclass(frozen=True)
class ImageFormat:
    """What an encoder must know of its images.

    Attributes:
        shape: channels, height and width.
        mean, std: of each colour channel of the training pixels in [0, 1].
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Encoder(Options):
    """A network from raw images in [0, 1] to real numbers on air; standardisation is its own first step."""

    @property
    def paints(self) -> bool:
        """Whether receivers decode from a picture that the encoder's counterpart paints, rather than from numbers."""
        return False

    @abstractmethod
    def uses(self, images: ImageFormat) -> int:
        """nc, the most real numbers that are sent for an image."""

    @abstractmethod
    def build(self, images: ImageFormat) -> nn.Module:
        """A new network (B, C, H, W) in [0, 1] -> (B, nc), initialised from torch's global generator."""


class FixedLength(Encoder):
    """An encoder that always sends nc numbers.

    Attributes:
        channel_uses: nc, real numbers sent for each image; at most 8,192, beyond the 3,072 of an image itself.
    """

    channel_uses: Annotated[int, Field(ge=1, le=8_192)] = 20

    def uses(self, images: ImageFormat) -> int:
        return self.channel_uses
