"""Adaptive robust clipping."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.aggregate import RobustPreAggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .distances import norms


@register("pre_aggregator", "arc")
class AdaptiveRobustClipping(RobustPreAggregator):
    """Clips the k = floor(2 f (n - f) / n) longest deltas to the length of the longest that is left (Allouah et al.,
    Adaptive Gradient Clipping for Robust Federated Learning, 2025). It needs n >= 2 f + 1 updates. Weights stay
    with their receivers."""

    def mixture(self, updates: Updates) -> np.ndarray:
        lengths = norms(updates.deltas)
        count = len(lengths)
        clipped = 2 * self.f * (count - self.f) // count
        return np.diag(shortening(lengths, float(np.sort(lengths)[count - clipped - 1])))
