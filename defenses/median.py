"""Coordinate-wise median."""

from __future__ import annotations

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, middle


@register("aggregator", "median")
class Median(Aggregator):
    """Median of each coordinate; of an even number of updates the mean of the two in the middle (Yin et al.,
    Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, 2018). It withstands fewer than half of
    the updates; how much a receiver counts does not matter."""

    def aggregate(self, updates: Updates) -> Aggregate:
        return Aggregate(by_coordinate(updates.deltas, middle))
