"""Covariance-bound agnostic filter."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .distances import combination, gram


@register("aggregator", "caf")
class CovarianceFilter(RobustAggregator):
    """Deltas start with c_i = 1 and lose what stands out along the first eigenvector v of their covariance: with mu
    their mean, c_i <- c_i (1 - t_i / max t), t_i = ((delta_i - mu) . v)^2, as long as sum c > n - 2 f; the result is
    the mean mu whose covariance had the smallest first eigenvalue (Allouah et al., Towards Trustworthy Federated
    Learning with Untrusted Participants, 2025). It needs n >= 2 f + 1 updates; how much a receiver counts does not
    matter.

    Eigenvectors are exact, from the deltas' inner products; ByzFL takes one step of power iteration from a random
    vector instead. max t is of those with c_i > 0: a huge update that is out already would otherwise stop the filter.

    Attributes:
        f: malicious updates that it assumes; with 0 it is the mean.
    """

    def aggregate(self, updates: Updates) -> Aggregate:
        inner = gram(updates.deltas)
        count = len(inner)
        left, best, smallest = np.ones(count), np.full(count, 1 / count), np.inf
        while left.sum() > count - 2 * self.f:
            share = left / left.sum()
            along = inner @ share
            seen = inner - (along[:, None] + along[None, :]) + share @ along
            root = np.sqrt(share)
            values, vectors = np.linalg.eigh(root[:, None] * seen * root[None, :])
            if values[-1] < smallest:
                smallest, best = values[-1], share
            # Along v, up to its length: v itself is this combination of the deltas.
            stands_out = np.where(left > 0, seen @ (root * vectors[:, -1]), 0.0) ** 2
            if not stands_out.max() > 0:
                break
            left = left * (1 - stands_out / stands_out.max())
        return Aggregate(combination(updates.deltas, best), best > 0)
