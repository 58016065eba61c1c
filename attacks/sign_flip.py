"""Sign flip."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Directed, Rows, Seen
from fedsem.registry import register


@register("attack", "sign_flip")
class SignFlip(Directed):
    """All send -scale times the mean of the honest deltas, or each -scale times the delta that it has learnt (Li et
    al., RSA: Byzantine-Robust Stochastic Aggregation Methods, 2019; Allen-Zhu et al., Byzantine-Resilient Non-Convex
    Stochastic Gradient Descent, 2021). Rules that look for receivers who send the same see nothing in the second.

    Attributes:
        scale: of what is flipped.
        of: what is flipped: the honest `mean`, or each receiver's `own` delta.
    """

    scale: PositiveFloat = 1.0
    of: Literal["mean", "own"] = "mean"

    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        mean = seen.honest.mean(0)
        return np.zeros_like(mean), -mean if self.of == "mean" else -seen.own

    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        return self.scale
