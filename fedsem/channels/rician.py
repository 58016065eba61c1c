"""Rician fading: a line of sight of factor K beside the scattered paths."""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fedsem.channels.channel import complex_normal
from fedsem.channels.fading import FadingChannel
from fedsem.channels.symbols import Symbols
from fedsem.registry import register


@register("channel", "rician")
class Rician(FadingChannel):
    """h = sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) CN(0, 1), so that E|h|^2 = 1.

    Attributes:
        k_factor: K, power of the line of sight over that of the scattered paths (linear); 0 is Rayleigh.
    """

    k_factor: NonNegativeFloat = 3.0

    def knows_phase(self, symbols: Symbols) -> bool:
        # A line of sight has a phase of its own: the gain's is not uniform.
        return super().knows_phase(symbols) or (symbols == "complex" and self.k_factor > 0)

    def gains(self, shape: tuple[int, ...], symbols_on_air: int, generator: torch.Generator) -> Tensor:
        scattered = complex_normal(self.gain_shape(shape, symbols_on_air), generator)
        return math.sqrt(self.k_factor / (self.k_factor + 1)) + math.sqrt(1 / (self.k_factor + 1)) * scattered
