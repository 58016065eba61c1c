"""Nearest-neighbour mixing."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeInt

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .distances import distances, gram
from .krum import by_receiver


@register("pre_aggregator", "nnm")
class NearestNeighbourMixing(PreAggregator):
    """Each delta becomes the mean of the n - f deltas that are nearest to it, itself among them (Allouah et al., Fixing
    by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, 2023). Weights stay with their receivers.

    Attributes:
        f: malicious updates that it assumes, fewer than there are.
    """

    f: NonNegativeInt = 1

    def mixture(self, updates: Updates) -> np.ndarray:
        apart = distances(gram(updates.deltas))
        count = max(1, len(apart) - self.f)
        np.fill_diagonal(apart, -1.0)
        order = by_receiver(updates)
        nearest = order[np.argsort(apart[:, order], axis=1, kind="stable")[:, :count]]
        mixture = np.zeros(apart.shape)
        np.put_along_axis(mixture, nearest, 1 / count, axis=1)
        return mixture
