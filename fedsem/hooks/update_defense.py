"""Hook `update`: what receivers limit before they send it, and what the server adds to what it has combined."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from fedsem.hooks.defense import Defense
from fedsem.streams import Stream


class UpdateDefense(Defense):
    """A defense in `use.defenses` that acts on all that a receiver sends in a round as one: its deltas of the encoder
    and of the decoders of policy `group`. Decoders of policy `local` never leave their receiver. All receivers count
    alike, and a group's mean is over as many as a round is expected to have of it, whoever answers."""

    @abstractmethod
    def factor(self, norm: float) -> float:
        """What a receiver multiplies everything with that it sends, which has this L2 norm: at most 1. The server does
        the same, which leaves an honest receiver's as it is."""

    @abstractmethod
    def release(self, mean: np.ndarray, expected: float, stream: Stream) -> np.ndarray:
        """What the server goes on with instead of a group's mean delta, (d,) float64.

        Args:
            mean: (d,) float64; must not be changed in place.
            expected: how many receivers it is the mean of.
            stream: random, by seed, round and group.
        """

    @abstractmethod
    def spent(self, rounds: int, asked: int, receivers: int) -> Mapping[str, Sequence[float]]:
        """Metrics of the table, with a value after each round.

        Args:
            rounds: how many there are.
            asked: receivers that each of them asks, drawn without replacement.
            receivers: all of them.
        """
