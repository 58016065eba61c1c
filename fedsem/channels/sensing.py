"""The sensing channel: does a target reflect the transmitted signal, and from which range?"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from fedsem.channels.channel import (
    Channel,
    Realisation,
    air_gain,
    complex_normal,
    noise_amplitude,
    standard_noise,
    turned,
)
from fedsem.channels.symbols import Symbols, from_air, to_air, uses
from fedsem.registry import register


@register("channel", "sensing")
class Sensing(Channel):
    """r = t a z + n ([S3] section IV): t = 1 with probability 1/2, E|a|^2 = 1, sensing SNR = 1/sigma^2 after both hops.

    The reflection is a = 1 without fading; with Rayleigh hops a = h2 h1 (`bistatic`) or a = h^2 / sqrt 2
    (`monostatic`, the same path twice; E|h|^4 = 2). For real symbols the gains are |h|. The receiver knows its noise
    floor: it works on r / sigma, as constant-false-alarm detectors do.

    Attributes:
        geometry: `bistatic` or `monostatic`.
        fading: `rayleigh` or `none`.
        known_snr: the decoder also receives the sensing SNR (in units of 20 dB), which the best threshold depends on.
        known_waveform: the decoder also receives z; only in the monostatic case, where sender and receiver are one.
        range_bins: D; z arrives delayed by a whole number of symbols, uniform over 0 .. D - 1, and r has D - 1 more.
        path_loss: n; reflected power falls as (1 + delay)^-n. 0 by default: otherwise power would give the range away.
        direct_path_db: power of the transmitter's direct path at the receiver under both hypotheses, relative to the
            mean reflection; only in the bistatic case. None: no direct path.
    """

    geometry: Literal["bistatic", "monostatic"] = "bistatic"
    fading: Literal["rayleigh", "none"] = "rayleigh"
    known_snr: bool = True
    known_waveform: bool = False
    range_bins: Annotated[int, Field(ge=1, le=4096)] = 1
    path_loss: NonNegativeFloat = 0.0
    direct_path_db: float | None = Field(default=None, ge=-100, le=100)

    @model_validator(mode="after")
    def _geometry_fits(self) -> Sensing:
        if self.known_waveform and self.geometry == "bistatic":
            raise ValueError("'known_waveform' needs geometry: monostatic, where the transmitter itself receives")
        if self.direct_path_db is not None and self.geometry == "monostatic":
            raise ValueError("'direct_path_db' needs geometry: bistatic; a monostatic radar has no direct path")
        return self

    @property
    def fading_name(self) -> str:
        return self.fading

    @property
    def is_sensing(self) -> bool:
        return True

    def knows_phase(self, symbols: Symbols) -> bool:
        return symbols == "complex" and self.fading == "none"

    def width(self, channel_uses: int, symbols: Symbols) -> int:
        received = channel_uses + (self.range_bins - 1) * (1 if symbols == "real" else 2)
        return received + int(self.known_snr) + (channel_uses if self.known_waveform else 0)

    def gains(self, shape: tuple[int, ...], symbols_on_air: int, generator: torch.Generator) -> Tensor:
        """Gain of a single hop, as the direct path and the adversary's path have it."""
        if self.fading == "none":
            return torch.ones((*shape, 1), dtype=torch.complex64, device=generator.device)
        return complex_normal((*shape, 1), generator)

    def draw(
        self, shape: tuple[int, ...], channel_uses: int, symbols: Symbols, generator: torch.Generator
    ) -> Realisation:
        received = uses(channel_uses, symbols) + self.range_bins - 1
        first = self.gains(shape, received, generator)
        if self.fading == "none":
            reflection = first
        elif self.geometry == "monostatic":
            reflection = first.square() / math.sqrt(2)
        else:
            reflection = first * self.gains(shape, received, generator)
        present = torch.randint(0, 2, shape, device=generator.device, generator=generator)
        delay = torch.randint(0, self.range_bins, shape, device=generator.device, generator=generator)
        return Realisation(
            h=reflection * (1.0 + delay.unsqueeze(-1)) ** (-self.path_loss / 2),
            g=self.gains(shape, received, generator),
            noise=standard_noise((*shape, received), symbols, generator),
            error=torch.zeros((*shape, 1), dtype=torch.complex64, device=generator.device),
            target=present * (1 + delay),
            direct=self.gains(shape, received, generator),
        )

    def apply(
        self,
        x: Tensor,
        realisation: Realisation,
        snr_db: float | Tensor,
        symbols: Symbols,
        interference: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        assert realisation.target is not None
        assert realisation.direct is not None
        z, target = to_air(x, symbols), realisation.target
        sigma = noise_amplitude(snr_db, realisation.noise)
        r = sigma * realisation.noise
        a = air_gain(realisation.h, symbols)
        for delay in range(self.range_bins):
            here = (target == 1 + delay).unsqueeze(-1)
            r = r + self._arriving(here * a * z, delay)
        if self.direct_path_db is not None:
            direct = air_gain(realisation.direct, symbols) * 10 ** (self.direct_path_db / 20)
            r = r + self._arriving(direct * z, 0)
        if interference is not None:
            r = r + self._arriving(air_gain(realisation.g, symbols) * to_air(interference, symbols), 0)
        r = turned(r, rotation, symbols)
        received = [from_air(r / sigma, symbols)]
        rows = received[0].shape[:-1]
        if self.known_snr:
            received.append((-sigma.log10()).expand(*rows, 1))
        if self.known_waveform:
            received.append(x.expand(*rows, x.shape[-1]))
        return torch.cat(received, dim=-1)

    def _arriving(self, z: Tensor, delay: int) -> Tensor:
        return torch.nn.functional.pad(z, (delay, self.range_bins - 1 - delay)) if self.range_bins > 1 else z
