"""The additive waveform backdoor."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedsem.hooks.evasion import Site
from fedsem.hooks.poison import Backdoor
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import energy, from_db


@register("attack", "waveform")
class Waveform(Backdoor):
    """A fixed waveform of low power, transmitted in training and at test time: y = h x + g delta + n with
    delta = sqrt(PSR) ||x|| w, ||w|| = 1, through the adversary's own gain g and then the receiver's equaliser: a
    blended key on air (Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017). w
    is white Gaussian, drawn by the run's seed, and made of unit length.

    Attributes:
        psr_db: its energy over that of the transmitted signal, in dB.
    """

    over_air: ClassVar[bool] = True
    site: ClassVar[Site] = "air"

    psr_db: float = Field(-10.0, ge=-100, le=100)

    def waveform(self, x: Tensor, labels: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        w = torch.randn(x.shape[1], generator=stream.child("waveform").torch()).to(x)
        return (from_db(self.psr_db) * energy(x)).sqrt().unsqueeze(1) * (w / w.norm())
