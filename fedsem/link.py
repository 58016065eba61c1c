"""The signal path, written once: image -> encoder -> power constraint -> air -> decoder.

Training, evaluation and every attack go through `Transmitter.send` and `Channel.apply`; nothing else touches a signal.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedsem.channels.symbols import Symbols

Power = Literal["per_example", "batch_average"]
Precision = Literal["float32", "bf16"]


class Transmitter(nn.Module):
    """Encoder and power constraint: images (B, C, H, W) in [0, 1] -> real numbers x (B, nc) of mean power 1.

    `per_example`: ||x||^2 = nc for every image. `batch_average`: the mean over the batch is nc; `gain` fixes the
    amplifier after training (`calibrate`), so that what is sent for one image does not depend on its batch.

    Args:
        encoder: images -> (B, nc), any scale.
        symbols: `real` or `complex`, see `fedsem.channels.symbols`.
        power: the constraint.
        precision: `bf16` runs the encoder under bfloat16 autocast; power, air and decoders stay in float32.
    """

    def __init__(self, encoder: nn.Module, symbols: Symbols, power: Power, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self.symbols = symbols
        self.power = power
        self.precision = precision
        self.gain: float | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Transmitted real numbers (B, nc)."""
        x = self.encode(images)
        if self.power == "per_example":
            scale = x.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()
        elif self.gain is None:
            scale = x.square().mean().clamp_min(1e-12).rsqrt()
        else:
            return x * self.gain
        return x * scale

    def encode(self, images: Tensor) -> Tensor:
        """Encoder output before the power constraint, in float32."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.encoder(images).float()

    @torch.no_grad()
    def calibrate(self, images: Tensor, batch: int) -> None:
        """Fix the gain of `batch_average` so that the mean power over these images is 1."""
        if self.power == "batch_average":
            mean = torch.cat([self.encode(part).double().square().mean(1) for part in images.split(batch)]).mean()
            self.gain = float(mean.clamp_min(1e-12).rsqrt())
