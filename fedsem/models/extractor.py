"""How much fits on air: bits and channel uses of a transmission, and the number of patches that the channel allows.

[S0] III-B: channel state -> Shannon rate -> bits within the latency budget -> number of patches. Nothing here draws or
learns anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fedsem.units import from_db

SCALE_BITS = 32
"""Bits of one scale factor (float32)."""


def nominal_latency(image_bits: float, mask_ratio: float, bandwidth_hz: float, snr_db: float) -> float:
    """Latency of [S0], Table I, in seconds: bits (1 - ratio) / (B log2(1 + SNR)).

    The table itself is 1.2e6 bits, 1 MHz and a *linear* SNR of 16 (12.04 dB), and prints seconds as milliseconds.
    """
    return image_bits * (1 - mask_ratio) / (bandwidth_hz * math.log2(1 + from_db(snr_db)))


def capacity(snr_db: float | Tensor, gain: Tensor) -> Tensor:
    """Bits per second and hertz, log2(1 + |h|^2 SNR), for power gains |h|^2."""
    linear = from_db(snr_db) if isinstance(snr_db, Tensor) else torch.tensor(from_db(snr_db))
    return torch.log2(1 + gain.double() * linear.double())


@dataclass(frozen=True)
class Payload:
    """What has to be sent for a number of patches.

    Attributes:
        patches: L, patches of a picture.
        width: D, features of a patch.
        pixels: numbers of a patch's pixels.
        kind: `features` or `pixels`.
        bits: Q, of a quantised number.
    """

    patches: int
    width: int
    pixels: int
    kind: Literal["features", "pixels"]
    bits: int

    @cached_property
    def mask_bits(self) -> tuple[int, ...]:
        """ceil(log2 C(L, k)) for k = 0 .. L: the number of the choice among all choices of k patches."""
        return tuple((math.comb(self.patches, k) - 1).bit_length() for k in range(self.patches + 1))

    def side_bits(self, count: int) -> int:
        """Bits that must arrive without error: which patches are sent, and scales (of features: the range of the
        quantiser where they are digital, the amplifier's gain where they are analogue)."""
        return self.mask_bits[count] + (2 * SCALE_BITS if self.kind == "features" else 0)

    def digital(self, count: int) -> int:
        """All bits of a digital transmission of `count` patches; features come with those of the class token. Nothing
        is sent for none."""
        if count == 0:
            return 0
        numbers = self.pixels * count if self.kind == "pixels" else self.width * (count + 1)
        return numbers * self.bits + self.side_bits(count)

    def analogue_uses(self, count: int) -> int:
        """Real channel uses of an analogue transmission: a number each, and one for each bit of side information, which
        a control channel carries at one bit per use whatever the SNR."""
        return 0 if count == 0 else self.width * (count + 1) + self.mask_bits[count] + SCALE_BITS

    @cached_property
    def _digital(self) -> Tensor:
        return torch.tensor([self.digital(k) for k in range(self.patches + 1)], dtype=torch.float64)

    def most_digital(self, allowed: Tensor) -> Tensor:
        """The largest number of patches whose bits do not exceed `allowed`, elementwise, int64; 0 is outage."""
        # Bits grow with k up to a few: the mask's bits fall beyond L / 2, by less than a patch has.
        return torch.searchsorted(self._digital, allowed.double().contiguous(), right=True) - 1

    def most_analogue(self, uses: float) -> int:
        """The largest number of patches that fits into that many real channel uses."""
        return max((k for k in range(self.patches + 1) if self.analogue_uses(k) <= uses), default=0)
