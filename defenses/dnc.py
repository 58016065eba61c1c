"""Divide and conquer."""

from __future__ import annotations

import math

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .distances import mean
from .krum import ranked


@register("aggregator", "dnc")
class DivideAndConquer(RobustAggregator):
    """Mean of the deltas that stand out in no draw: of `coordinates` random coordinates, less their mean, the first
    right singular vector v is found, and the c f deltas with the largest (delta . v)^2 are dropped (Shejwalkar and
    Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning,
    2021). How much a receiver counts does not matter. Where every delta was dropped in some draw, those stay that were
    dropped least often.

    Attributes:
        c: how many are dropped for each of them.
        draws: how often coordinates are drawn.
        coordinates: how many at a time; all where there are fewer.
    """

    c: PositiveFloat = 1.0
    draws: PositiveInt = 5
    coordinates: PositiveInt = 10_000

    @property
    def least_updates(self) -> int:
        return max(2 * self.f, math.ceil(self.c * self.f)) + 1

    def aggregate(self, updates: Updates) -> Aggregate:
        count, size = updates.deltas.shape
        dropped = np.zeros(count, int)
        for draw in range(self.draws):
            chosen = updates.stream.child("dnc", draw).numpy().choice(size, min(size, self.coordinates), replace=False)
            seen = updates.deltas[:, np.sort(chosen)].astype(np.float64)
            seen -= seen.mean(0)
            # The deltas' shares of the first singular vector, without the vector itself.
            score = np.linalg.eigh(seen @ seen.T).eigenvectors[:, -1] ** 2
            dropped[ranked(score, updates.receivers)[count - math.ceil(self.c * self.f) :]] += 1
        kept = dropped == dropped.min()
        return Aggregate(mean(updates.deltas, kept), kept)
