"""SignGuard."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .distances import combination, norms
from .krum import by_receiver


@register("aggregator", "signguard")
class SignGuard(Aggregator):
    """Mean of the deltas that pass two filters, clipped to the median length S of all: their length lies between
    `shortest` S and `longest` S; and mean shift puts them into the largest cluster by their shares of positive, zero
    and negative signs among random coordinates (Xu et al., Byzantine-robust Federated Learning through Collaborative
    Malicious Gradient Filtering, 2022). It withstands fewer than half of the updates; how much a receiver counts does
    not matter. Where nobody passes both, the lengths alone decide.

    Attributes:
        shortest: times the median length.
        longest: times the median length.
        share: of the coordinates whose signs are counted, drawn anew in each round.
    """

    shortest: Annotated[float, Field(ge=0, le=1)] = 0.1
    longest: Annotated[float, Field(ge=1)] = 3.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.1

    def aggregate(self, updates: Updates) -> Aggregate:
        lengths = norms(updates.deltas)
        middle = float(np.median(lengths))
        usual = (lengths >= self.shortest * middle) & (lengths <= self.longest * middle)
        kept = usual & self._alike(updates)
        kept = kept if kept.any() else usual
        return Aggregate(combination(updates.deltas, kept / kept.sum() * shortening(lengths)), kept)

    def _alike(self, updates: Updates) -> np.ndarray:
        """Which deltas have signs like most."""
        from sklearn.cluster import MeanShift, estimate_bandwidth

        size = updates.deltas.shape[1]
        few = max(1, round(self.share * size))
        chosen = np.sort(updates.stream.child("signguard").numpy().choice(size, few, replace=False))
        # In the order of the receivers from here: clusters may be equally large, and shares just a bandwidth apart.
        order = by_receiver(updates)
        signs = np.sign(updates.deltas[np.ix_(order, chosen)])
        shares = np.stack([(signs == sign).mean(1) for sign in (1, 0, -1)], axis=1)
        bandwidth = estimate_bandwidth(shares, quantile=0.5)
        alike = np.empty(len(order), bool)
        if bandwidth > 0:
            found = MeanShift(bandwidth=bandwidth).fit_predict(shares)
            alike[order] = found == np.argmax(np.bincount(found))
        else:
            # More than half have the very same shares.
            alike[order] = (shares == np.median(shares, axis=0)).all(1)
        return alike
