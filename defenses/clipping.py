"""Clipping of each update by its length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .distances import scaled, squared_norms


@register("pre_aggregator", "clipping")
class Clipping(PreAggregator):
    """delta min(1, limit / |delta|): no update is longer than the limit (Sun et al., Can You Really Backdoor Federated
    Learning?, 2019). It assumes nothing of the number of malicious updates; weights stay with their receivers. The
    clipped deltas are a copy.

    Attributes:
        limit: the longest that an update may be; None: the median length of the group, in each round.
    """

    limit: PositiveFloat | None = None

    def prepare(self, updates: Updates) -> Updates:
        lengths = np.sqrt(squared_norms(updates.deltas))
        limit = float(np.median(lengths)) if self.limit is None else self.limit
        return replace(updates, deltas=scaled(updates.deltas, shortening(lengths, limit)))


def shortening(lengths: np.ndarray, limit: float) -> np.ndarray:
    """Factors that bring lengths down to a limit, 1 for those within it."""
    cut = lengths > limit
    return np.where(cut, limit / np.where(cut, lengths, 1.0), 1.0)
