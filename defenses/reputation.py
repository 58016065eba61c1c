"""Reputation of receivers over rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .cosines import from_zero
from .distances import combination
from .roster import roster


@register("aggregator", "reputation")
class Reputation(Aggregator):
    """Receivers count by what they were worth in earlier rounds (AFA: Muñoz-González, Co and Lupu, Byzantine-Robust
    Federated Machine Learning through Adaptive Model Averaging, 2019). Of a receiver with g good and b bad updates the
    beta reputation system (Jøsang and Ismail, The Beta Reputation System, 2002) expects good ones with probability
    p = (g + a) / (g + b + a + c), a = `good`, c = `bad`; the result is the mean of the good deltas, weighted with
    n_i p_i. Which are good in a round is found by turns: with s_i the cosine between delta_i and that weighted mean of
    those which are still good, mu, m and sigma their mean, median and standard deviation, out go those with
    s_i < m - xi sigma where mu < m, and else those with s_i > m + xi sigma; then xi grows by `growth`, until none goes.
    A receiver that is bad more often than not with a probability above `block`, P[Beta(a + g, c + b) < 1/2] > `block`,
    is blocked for good; where that would block all, none is.

    The paper compares weights, here deltas are compared. It looks at directions alone: a long update that points the
    usual way passes, unless `pre_aggregators` clip it, and it drags the mean to its side.

    Attributes:
        xi: standard deviations from the median, in the first turn.
        growth: of xi in every turn.
        good: a, good updates that everybody is credited with.
        bad: c, bad ones.
        block: probability from which a receiver is blocked; 1: nobody is.
        forgetting: what earlier rounds count in every later one, lambda of Jøsang and Ismail; 1: as much as new ones.
    """

    xi: PositiveFloat = 2.0
    growth: NonNegativeFloat = 0.5
    good: PositiveFloat = 3.0
    bad: PositiveFloat = 3.0
    block: Annotated[float, Field(gt=0.5, le=1)] = 0.95
    forgetting: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def least_updates(self) -> int:
        return 3

    @property
    def needs_receivers(self) -> bool:
        return True

    def adaptive(self) -> Mapping[str, Any] | None:
        """The line search with a direction for each malicious receiver, who are not alike then."""
        return {"kind": "sign_flip", "of": "own", "search": True}

    def aggregate(self, updates: Updates) -> Aggregate:
        ids, before, rows = roster(updates)
        counts, blocked = np.zeros((len(ids), 2)), np.zeros(len(ids), np.int64)
        if len(before):
            counts[before], blocked[before] = updates.memory["counts"], updates.memory["blocked"]
        expected = (counts[rows, 0] + self.good) / (counts[rows].sum(1) + self.good + self.bad)
        trusted = ~blocked[rows].astype(bool)
        if not trusted.any():
            trusted[:] = True
        kept = consistent(from_zero(updates.deltas), updates.weights * expected, trusted, self.xi, self.growth)
        counts *= self.forgetting
        # Of those who are blocked nothing is counted any more.
        counts[rows[kept], 0] += 1
        counts[rows[trusted & ~kept], 1] += 1
        blocked[self.worse_than_even(counts)] = 1
        share = updates.weights * expected * kept
        memory = {"receivers": ids, "counts": counts, "blocked": blocked}
        return Aggregate(combination(updates.deltas, share / share.sum()), kept, memory)

    def worse_than_even(self, counts: np.ndarray) -> np.ndarray:
        """Who is bad more often than not with a probability above `block`, from good and bad updates (n, 2)."""
        from scipy.stats import beta

        found: np.ndarray = beta.cdf(0.5, counts[:, 0] + self.good, counts[:, 1] + self.bad) > self.block
        return found


def consistent(inner: np.ndarray, weights: np.ndarray, candidates: np.ndarray, xi: float, growth: float) -> np.ndarray:
    """Which updates are good, bool (n,), from their inner products."""
    good, lengths = candidates.copy(), np.sqrt(inner.diagonal())
    while True:
        share = np.where(good, weights, 0.0)
        along = inner @ (share / share.sum())
        length = np.sqrt(max(float(share @ along / share.sum()), 0.0))
        scale = lengths * length
        cosine = np.divide(along, scale, out=np.zeros_like(along), where=scale > 0)
        some = cosine[good]
        middle, spread = np.median(some), some.std()
        # Of updates that are all alike, rounding must not tell some from others.
        far = xi * spread + _ROUNDING
        out = good & (cosine < middle - far if some.mean() < middle else cosine > middle + far)
        if not out.any():
            return good
        good &= ~out
        xi += growth


_ROUNDING = 1e-6
