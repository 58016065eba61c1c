"""Clipping or blanking of received symbols."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from fedsem.hooks.transform import Transform
from fedsem.registry import register


@register("defense", "symbol_clipping")
class SymbolClipping(Transform):
    """Limits the numbers that a receiver decodes (I and Q of every symbol, after the equaliser): those whose magnitude
    is above a level are cut to it, or blanked, as against impulsive interference (Zhidkov, Performance Analysis and
    Optimization of OFDM Receiver with Blanking Nonlinearity in Impulsive Noise Environment, 2006).

    An adversary who knows it differentiates as if nothing was cut.

    Attributes:
        level: in units of the root mean square of what is sent (after an equaliser that inverts the channel; without
            one, before fading); of a sensing channel, whose receiver works on r / sigma, in standard deviations of its
            noise. It also limits what a decoder is told beside the symbols, such as a channel estimate.
        over: what becomes of a number above it: `clip`, +-level; `blank`, 0.
    """

    where = "reception"

    level: Annotated[float, Field(gt=0)] = 2.0
    over: Literal["clip", "blank"] = "clip"

    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        if self.over == "clip":
            return signal.clamp(-self.level, self.level)
        return signal * (signal.abs() <= self.level)
