"""FLTrust."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .distances import combination, norms, products


@register("aggregator", "fltrust")
class FlTrust(Aggregator):
    """sum_i t_i (|g| / |delta_i|) delta_i / sum_i t_i with trust t_i = max(0, cos(delta_i, g)) and g what the server
    learnt on `data.reserve`, clean images of its own (Cao et al., FLTrust: Byzantine-robust Federated Learning via
    Trust Bootstrapping, 2021). It withstands any number of malicious updates, if the server's data are like the
    receivers'. How much a receiver counts does not matter. Where nobody is trusted, the result is zero."""

    @property
    def needs_root(self) -> bool:
        return True

    def aggregate(self, updates: Updates) -> Aggregate:
        if updates.root is None:
            raise ValueError("FLTrust needs what the server learnt on its own data.")
        lengths = norms(updates.deltas)
        own = float(np.linalg.norm(updates.root.astype(np.float64)))
        scale = lengths * own
        cosines = np.divide(products(updates.deltas, updates.root), scale, out=np.zeros(len(lengths)), where=scale > 0)
        trust = np.maximum(cosines, 0.0)
        kept = trust > 0
        share = np.divide(trust * own, lengths * trust.sum(), out=np.zeros(len(lengths)), where=kept)
        return Aggregate(combination(updates.deltas, share), kept)
