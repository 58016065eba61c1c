"""Federated averaging."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register


@register("aggregator", "fedavg")
class FedAvg(Aggregator):
    """sum_i w_i delta_i / sum_i w_i in float64 (McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017), with w_i = n_i * (sum of the receiver's task weights) for the shared encoder."""

    def adaptive(self) -> None:
        """It withstands nobody: one update moves it anywhere."""

    def aggregate(self, updates: Updates) -> Aggregate:
        total = np.zeros(updates.deltas.shape[1])
        for weight, delta in zip(updates.weights / updates.weights.sum(), updates.deltas, strict=True):
            total += weight * delta
        return Aggregate(total)
