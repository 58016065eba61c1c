"""What Rayleigh and Rician channels share: block or fast fading, channel estimates and equalisers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from fedsem.channels.channel import Channel, Realisation
from fedsem.channels.symbols import Symbols, from_air, uses


class FadingChannel(Channel):
    """y = h x + g delta + n with a random gain of E|h|^2 = 1, independent for every example.

    Attributes:
        fading: `block`: one h for all symbols of an example; `fast`: one for each symbol.
        csi: what the receiver does with its estimate e = h + error: `none` (y), `phase` (y e*/|e|; for real symbols
            the phase is always known, so this is y), `zf` (y / e), `mmse` (e* y / (|e|^2 + 1/SNR)). Over
            Rayleigh E[1 / |h|^2] is infinite: `zf` has no finite mean squared error, `mmse` has.
        estimation_error: variance E|e - h|^2 of the estimate (for real symbols the estimate is |h + error|).
        decoder_csi: the decoder also receives the estimate (real symbols: |e|; complex: real and imaginary part).
    """

    fading: Literal["block", "fast"] = "block"
    csi: Literal["none", "phase", "zf", "mmse"] = "zf"
    estimation_error: NonNegativeFloat = 0.0
    decoder_csi: bool = False

    @property
    def fading_name(self) -> str:
        return self.fading

    @property
    def csi_name(self) -> str:
        return self.csi

    def knows_phase(self, symbols: Symbols) -> bool:
        return symbols == "complex" and (self.csi != "none" or self.decoder_csi)

    def gain_shape(self, shape: tuple[int, ...], symbols_on_air: int) -> tuple[int, ...]:
        """One gain per example, or one per symbol."""
        return (*shape, 1 if self.fading == "block" else symbols_on_air)

    def width(self, channel_uses: int, symbols: Symbols) -> int:
        if not self.decoder_csi:
            return channel_uses
        gains = 1 if self.fading == "block" else uses(channel_uses, symbols)
        return channel_uses + gains * (1 if symbols == "real" else 2)

    def estimate(self, realisation: Realisation, symbols: Symbols) -> Tensor:
        """The receiver's channel estimate, as symbols see it."""
        estimate = realisation.h + math.sqrt(self.estimation_error) * realisation.error
        return estimate.abs() if symbols == "real" else estimate

    def equalise(self, y: Tensor, realisation: Realisation, sigma: Tensor, symbols: Symbols) -> Tensor:
        e = self.estimate(realisation, symbols)
        if self.csi == "phase":
            y = y if symbols == "real" else y * e.conj() / e.abs()
        elif self.csi == "zf":
            y = y / e
        elif self.csi == "mmse":
            y = y * e.conj() / (e.abs().square() + sigma.square())
        received = from_air(y, symbols)
        if not self.decoder_csi:
            return received
        known = e if symbols == "real" else torch.view_as_real(e).flatten(-2)
        return torch.cat([received, known.expand(*received.shape[:-1], known.shape[-1])], dim=-1)
