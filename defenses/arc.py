"""Adaptive robust clipping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import NonNegativeInt

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .distances import scaled, squared_norms


@register("pre_aggregator", "arc")
class AdaptiveRobustClipping(PreAggregator):
    """Clips the k = floor(2 f (n - f) / n) longest deltas to the length of the longest that is left (Allouah et al.,
    Adaptive Gradient Clipping for Robust Federated Learning, 2025). Weights stay with their receivers. The clipped
    deltas are a copy.

    Attributes:
        f: malicious updates that it assumes.
    """

    f: NonNegativeInt = 1

    def prepare(self, updates: Updates) -> Updates:
        lengths = np.sqrt(squared_norms(updates.deltas))
        count = len(lengths)
        clipped = max(0, min(count - 1, 2 * self.f * (count - self.f) // count))
        limit = float(np.sort(lengths)[count - clipped - 1])
        return replace(updates, deltas=scaled(updates.deltas, shortening(lengths, limit)))
