"""Krum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .distances import distances, gram


@register("aggregator", "krum")
class Krum(RobustAggregator):
    """The delta of the one receiver that lies closest to its neighbours: the sum of the squared distances to the
    `neighbours` nearest other deltas is the smallest (Blanchard et al., Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent, 2017). It needs n >= 2 f + 3 updates; how much a receiver counts does not matter.

    Attributes:
        neighbours: how many others are counted: n - f - 2 in the paper and in Flower; ByzFL counts n - f - 1.
    """

    neighbours: Literal["n-f-2", "n-f-1"] = "n-f-2"

    @property
    def least_updates(self) -> int:
        return 2 * self.f + 3

    @property
    def fewer(self) -> int:
        """How many of all updates are not counted as neighbours."""
        return self.f + (2 if self.neighbours == "n-f-2" else 1)

    def aggregate(self, updates: Updates) -> Aggregate:
        chosen = ranked(self.scores(updates.deltas), updates.receivers)[0]
        kept = np.arange(len(updates.deltas)) == chosen
        return Aggregate(np.asarray(updates.deltas[chosen], np.float64), kept)

    def scores(self, deltas: np.ndarray) -> np.ndarray:
        """Sum of squared distances of each delta to its nearest others, (n,) float64."""
        return scores(distances(gram(deltas)), self.fewer)


def scores(apart: np.ndarray, fewer: int) -> np.ndarray:
    """Sums of the squared distances to the nearest n - `fewer` others, at least one."""
    others = apart.copy()
    np.fill_diagonal(others, np.inf)
    return np.sort(others, axis=1)[:, : max(1, len(apart) - fewer)].sum(1)


def ranked(scores: np.ndarray, receivers: Sequence[int]) -> np.ndarray:
    """Positions by rising score; of equal ones the smaller receiver's first, whatever the order of the rows."""
    # Pre-aggregators that merge deltas leave no receivers.
    return np.lexsort((np.asarray(receivers or range(len(scores))), scores))


def by_receiver(updates: Updates) -> np.ndarray:
    """Positions by rising receiver: for what breaks ties by the order of its input."""
    return ranked(np.zeros(len(updates.deltas)), updates.receivers)
