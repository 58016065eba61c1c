"""Real numbers and complex symbols: the two ways in which an image's nc numbers go on air (design section 4).

`real`: x in R^nc with mean power 1 per use is sent as it is. `complex`: z_i = (x_2i + j x_2i+1) / sqrt 2, so that
E|z|^2 = 1 and noise CN(0, 1/SNR) has the power 1/SNR per real number of x: at equal nc, AWGN is the same channel.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Symbols = Literal["real", "complex"]


def uses(channel_uses: int, symbols: Symbols) -> int:
    """Symbols on air for `channel_uses` real numbers: nc if real, nc / 2 if complex."""
    return channel_uses if symbols == "real" else channel_uses // 2


def to_air(x: Tensor, symbols: Symbols) -> Tensor:
    """(..., nc) real numbers -> (..., uses) symbols on air."""
    if symbols == "real":
        return x
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) / math.sqrt(2)


def from_air(z: Tensor, symbols: Symbols) -> Tensor:
    """(..., uses) symbols -> (..., nc) real numbers; the inverse of `to_air`."""
    if symbols == "real":
        return z
    return torch.view_as_real(z * math.sqrt(2)).flatten(-2)
