"""Small convolutional decoders of pictures, for receivers whose front end paints one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.models.mae import IMAGENET_MEAN, IMAGENET_STD

WIDTHS = (24, 48, 64)
"""Filters at a quarter, an eighth and a sixteenth of the picture's side."""


class PictureTrunk(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> features (B, 24, H / 4, W / 4), top-down as in Lin et al., Feature Pyramid
    Networks, 2017. Group normalisation: nothing depends on the batch."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)
        fine, middle, coarse = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, fine, 4, 4), nn.GroupNorm(fine // 8, fine), nn.ReLU())
        self.to_middle = nn.Sequential(_block(fine, middle, 2), _block(middle, middle, 1))
        self.to_coarse = nn.Sequential(_block(middle, coarse, 2), _block(coarse, coarse, 1))
        self.from_coarse, self.from_middle = nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)
        self.smooth = _block(fine, fine, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        fine = self.stem((pictures - self.mean) / self.std)
        middle = self.to_middle(fine)
        middle = middle + _up(self.from_coarse(self.to_coarse(middle)), middle)
        return self.smooth(fine + _up(self.from_middle(middle), fine))


class DenseHead(nn.Module):
    """Pictures (..., B, 3, H, W) -> maps (..., B, outputs, H / s, W / s) at stride s = 2 or 4."""

    def __init__(self, outputs: int, stride: int) -> None:
        super().__init__()
        self.trunk = PictureTrunk()
        parts = 4 // stride
        self.out = nn.Sequential(nn.Conv2d(WIDTHS[0], outputs * parts**2, 1), nn.PixelShuffle(parts))

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.out(self.trunk(pictures.flatten(0, -4)))
        return maps.view(*pictures.shape[:-3], *maps.shape[1:])


class ClassHead(nn.Module):
    """Pictures (..., B, 3, H, W) -> class scores (..., B, outputs): what is found anywhere, by maximum and mean."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = PictureTrunk()
        self.features = nn.Sequential(_block(WIDTHS[0], 64, 2), _block(64, 128, 2))
        self.out = nn.Linear(256, outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.features(self.trunk(pictures.flatten(0, -4)))
        scores = self.out(torch.cat([features.amax((2, 3)), features.mean((2, 3))], dim=1))
        return scores.view(*pictures.shape[:-3], -1)


class AsItIs(nn.Module):
    """The picture itself, flattened: (..., B, 3, H, W) -> (..., B, 3 H W)."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(-3)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(outputs // 8, outputs), nn.ReLU())


def _up(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, like.shape[-2:], mode="nearest")
