"""Additive white Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.channels.channel import Channel
from fedsem.registry import register


@register("channel", "awgn")
class Awgn(Channel):
    """y = x + n with n ~ N(0, 1/SNR) per real number ([S3] section II). The adversary's gain is 1."""

    def gains(self, shape: tuple[int, ...], symbols_on_air: int, generator: torch.Generator) -> Tensor:
        return torch.ones((*shape, 1), dtype=torch.complex64, device=generator.device)
