"""Krum."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register


@register("aggregator", "krum")
class Krum(Aggregator):
    """The delta of the one receiver that lies closest to its neighbours: the sum of the squared distances to the
    `neighbours` nearest other deltas is the smallest (Blanchard et al., Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent, 2017). It needs n >= 2 f + 3 updates; how much a receiver counts does not matter.

    Attributes:
        f: malicious updates that it assumes.
        neighbours: how many others are counted: n - f - 2 in the paper and in Flower; ByzFL counts n - f - 1.
    """

    f: NonNegativeInt = 1
    neighbours: Literal["n-f-2", "n-f-1"] = "n-f-2"

    @property
    def assumed_f(self) -> int:
        return self.f

    @property
    def least_updates(self) -> int:
        return 2 * self.f + 3

    def aggregate(self, updates: Updates) -> Aggregate:
        chosen = int(np.argmin(self.scores(updates.deltas)))
        kept = np.arange(len(updates.deltas)) == chosen
        return Aggregate(np.asarray(updates.deltas[chosen], np.float64), kept)

    def scores(self, deltas: np.ndarray) -> np.ndarray:
        """Sum of squared distances of each delta to its nearest others, (n,) float64."""
        # Of centred deltas: a Gram matrix of what all have in common would lose the distances in rounding.
        centred = deltas - deltas.mean(0, dtype=np.float64)
        gram = centred @ centred.T
        norms = gram.diagonal()
        squared = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
        np.fill_diagonal(squared, np.inf)
        count = len(deltas) - self.f - (2 if self.neighbours == "n-f-2" else 1)
        return np.sort(squared, axis=1)[:, :count].sum(1)
