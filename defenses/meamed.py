"""Mean around the median."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, mean_near_median


@register("aggregator", "meamed")
class MeaMed(RobustAggregator):
    """Mean of the n - f values of each coordinate that are nearest to their median (Xie, Koyejo and Gupta, Generalized
    Byzantine-tolerant SGD, 2018). It needs n >= 2 f + 1 updates; how much a receiver counts does not matter."""

    def adaptive(self) -> Mapping[str, Any] | None:
        """A search along the spread of each coordinate, which what is near to the median lies within."""
        return {"kind": "alie", "search": True}

    def aggregate(self, updates: Updates) -> Aggregate:
        count = len(updates.deltas) - self.f
        return Aggregate(by_coordinate(updates.deltas, lambda values: mean_near_median(values, count)))
