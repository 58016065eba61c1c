"""FoolsGold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .cosines import cosines, from_zero
from .distances import combination
from .roster import roster

_ROUNDING = 1e-6


@register("aggregator", "foolsgold")
class FoolsGold(Aggregator):
    """Receivers whose updates, summed over all rounds, point the same way count less: with v_i the largest cosine of i
    to another receiver, and cosines to those with larger v_j shortened by v_i / v_j, a_i = 1 - max_j cos_ij, divided by
    the largest, and then confidence (ln(a_i / (1 - a_i)) + 1/2), cut to [0, 1]; the result is sum_i a_i delta_i /
    sum_i a_i (Fung, Yoon and Beschastnikh, The Limitations of Federated Learning in Sybil Settings, 2020; its sum is
    divided here, so that a step is as long as other rules'). It assumes that malicious receivers are alike and honest
    ones are not, and does nothing against a single one. Weights do not matter. Where all are alike, the result is zero.

    It remembers the sum of every receiver's updates: as much memory as an update of each, and as much again where some
    receivers are away.

    Attributes:
        confidence: kappa in the paper.
    """

    confidence: PositiveFloat = 1.0

    @property
    def needs_receivers(self) -> bool:
        return True

    def adaptive(self) -> Mapping[str, Any] | None:
        """The line search with a direction for each malicious receiver, who are not alike then."""
        return {"kind": "sign_flip", "of": "own", "search": True}

    def aggregate(self, updates: Updates) -> Aggregate:
        ids, before, rows = roster(updates)
        history = np.zeros((len(ids), updates.deltas.shape[1]), np.float32)
        if len(before):
            history[before] = updates.memory["history"]
        most = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            for row, delta in zip(rows, updates.deltas, strict=True):
                # Sums of huge updates stay finite.
                np.clip(history[row] + delta, -most, most, out=history[row])
        own = history if np.array_equal(rows, range(len(ids))) else history[rows]
        share = trust(cosines(from_zero(own)), self.confidence)
        memory = {"receivers": ids, "history": history}
        total = share.sum()
        return Aggregate(combination(updates.deltas, share / total if total > 0 else share), share > 0, memory)


def trust(cosine: np.ndarray, confidence: float) -> np.ndarray:
    """How much each receiver counts, in [0, 1], from the cosines between all."""
    apart = cosine.copy()
    np.fill_diagonal(apart, -1.0)
    # One that is like nobody at all needs no pardon, which its negative cosines would turn into its opposite.
    most = np.maximum(apart.max(1), 0.0)
    # Honest receivers that happen to be like a group of others are pardoned.
    pardon = np.divide(most[:, None], most[None, :], out=np.ones_like(apart), where=most[None, :] > most[:, None])
    made = np.clip(1 - (apart * pardon).max(1), 0.0, 1.0)
    # Of the same updates the cosine is 1 up to the rounding of single precision, which is no difference to blow up.
    made[made < _ROUNDING] = 0.0
    if made.max() > 0:
        made /= made.max()
    made = np.clip(made, 1e-12, 0.99)
    return np.clip(confidence * (np.log(made / (1 - made)) + 0.5), 0.0, 1.0)
