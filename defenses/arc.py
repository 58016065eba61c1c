"""Adaptive robust clipping."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeInt

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .distances import norms


@register("pre_aggregator", "arc")
class AdaptiveRobustClipping(PreAggregator):
    """Clips the k = floor(2 f (n - f) / n) longest deltas to the length of the longest that is left (Allouah et al.,
    Adaptive Gradient Clipping for Robust Federated Learning, 2025). Weights stay with their receivers.

    Attributes:
        f: malicious updates that it assumes.
    """

    f: NonNegativeInt = 1

    def mixture(self, updates: Updates) -> np.ndarray:
        lengths = norms(updates.deltas)
        count = len(lengths)
        clipped = max(0, min(count - 1, 2 * self.f * (count - self.f) // count))
        return np.diag(shortening(lengths, float(np.sort(lengths)[count - clipped - 1])))
