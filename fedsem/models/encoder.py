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
    """A network from raw images in [0, 1] to nc real numbers; standardisation is its own first step.

    Attributes:
        channel_uses: nc, real numbers sent for each image; at most 8,192, beyond the 3,072 of an image itself.
    """

    channel_uses: Annotated[int, Field(ge=1, le=8_192)] = 20

    @abstractmethod
    def build(self, images: ImageFormat) -> nn.Module:
        """A new network (B, C, H, W) in [0, 1] -> (B, nc), initialised from torch's global generator."""
