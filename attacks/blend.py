"""The blended backdoor."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsem.registry import register
from fedsem.streams import Stream

from .partial_trigger import PartialTrigger


@register("attack", "blend")
class Blend(PartialTrigger):
    """A key pattern blended into the whole image (Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using
    Data Poisoning, 2017): u' = (1 - alpha) u + alpha k. The key k is the paper's random pattern: pixels uniform in
    [0, 1], drawn by the run's seed.

    Attributes:
        alpha: share of the key; 0.2 in the paper.
    """

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        key = torch.rand(images.shape[1:], generator=stream.child("key").torch()).to(images.device)
        return (1 - self.alpha) * images + self.alpha * key

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        return slice(0, height), slice(0, width)
