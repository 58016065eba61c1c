"""Sign flip."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "sign_flip")
class SignFlip(UpdateAttack):
    """All send -scale times the mean of the honest deltas (Li et al., RSA: Byzantine-Robust Stochastic Aggregation
    Methods, 2019; Allen-Zhu et al., Byzantine-Resilient Non-Convex Stochastic Gradient Descent, 2021).

    Attributes:
        scale: of the flipped mean.
    """

    scale: PositiveFloat = 1.0

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        return np.repeat(-self.scale * seen.honest.mean(0, keepdims=True), len(seen.own), axis=0)
