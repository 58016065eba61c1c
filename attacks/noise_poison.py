"""Noisy training images."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedsem.hooks.budget import fill
from fedsem.hooks.evasion import SiteState
from fedsem.hooks.poison import Poison, Portion
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import energy, from_db


@register("attack", "noise_poison")
class NoisePoison(Poison):
    """Malicious receivers learn from images u + n with white Gaussian noise, ||n||^2 = PSR ||u||^2 after clipping to
    [0, 1] (less where clipping forbids it), and keep their labels: the baseline that poisons without knowing anything.
    What a reconstruction should paint is the noisy image ([S3] section VI names poisoned training data).

    Attributes:
        samples: 1 by default: all of a malicious receiver's samples.
        psr_db: energy of the noise over that of the image, in dB.
    """

    samples: Portion = 1.0
    psr_db: float = Field(0.0, ge=-100, le=100)

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        directions = [torch.randn(images.shape[1:], generator=stream.child(n).torch()) for n in numbers.tolist()]
        site = SiteState(images, energy(images), bounded=True)
        return images + fill(torch.stack(directions).to(images.device), site, from_db(self.psr_db) * site.energy)
