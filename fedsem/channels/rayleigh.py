"""Rayleigh fading: no line of sight."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.channels.channel import complex_normal
from fedsem.channels.fading import FadingChannel
from fedsem.registry import register


@register("channel", "rayleigh")
class Rayleigh(FadingChannel):
    """h ~ CN(0, 1): |h| is Rayleigh distributed and |h|^2 exponential with mean 1."""

    def gains(self, shape: tuple[int, ...], symbols_on_air: int, generator: torch.Generator) -> Tensor:
        return complex_normal(self.gain_shape(shape, symbols_on_air), generator)
