"""MultiKrum."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from fedsem.hooks.aggregate import Aggregate, Updates
from fedsem.registry import register

from .distances import combination
from .krum import Krum, ranked


@register("aggregator", "multi_krum")
class MultiKrum(Krum):
    """Mean of the m deltas with the smallest scores of Krum (Blanchard et al., Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent, 2017). It needs n >= 2 f + 3 updates.

    Attributes:
        keep: m, at most n; None: n - f, as in ByzFL. With m = 1 it is Krum.
        weighted: count the chosen receivers by their weights, as Flower does; otherwise all alike, as the paper does.
    """

    keep: PositiveInt | None = None
    weighted: bool = False

    @property
    def least_updates(self) -> int:
        return max(super().least_updates, self.keep or 0)

    @property
    def demanding(self) -> tuple[str, int] | None:
        if self.keep is None or self.keep <= super().least_updates:
            return super().demanding
        return "keep", self.keep

    def aggregate(self, updates: Updates) -> Aggregate:
        count = len(updates.deltas) - self.f if self.keep is None else self.keep
        kept = np.zeros(len(updates.deltas), bool)
        kept[ranked(self.scores(updates.deltas), updates.receivers)[:count]] = True
        share = kept * (updates.weights if self.weighted else 1.0)
        return Aggregate(combination(updates.deltas, share / share.sum()), kept)
