"""Hook `aggregate`: the server combines the receivers' deltas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedsem.hooks.defense import Defense
from fedsem.hooks.group_size import AssumesF, OfGroup
from fedsem.streams import Stream


@dataclass(frozen=True)
class Updates:
    """Deltas of one aggregation group: what receivers changed, never their weights.

    Attributes:
        deltas: (n, d) float32, one row for each receiver, sorted by receiver; finite.
        weights: (n,) float64, positive: how much each receiver counts.
        receivers: their ids.
        memory: what the rule remembered of this group in the round before (`Aggregate.memory`); empty in the first.
        stream: random, by seed, round and group.
        root: what the server itself learnt from the same weights on data that no receiver holds, (d,) float32; None
            where it has none.
    """

    deltas: np.ndarray
    weights: np.ndarray
    receivers: tuple[int, ...]
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)
    stream: Stream = field(default_factory=lambda: Stream(0))
    root: np.ndarray | None = None


@dataclass(frozen=True)
class Aggregate:
    """What a rule makes of the deltas.

    Attributes:
        delta: the combined delta, (d,) float64.
        kept: which deltas it took part of, (n,) bool; None for a rule that chooses none.
        memory: arrays by name that the rule wants to see in the next round; they are part of the checkpoint.
    """

    delta: np.ndarray
    kept: np.ndarray | None = None
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)


class Aggregator(OfGroup, Defense):
    """Combines deltas into one."""

    def adaptive(self) -> Mapping[str, Any] | None:
        """The most harmful of what searches through the rule find, as all malicious receivers send the same (Fang
        et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, 2020; Shejwalkar and Houmansadr,
        Manipulating the Byzantine, 2021). It needs nothing of a rule but that it can be asked."""
        return {"kind": "tailored"}

    @property
    def proximal_mu(self) -> float:
        """mu of the proximal term that receivers add to their loss; 0 for none."""
        return 0.0

    @property
    def needs_root(self) -> bool:
        """Whether the rule needs `Updates.root`."""
        return False

    @property
    def needs_receivers(self) -> bool:
        """Whether the rule must know whose update is which, which pre-aggregators that merge some take away."""
        return False

    @abstractmethod
    def aggregate(self, updates: Updates) -> Aggregate:
        """The combined delta. Must not change its input nor depend on the receivers' order."""


class RobustAggregator(AssumesF, Aggregator):
    """Combines deltas of which so many may be malicious."""


class PreAggregator(OfGroup):
    """Puts combinations of the deltas in their place before a rule combines them."""

    def left(self, count: int) -> int:
        """How many deltas come out of so many, at most as many."""
        return count

    @abstractmethod
    def mixture(self, updates: Updates) -> np.ndarray:
        """Coefficients (`left(n)`, n) float64: the i-th delta that comes out is sum_j c_ij delta_j. Must not change its
        input, which are `least_updates` at least."""

    def prepare(self, updates: Updates, out: np.ndarray | None = None) -> Updates:
        """The mixed deltas. As many as came in stay with their receivers; fewer have the weights of all that is in
        them, and no receivers.

        Args:
            updates: are not changed, unless `out` is their deltas.
            out: (n, d), into whose first rows the mixed deltas are written; of the updates themselves, so that there is
                no second stack of them. None: a new array.
        """
        mixture, deltas = self.mixture(updates), updates.deltas
        count, factors = len(mixture), mixture.diagonal()
        made = np.empty((count, deltas.shape[1]), deltas.dtype) if out is None else out[:count]
        if np.array_equal(mixture, np.diag(factors)):
            for row, delta, factor in zip(made, deltas, factors, strict=True):
                # A factor too small for the deltas' own type would lose its digits.
                exact = np.float64 if abs(factor) < np.finfo(deltas.dtype).tiny else deltas.dtype
                if factor != 1 or out is not deltas:
                    np.multiply(delta, factor, out=row, dtype=exact, casting="same_kind")
        else:
            for begin in range(0, deltas.shape[1], _WIDTH):
                columns = slice(begin, begin + _WIDTH)
                made[:, columns] = mixture @ deltas[:, columns].astype(np.float64)
        if count == len(deltas):
            return replace(updates, deltas=made)
        return replace(updates, deltas=made, weights=(mixture != 0) @ updates.weights, receivers=())


class RobustPreAggregator(AssumesF, PreAggregator):
    """Mixes deltas of which so many may be malicious."""


_WIDTH = 1 << 10


def too_few(rule: Aggregator, before: Sequence[PreAggregator], count: int) -> tuple[OfGroup, int] | None:
    """The first of the pre-aggregators and the rule that so many updates do not suffice for, and how many reach it;
    None where they suffice for all."""
    for step in before:
        if count < step.least_updates:
            return step, count
        count = step.left(count)
    return (rule, count) if count < rule.least_updates else None


def combined(rule: Aggregator, before: Sequence[PreAggregator], updates: Updates) -> Aggregate:
    """What a rule makes of deltas that went through pre-aggregators, in their order; these write over the deltas."""
    prepared = updates
    for step in before:
        prepared = step.prepare(prepared, out=prepared.deltas)
    made = rule.aggregate(prepared)
    if len(prepared.deltas) == len(updates.deltas):
        return made
    return Aggregate(made.delta, None, made.memory)
