"""Trimmed mean."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, mean


@register("aggregator", "trimmed_mean")
class TrimmedMean(RobustAggregator):
    """Mean of each coordinate without its smallest and its largest values (Yin et al., Byzantine-Robust Distributed
    Learning: Towards Optimal Statistical Rates, 2018). How much a receiver counts does not matter.

    Attributes:
        f: malicious updates that it assumes, and how many values are cut off at either end.
        share: cut off floor(share n) values at either end instead, as Flower does; it then assumes nothing of f.
    """

    share: Annotated[float, Field(ge=0, lt=0.5)] | None = None

    @property
    def assumed_f(self) -> int | None:
        return self.f if self.share is None else None

    @property
    def least_updates(self) -> int:
        return 2 * self.f + 1 if self.share is None else 1

    def aggregate(self, updates: Updates) -> Aggregate:
        count = len(updates.deltas)
        cut = self.f if self.share is None else int(self.share * count)
        return Aggregate(by_coordinate(updates.deltas, lambda values: mean(values[:, cut : count - cut])))
