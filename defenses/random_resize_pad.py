"""Random resizing and padding of the image before it is encoded."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional as F

from fedsem.hooks.transform import Transform
from fedsem.registry import register


@register("defense", "random_resize_pad")
class RandomResizePad(Transform):
    """u -> pad(resize(u, s)): the image is shrunk to a random size s (bilinear) and put at a random place of a black
    image of the old size, anew for each reception (Xie et al., Mitigating Adversarial Effects Through Randomization,
    2018; there the image grows, which an encoder of images of one size does not allow).

    An adversary who knows it differentiates through it.

    Attributes:
        smallest: least height and width, as shares of the old ones; sizes from there to the old ones are equally
            likely.
    """

    smallest: Annotated[float, Field(gt=0, lt=1)] = 0.9

    def draw(self, shape: tuple[int, ...], image: tuple[int, int, int], generator: Generator) -> Tensor | None:
        return torch.rand((*shape, 3), generator=generator)

    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        height, width = signal.shape[2:]
        across = self._source(width, drawn[:, 0], drawn[:, 1])[:, None, :].expand(-1, height, -1)
        down = self._source(height, drawn[:, 0], drawn[:, 2])[:, :, None].expand(-1, -1, width)
        grid = torch.stack([across, down], dim=-1).to(signal.dtype)
        return F.grid_sample(signal, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def stand_in(self, signal: Tensor, drawn: Tensor) -> Tensor:
        return self.transform(signal, drawn)

    def _source(self, side: int, size: Tensor, place: Tensor) -> Tensor:
        """Where each of the new pixels comes from along an axis, (B, side), from -1 to 1 as `grid_sample` counts."""
        least = max(1, math.ceil(self.smallest * side))
        sizes = least + (size * (side - least + 1)).floor()
        first = (place * (side - sizes + 1)).floor()
        new = torch.arange(side, device=size.device) + 0.5
        return 2 * (new - first.unsqueeze(-1)) / sizes.unsqueeze(-1) - 1
