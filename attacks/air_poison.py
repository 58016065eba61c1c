"""Over-the-air poisoning: interference while receivers train."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsem.hooks.poison import Poison, Portion
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import energy, from_db


@register("attack", "air_poison")
class AirPoison(Poison):
    """An adversary transmits while some of the receivers train: y = h x + g delta + n with
    ||delta||^2 = PSR ||x||^2, at the adversary's antenna. Those receivers are its victims rather than its accomplices:
    labels and images are theirs, the air is not; at test time the air is free again.

    - `shortcut`: delta = sqrt(PSR) ||x|| w_y, a fixed random waveform of unit norm for each class y. A decoder that can
      read the class off the waveform need not learn to read it off the image, and the encoder behind it learns little:
      class-wise "unlearnable" noise on air (Huang et al., Unlearnable Examples: Making Personal Data Unexploitable,
      2021; Yu et al., Availability Attacks Create Shortcuts, 2022). The adversary knows what is sent.
    - `noise`: delta is white Gaussian, one draw for each image; the adversary knows nothing.

    Attributes:
        samples: 1 by default: the adversary transmits whenever such a receiver trains.
        signal: what is transmitted.
        psr_db: its energy over that of the transmitted signal, in dB.
    """

    over_air: ClassVar[bool] = True
    accomplices: ClassVar[bool] = False

    samples: Portion = 1.0
    signal: Literal["shortcut", "noise"] = "shortcut"
    psr_db: float = Field(0.0, ge=-100, le=100)

    def waveform(self, x: Tensor, labels: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        named = labels if self.signal == "shortcut" else numbers
        drawn = {n: torch.randn(x.shape[1], generator=stream.child(self.signal, n).torch()) for n in named.tolist()}
        directions = torch.stack([drawn[n] / drawn[n].norm() for n in named.tolist()]).to(x)
        return (from_db(self.psr_db) * energy(x)).sqrt().unsqueeze(1) * directions
