"""Gaussian updates."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "gaussian_update")
class GaussianUpdate(UpdateAttack):
    """Each sends white Gaussian noise instead of its delta (Xie, Koyejo and Gupta, Generalized Byzantine-tolerant SGD,
    2018, with a deviation of 200 on gradients).

    Attributes:
        scale: deviation in units of the root mean square of the honest deltas, which gives the noise of one receiver
            `scale` times the norm of an honest delta.
    """

    scale: PositiveFloat = 10.0

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        deviation = self.scale * float(np.sqrt(np.square(seen.honest).mean()))
        return deviation * stream.numpy().standard_normal(seen.own.shape)
