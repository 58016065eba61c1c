"""Hook `update`: malicious receivers send something else than what they have learnt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsem.hooks.adversary import TrainingAttack
from fedsem.streams import Stream

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Seen:
    """What colluding malicious receivers know of one aggregation group in one round: all that was sent in it.

    Attributes:
        honest: (m, d) deltas of the honest receivers, sorted by receiver; m >= 1.
        receivers: the honest receivers' ids, (m,).
        own: (f, d) deltas that the malicious receivers have learnt honestly, sorted by receiver; f >= 1.
        aggregate: what the server makes of all deltas, if the malicious receivers send these, (f, d) -> (d,).
        loss: mean training loss of the network after this step of the server along what it has combined, (d,), on
            images that the malicious receivers hold, some 500 in all; what is averaged in other groups as it was before
            the round, and without the noise of differential privacy.
    """

    honest: Rows
    receivers: tuple[int, ...]
    own: Rows
    aggregate: Callable[[Rows], Rows]
    loss: Callable[[Rows], float]


class UpdateAttack(TrainingAttack):
    """A Byzantine attack: the deltas that malicious receivers send instead of their own.

    It replaces the update after all local steps, the multi-step delta that is really sent. The malicious receivers
    collude, and know all that is sent in their aggregation group in the round.
    """

    @abstractmethod
    def forge(self, seen: Seen, stream: Stream) -> Rows:
        """What the malicious receivers send, (f, d). Must not change its input.

        Args:
            seen: what they know.
            stream: random, by seed, round and aggregation group.
        """


EXPONENTS = range(-8, 9)
"""Of two: the scales that a search tries first, in units of the attack's direction."""


class Directed(UpdateAttack):
    """An attack in which all malicious receivers send start + scale * direction, the same or (with a direction for
    each, (f, d)) each its own.

    Attributes:
        search: the scale that does most harm (see `measure`) when it has gone through the aggregation rule, instead of
            the attack's own: over the powers of two from 2^-8 to 2^8, then around the best of them in steps of sqrt(2)
            and of its root. It knows the rule, what it draws and the server's own data, as Fang et al. (Local Model
            Poisoning Attacks to Byzantine-Robust Federated Learning, 2020) and the optimal variants of ByzFL do, which
            take how far the server is moved for the harm. It is greedy: it looks at one round, and a fixed scale may do
            more in the end.
    """

    search: bool = False

    @abstractmethod
    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        """Start (d,) and direction, (d,) or (f, d)."""

    @abstractmethod
    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        """The scale without a search."""

    def origins(self) -> tuple[float, ...]:
        """A search tries 2^e less each of these."""
        return (0.0,)

    def measure(self, seen: Seen, made: Rows) -> float:
        """The harm that it is when the server makes this of the round, (d,): the loss that the malicious receivers
        would have."""
        return seen.loss(made)

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        if self.search:
            return self.worst(seen)[1]
        start, direction = self.line(seen)
        scale = self.own_scale(seen, start, direction)
        return np.array(np.broadcast_to(start + scale * direction, seen.own.shape))

    def worst(self, seen: Seen) -> tuple[float, Rows]:
        """The most harm that a search finds, and what is sent for it, (f, d)."""
        start, direction = self.line(seen)

        def sent(scale: float) -> Rows:
            return np.array(np.broadcast_to(start + scale * direction, seen.own.shape))

        def tried(exponent: float, origin: float) -> tuple[float, float, float]:
            return self.measure(seen, seen.aggregate(sent(2.0**exponent - origin))), exponent, origin

        best = max((tried(exponent, origin) for origin in self.origins() for exponent in EXPONENTS), key=itemgetter(0))
        for step in (0.5, 0.25):
            _, exponent, origin = best
            around = [one for one in (exponent - step, exponent + step) if EXPONENTS[0] <= one <= EXPONENTS[-1]]
            best = max([best, *(tried(one, origin) for one in around)], key=itemgetter(0))
        return best[0], sent(2.0 ** best[1] - best[2])
