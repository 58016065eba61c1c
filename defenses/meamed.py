"""Mean around the median."""

from __future__ import annotations

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, mean_near_median


@register("aggregator", "meamed")
class MeaMed(RobustAggregator):
    """Mean of the n - f values of each coordinate that are nearest to their median (Xie, Koyejo and Gupta, Generalized
    Byzantine-tolerant SGD, 2018). It needs n >= 2 f + 1 updates; how much a receiver counts does not matter."""

    def aggregate(self, updates: Updates) -> Aggregate:
        count = len(updates.deltas) - self.f
        return Aggregate(by_coordinate(updates.deltas, lambda values: mean_near_median(values, count)))
