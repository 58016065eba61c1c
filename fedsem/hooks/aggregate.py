"""Hook `aggregate`: the server combines the receivers' deltas."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fedsem.registry import Options


@dataclass(frozen=True)
class Updates:
    """Deltas of one aggregation group: what receivers changed, never their weights.

    Attributes:
        deltas: (n, d) float32, one row for each receiver, sorted by receiver.
        weights: (n,) float64, positive: how much each receiver counts.
        receivers: their ids.
    """

    deltas: np.ndarray
    weights: np.ndarray
    receivers: tuple[int, ...]


class Aggregator(Options):
    """Combines deltas into one."""

    @property
    def proximal_mu(self) -> float:
        """mu of the proximal term that receivers add to their loss; 0 for none."""
        return 0.0

    @property
    def assumed_f(self) -> int | None:
        """How many malicious updates of a group the rule is set to withstand; None for a rule that assumes nothing."""
        return None

    @property
    def least_updates(self) -> int:
        """The smallest group that the rule works for."""
        return 1

    @abstractmethod
    def aggregate(self, updates: Updates) -> np.ndarray:
        """The combined delta, (d,) float64. Must not change its input nor depend on the receivers' order."""
