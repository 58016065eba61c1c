"""A small detector for digit-sized objects: torchvision's FCOS on a backbone of six convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

from fedsem.models.detector import Detector, padded

SIDE = 112
"""Pictures are resized to this side."""
STRIDE = 8


class Fcos(Detector):
    """Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, 2019, on one feature map of stride 8 at
    112x112 pixels, 1.0 million parameters. Group normalisation everywhere: nothing depends on the batch.

    Args:
        categories: their names.
        most: boxes kept for a picture.
    """

    def __init__(self, categories: tuple[str, ...], most: int = 20) -> None:
        super().__init__()
        self.categories = categories
        self.most = most
        backbone = _backbone()
        self.fcos = FCOS(
            backbone,
            len(categories),
            min_size=SIDE,
            max_size=SIDE,
            anchor_generator=AnchorGenerator(((STRIDE,),), ((1.0,),)),
            head=FCOSHead(backbone.out_channels, 1, len(categories), num_convs=2),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=most,
            topk_candidates=100,
        )

    def forward(self, images: Tensor) -> Tensor:
        self.fcos.eval()
        found = self.fcos(list(images.clamp(0, 1)))
        rows = [
            torch.cat([one["boxes"], one["scores"].unsqueeze(1), one["labels"].unsqueeze(1).float()], dim=1)
            for one in found
        ]
        return padded(rows, self.most)

    def loss(self, images: Tensor, truth: Tensor) -> Tensor:
        self.fcos.train()
        return torch.stack([self._loss(image, rows) for image, rows in zip(images, truth, strict=True)])

    def batch_loss(self, images: Tensor, truth: Tensor) -> Tensor:
        """The loss of all pictures together, as FCOS defines it: per location that holds an object."""
        self.fcos.train()
        targets = [_target(rows) for rows in truth]
        return torch.stack(list(self.fcos(list(images), targets).values())).sum()

    def _loss(self, image: Tensor, rows: Tensor) -> Tensor:
        return self.batch_loss(image.unsqueeze(0), rows.unsqueeze(0))


def _target(rows: Tensor) -> dict[str, Tensor]:
    there = rows[rows[:, 4] >= 0]
    return {"boxes": there[:, :4], "labels": there[:, 4].long()}


def _backbone() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for filters, stride in ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1)):
        layers += [nn.Conv2d(channels, filters, 3, stride, 1), nn.GroupNorm(filters // 8, filters), nn.ReLU()]
        channels = filters
    backbone = nn.Sequential(*layers)
    backbone.out_channels = channels  # type: ignore[assignment]  # where torchvision looks for it
    return backbone
