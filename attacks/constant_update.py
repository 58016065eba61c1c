"""Constant updates, and faults."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "constant_update")
class ConstantUpdate(UpdateAttack):
    """Every coordinate has one value, in units of the root mean square of the honest deltas (the same-value attack of
    Li et al., RSA: Byzantine-Robust Stochastic Aggregation Methods, 2019).

    Attributes:
        value: of every coordinate; `nan`, `inf` and 0 are faults rather than attacks: they test what the server does
            with a receiver that has broken down, or does not take part.
    """

    value: float | Literal["nan", "inf"] = 1.0

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        value = float(self.value)
        if np.isfinite(value):
            value *= float(np.sqrt(np.square(seen.honest).mean()))
        return np.full_like(seen.own, value)
