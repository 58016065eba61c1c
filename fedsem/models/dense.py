"""A dense encoder: another architecture than the convolutional one."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fedsem.models.encoder import FixedLength, ImageFormat
from fedsem.models.mlp import mlp
from fedsem.registry import register


@register("encoder", "dense")
class Dense(FixedLength):
    """Dense layers with ReLU on standardised pixels, then a linear one of nc outputs: the plainest encoder there is,
    and one for an adversary who does not know what the link's looks like.

    Attributes:
        hidden: neurons of each hidden layer.
    """

    hidden: Annotated[list[PositiveInt], Field(min_length=1)] = [512, 256]

    def build(self, images: ImageFormat) -> nn.Module:
        return _Network(self.channel_uses, self.hidden, images)


class _Network(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, channel_uses: int, hidden: list[int], images: ImageFormat) -> None:
        super().__init__()
        # Not persistent: what is averaged over receivers holds parameters only.
        self.register_buffer("mean", torch.tensor(images.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(images.std).view(-1, 1, 1), persistent=False)
        self.layers = mlp(math.prod(images.shape), hidden, channel_uses)

    def forward(self, images: Tensor) -> Tensor:
        encoded: Tensor = self.layers(((images - self.mean) / self.std).contiguous().flatten(1))
        return encoded
