"""Reconstruction of the transmitted image."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.models import perceptual
from fedsem.models.mlp import mlp
from fedsem.models.perceptual import similarity
from fedsem.models.picture import AsItIs
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task


@register("task", "reconstruction")
class Reconstruction(Task):
    """[S3] section III: dense nc, 128, 256, 512 (ReLU), then one linear output per pixel; mean squared error.

    Where the receiver's front end paints the picture (a MAE), the decoder is that picture as it is.

    [S3] lists five layers and speaks of "the first three" as ReLU; here every layer but the last is. Pixels are in
    [0, 1], so that PSNR = -10 log10 MSE; without any error it counts as 120 dB.

    Attributes:
        error: what is minimised: `mse`, or `l1`, the mean absolute error, as in [S0] III-A.
        ssim: also measure structural similarity (Wang et al., 2004), by torchmetrics; slow for large test sets.
        lpips: also measure learned perceptual similarity (Zhang et al., The Unreasonable Effectiveness of Deep Features
            as a Perceptual Metric, 2018), by torchmetrics, where torchvision's AlexNet weights lie in torch's cache;
            where they do not, it is left out and the report says so.
    """

    evaluation_only: ClassVar[frozenset[str]] = frozenset(["ssim", "lpips"])

    error: Literal["mse", "l1"] = "mse"
    ssim: bool = False
    lpips: bool = False

    @property
    def headline(self) -> str:
        return "mse"

    def build(self, decoder: DecoderFormat) -> nn.Module:
        if decoder.paints:
            return AsItIs()
        return mlp(decoder.width, (decoder.channel_uses, 128, 256, 512), math.prod(decoder.image_shape))

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        return examples.images.flatten(1)

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return test_images

    def aim(self, goal: int, examples: Examples) -> Tensor:
        """The test picture of that number, for every example."""
        return examples.images[goal].flatten().expand(len(examples), -1)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        if self.error == "l1":
            return (output - truth).abs().mean(-1)
        return (output - truth).square().mean(-1)

    @property
    def compares(self) -> bool:
        return True

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """Mean squared distance: it is to the KL divergence of two normal distributions of the same variance what the
        mean squared error is to their log-likelihood."""
        return (output - other).square().mean(-1)

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """`mse` of pixels in [0, 1], `mse_255` of pixels from 0 to 255, `psnr_db`, mean of the images' own; `ssim` and
        `lpips` where they are asked for."""
        mse = (output - truth).square().mean(-1)
        one = torch.ones_like(mse)
        shares = {
            "mse": Share(mse, one),
            "mse_255": Share(255**2 * mse, one),
            "psnr_db": Share(-10 * mse.clamp_min(1e-12).log10(), one),
        }
        if self.ssim:
            shares["ssim"] = Share(similarity(output, truth), one)
        if self.lpips and perceptual.available():
            shares["lpips"] = Share(perceptual.distance(output, truth), one)
        return shares

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Mean squared error to the target picture."""
        mse = (output - aim).square().mean(-1)
        return Share(mse, torch.ones_like(mse))
