"""Bulyan."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsem.hooks.aggregate import Aggregate, Updates
from fedsem.registry import register

from .coordinates import by_coordinate, mean_near_median
from .distances import distances, gram
from .krum import Krum, ranked, scores


@register("aggregator", "bulyan")
class Bulyan(Krum):
    """Krum chooses theta = n - 2 f deltas; then each coordinate is the mean of its theta - 2 f values that are nearest
    to their median (El Mhamdi, Guerraoui and Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium,
    2018). It needs n >= 4 f + 3 updates; how much a receiver counts does not matter.

    Attributes:
        selection: `one_by_one` applies Krum again to those that are left, with n falling, as the paper and Flower's
            older strategy do; `at_once` takes the theta best scores, as Flower's newer strategy does.
    """

    selection: Literal["one_by_one", "at_once"] = "one_by_one"

    @property
    def least_updates(self) -> int:
        return 4 * self.f + 3

    def aggregate(self, updates: Updates) -> Aggregate:
        apart = distances(gram(updates.deltas))
        count = len(apart) - 2 * self.f
        ids = updates.receivers or range(len(apart))
        kept = np.zeros(len(apart), bool)
        if self.selection == "at_once":
            kept[ranked(scores(apart, self.fewer), ids)[:count]] = True
        else:
            for _ in range(count):
                left = np.flatnonzero(~kept)
                kept[left[ranked(scores(apart[np.ix_(left, left)], self.fewer), [ids[i] for i in left])[0]]] = True
        nearest = count - 2 * self.f
        rows = np.flatnonzero(kept)
        return Aggregate(by_coordinate(updates.deltas, lambda values: mean_near_median(values, nearest), rows), kept)
