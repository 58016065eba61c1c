"""Segmentation of the transmitted image: which pixels belong to objects."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.models.picture import DenseHead
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task


@register("task", "segmentation")
class Segmentation(Task):
    """Objects against background, from the painted picture; Dice loss ([S0] III-A).

    1 - 2 sum p t / (sum p + sum t) over the pixels of an image, with p the predicted probability of an object and t in
    {0, 1} the truth (Milletari et al., V-Net, 2016); 1 is added above and below, so that an image without objects has
    a loss too. Maps have half the picture's side and are compared at full size.
    """

    @property
    def needs(self) -> Literal["segmentation"]:
        return "segmentation"

    @property
    def headline(self) -> str:
        return "dice"

    def build(self, decoder: DecoderFormat) -> nn.Module:
        return _Foreground()

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        """float (B, H, W), 1 where an object is."""
        assert examples.segmentation is not None
        return (examples.segmentation > 0).float()

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return test_images

    def aim(self, goal: int, examples: Examples) -> Tensor:
        """The mask of the test picture of that number, for every example."""
        assert examples.segmentation is not None
        mask = (examples.segmentation[goal] > 0).float()
        return mask.expand(len(examples), *mask.shape)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        p = output.sigmoid()
        return 1 - (2 * (p * truth).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + truth.sum((-2, -1)) + 1)

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """`dice` and `iou` of the pixels told to be objects, summed over images."""
        said = (output > 0).float()
        both, either = (said * truth).sum((-2, -1)), (said + truth).sum((-2, -1))
        return {"dice": Share(2 * both, either), "iou": Share(both, either - both)}

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Dice to the target mask."""
        return self.metrics(output, aim, None)["dice"]


class _Foreground(nn.Module):
    """Pictures (..., B, 3, H, W) -> logits (..., B, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = DenseHead(1, stride=2)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.head(pictures)
        large = F.interpolate(maps.flatten(0, -4), pictures.shape[-2:], mode="bilinear", align_corners=False)
        return torch.squeeze(large, 1).view(*pictures.shape[:-3], *pictures.shape[-2:])
