"""Clipping of each update by its length."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .distances import norms


@register("pre_aggregator", "clipping")
class Clipping(PreAggregator):
    """delta min(1, limit / |delta|): no update is longer than the limit (Sun et al., Can You Really Backdoor Federated
    Learning?, 2019). It assumes nothing of the number of malicious updates; weights stay with their receivers.

    Attributes:
        limit: the longest that an update may be; None: the median length of the group, in each round.
    """

    limit: PositiveFloat | None = None

    def mixture(self, updates: Updates) -> np.ndarray:
        return np.diag(shortening(norms(updates.deltas), self.limit))


def shortening(lengths: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Factors that bring lengths down to a limit, 1 for those within it; None: to their median."""
    limit = float(np.median(lengths)) if limit is None else limit
    cut = lengths > limit
    return np.where(cut, limit / np.where(cut, lengths, 1.0), 1.0)
