"""Reconstruction of the transmitted image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.models.mlp import mlp
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Share, Task


@register("task", "reconstruction")
class Reconstruction(Task):
    """[S3] section III: dense nc, 128, 256, 512 (ReLU), then one linear output per pixel; mean squared error.

    [S3] lists five layers and speaks of "the first three" as ReLU; here every layer but the last is. Pixels are in
    [0, 1], so that PSNR = -10 log10 MSE.
    """

    @property
    def headline(self) -> str:
        return "mse"

    def build(self, decoder: DecoderFormat) -> nn.Module:
        return mlp(decoder.width, (decoder.channel_uses, 128, 256, 512), math.prod(decoder.image_shape))

    def truth(self, images: Tensor, labels: Tensor, realisation: Realisation) -> Tensor:
        return images.flatten(1)

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return test_images

    def aim(self, goal: int, images: Tensor, labels: Tensor) -> Tensor:
        """The test picture of that number, for every example."""
        return images[goal].flatten().expand(len(images), -1)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        return (output - truth).square().mean(-1)

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        mse = self.loss(output, truth)
        one = torch.ones_like(mse)
        return {"mse": Share(mse, one), "psnr_db": Share(-10 * mse.clamp_min(1e-12).log10(), one)}

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Mean squared error to the target picture."""
        mse = self.loss(output, aim)
        return Share(mse, torch.ones_like(mse))
