"""Nearest neighbours of a trusted update."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeInt

from fedsem.errors import FederationError
from fedsem.hooks.aggregate import Aggregate, RobustAggregator, Updates
from fedsem.registry import register

from .distances import mean, norms
from .krum import ranked


@register("aggregator", "monna")
class MoNna(RobustAggregator):
    """Mean of the n - f deltas that are nearest to one that is trusted (Farhadkhani et al., Robust Collaborative
    Learning with Linear Gradient Overhead, 2023, where each worker trusts its own). It needs n >= 2 f + 1 updates; how
    much a receiver counts does not matter.

    Attributes:
        trusted: the receiver that is trusted, and must be in each round; None: what the server learnt on its own data.
    """

    trusted: NonNegativeInt | None = None

    @property
    def needs_root(self) -> bool:
        return self.trusted is None

    def aggregate(self, updates: Updates) -> Aggregate:
        apart = norms(updates.deltas, self._pivot(updates))
        kept = np.zeros(len(apart), bool)
        kept[ranked(apart, updates.receivers)[: len(apart) - self.f]] = True
        return Aggregate(mean(updates.deltas, kept), kept)

    def _pivot(self, updates: Updates) -> np.ndarray:
        if self.trusted is None:
            if updates.root is None:
                raise ValueError("MoNNA needs a trusted receiver, or what the server learnt on its own data.")
            return updates.root
        if self.trusted not in updates.receivers:
            raise FederationError(
                f"MoNNA trusts receiver {self.trusted}, who has no update in this group and round; raise "
                "federation.fraction, or trust what the server learns itself (trusted: null)."
            )
        return np.asarray(updates.deltas[updates.receivers.index(self.trusted)])
