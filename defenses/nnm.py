"""Nearest-neighbour mixing."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.aggregate import RobustPreAggregator, Updates
from fedsem.registry import register

from .distances import distances, gram
from .krum import by_receiver


@register("pre_aggregator", "nnm")
class NearestNeighbourMixing(RobustPreAggregator):
    """Each delta becomes the mean of the n - f deltas that are nearest to it, itself among them (Allouah et al., Fixing
    by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, 2023). It needs n >= 2 f + 1 updates. Weights stay
    with their receivers."""

    def mixture(self, updates: Updates) -> np.ndarray:
        apart = distances(gram(updates.deltas))
        count = len(apart) - self.f
        np.fill_diagonal(apart, -1.0)
        order = by_receiver(updates)
        nearest = order[np.argsort(apart[:, order], axis=1, kind="stable")[:, :count]]
        mixture = np.zeros(apart.shape)
        np.put_along_axis(mixture, nearest, 1 / count, axis=1)
        return mixture
