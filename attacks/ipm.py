"""Inner-product manipulation."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Directed, Rows, Seen
from fedsem.registry import register


@register("attack", "ipm")
class Ipm(Directed):
    """All send -epsilon times the mean of the honest deltas: small enough to pass for one of them, and against them
    (Xie, Koyejo and Gupta, Fall of Empires: Breaking Byzantine-Tolerant SGD by Inner Product Manipulation, 2019).

    A search steps away from the mean of the honest deltas too, as Shejwalkar and Houmansadr do (Manipulating the
    Byzantine, 2021): a share of it, which points where the others point, passes rules that look at directions.

    Attributes:
        epsilon: 0.1 hides among the honest; above m / f it turns the mean around.
    """

    epsilon: PositiveFloat = 0.1

    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        mean = seen.honest.mean(0)
        return np.zeros_like(mean), -mean

    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        return self.epsilon

    def origins(self) -> tuple[float, ...]:
        return 0.0, 1.0
