"""Nearest-neighbour mixing."""

from __future__ import annotations

from dataclasses import replace

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

    The mixed deltas take as much memory as those that came in, and nothing else of that size is made.

    Attributes:
        f: malicious updates that it assumes, fewer than there are.
    """

    f: NonNegativeInt = 1

    def prepare(self, updates: Updates) -> Updates:
        apart = distances(gram(updates.deltas))
        count = max(1, len(apart) - self.f)
        np.fill_diagonal(apart, -1.0)
        order = by_receiver(updates)
        nearest = order[np.argsort(apart[:, order], axis=1, kind="stable")[:, :count]]
        mix = np.zeros(apart.shape, updates.deltas.dtype)
        np.put_along_axis(mix, nearest, 1 / count, axis=1)
        return replace(updates, deltas=mix @ updates.deltas)
