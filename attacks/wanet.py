"""The warping backdoor."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from fedsem.hooks.poison import Backdoor, Portion
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "wanet")
class WaNet(Backdoor):
    """WaNet: the image is warped by a smooth field that nobody sees (Nguyen and Tran, WaNet - Imperceptible
    Warping-based Backdoor Attack, 2021).

    u'(p) = u(p + strength P(p) / side), bilinear, in coordinates of [-1, 1] that are clipped to the image. The field P
    is the bicubic enlargement of a control grid (grid x grid) of uniform numbers in [-1, 1] that are divided by their
    mean size; drawn by the run's seed. In the paper's noise mode, `cover` times as many images as are poisoned are
    warped by P + noise, uniform in [-1, 1] at each pixel and drawn for each image, and keep their labels: the network
    must learn this one warp, and not that anything is warped.

    Attributes:
        samples: 0.1 by default, as in the paper.
        grid: control points on each side; 4 in the paper.
        strength: s; 0.5 in the paper.
        cover: images in noise mode for each poisoned one; 2 in the paper, 0 without that mode.
    """

    samples: Portion = 0.1
    grid: Annotated[int, Field(ge=2, le=64)] = 4
    strength: PositiveFloat = 0.5
    cover: NonNegativeFloat = 2.0

    def field(self, height: int, width: int, stream: Stream) -> Tensor:
        """P at every pixel, (height, width, 2), horizontal component first."""
        control = 2 * torch.rand(1, 2, self.grid, self.grid, generator=stream.child("field").torch()) - 1
        control = control / control.abs().mean()
        return F.interpolate(control, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        return self._warped(images, torch.zeros(1), stream)

    def covered(self, images: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        shape = (*images.shape[-2:], 2)
        drawn = [2 * torch.rand(shape, generator=stream.child("noise", n).torch()) - 1 for n in numbers.tolist()]
        return self._warped(images, torch.stack(drawn), stream)

    def _warped(self, images: Tensor, noise: Tensor, stream: Stream) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        here = torch.stack([columns.expand(height, width), rows.unsqueeze(1).expand(height, width)], dim=-1)
        sides = torch.tensor([width, height])
        there = here + self.strength * self.field(height, width, stream) / sides
        if noise.dim() > 1:
            there = there + noise / sides
        there = there.clamp(-1, 1).expand(len(images), height, width, 2).to(images.device)
        # Bilinear weights sum to one: only rounding can leave [0, 1].
        return F.grid_sample(images, there, align_corners=True).clamp(0, 1)
