"""Mean around the median."""

from __future__ import annotations

from pydantic import NonNegativeInt

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, mean_near_median


@register("aggregator", "meamed")
class MeaMed(Aggregator):
    """Mean of the n - f values of each coordinate that are nearest to their median (Xie, Koyejo and Gupta, Generalized
    Byzantine-tolerant SGD, 2018). It needs n >= 2 f + 1 updates; how much a receiver counts does not matter.

    Attributes:
        f: malicious updates that it assumes.
    """

    f: NonNegativeInt = 1

    @property
    def assumed_f(self) -> int:
        return self.f

    @property
    def least_updates(self) -> int:
        return 2 * self.f + 1

    def aggregate(self, updates: Updates) -> Aggregate:
        count = len(updates.deltas) - self.f
        return Aggregate(by_coordinate(updates.deltas, lambda values: mean_near_median(values, count)))
