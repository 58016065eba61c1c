"""How far an adversary's signal moves what a decoder gets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedsem.channels.channel import Channel, Realisation
from fedsem.channels.symbols import Symbols


@torch.no_grad()
def reach(
    channel: Channel, realisation: Realisation, snr_db: float | Tensor, symbols: Symbols, channel_uses: int
) -> Tensor:
    """The most by which interference of at most 1 in each number at the adversary's antenna moves each number that the
    decoder gets, (..., B, width).

    With noise and fading fixed, interference passes the adversary's gain g and the receiver's equaliser linearly: the
    result is the sum of the absolute responses to each of the `channel_uses` numbers. It is 1 over AWGN, |g| / |h| with
    real symbols and zero forcing, and 0 for what a decoder knows besides, such as a channel estimate. It is tight for
    each number, though not always for all of them at once.
    """
    noise = torch.zeros_like(realisation.noise)
    quiet, silence = (
        replace(realisation, noise=noise),
        noise.new_zeros(noise.shape[-2], channel_uses, dtype=torch.float32),
    )
    rest = channel.apply(silence, quiet, snr_db, symbols)
    total = torch.zeros_like(rest)
    for number in range(channel_uses):
        one = silence.clone()
        one[:, number] = 1
        total += (channel.apply(silence, quiet, snr_db, symbols, one) - rest).abs()
    return total
