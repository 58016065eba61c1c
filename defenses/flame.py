"""FLAME."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeFloat

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .cosines import cosines, from_zero
from .distances import combination
from .krum import by_receiver


@register("aggregator", "flame")
class Flame(Aggregator):
    """Keeps the largest cluster that HDBSCAN finds by the cosine distances 1 - cos(delta_i, delta_j), with more than
    half of all in it; clips its deltas to the median length S of all; takes their mean, and adds noise N(0, (`noise`
    S)^2) to each coordinate (Nguyen et al., FLAME: Taming Backdoors in Federated Learning, 2022). It withstands fewer
    than half of the updates; how much a receiver counts does not matter. Where there is no cluster, all are kept.

    The paper compares the receivers' weights by their cosines; deltas, as here, differ more.

    Attributes:
        noise: lambda in the paper: 0.001 for pictures there.
    """

    noise: NonNegativeFloat = 0.001

    @property
    def least_updates(self) -> int:
        return 3

    def aggregate(self, updates: Updates) -> Aggregate:
        from sklearn.cluster import HDBSCAN

        count, size = updates.deltas.shape
        inner = from_zero(updates.deltas)
        lengths = np.sqrt(inner.diagonal())
        # min_samples is 1 in the paper, whose library does not count the point itself; scikit-learn does.
        order = by_receiver(updates)
        found = np.empty(count, int)
        found[order] = HDBSCAN(
            min_cluster_size=count // 2 + 1, min_samples=2, allow_single_cluster=True, metric="precomputed", copy=True
        ).fit_predict((1 - cosines(inner))[np.ix_(order, order)])
        kept = found == 0 if (found == 0).any() else np.ones(count, bool)
        limit = float(np.median(lengths))
        made = combination(updates.deltas, kept / kept.sum() * shortening(lengths, limit))
        if self.noise:
            made += updates.stream.child("noise").numpy().normal(0.0, self.noise * limit, size)
        return Aggregate(made, kept)
