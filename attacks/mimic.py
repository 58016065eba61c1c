"""Mimic."""

from __future__ import annotations

import numpy as np

from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "mimic")
class Mimic(UpdateAttack):
    """All send what one honest receiver sends, the same one in every round in which it is asked: nothing stands out,
    and where receivers hold different data, rules that look for a majority follow that one (Karimireddy, He and Jaggi,
    Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, 2022).

    The paper looks for the receiver that moves the most along the honest deltas' main direction; here it is the one
    of the smallest id, as in ByzFL.

    Attributes:
        search: in each round the honest receiver whose repetition, once it has gone through the aggregation rule, does
            most harm to the malicious receivers' own loss.
    """

    search: bool = False

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        def repeated(number: int) -> Rows:
            return np.repeat(seen.honest[[number]], len(seen.own), axis=0)

        if not self.search:
            return repeated(int(np.argmin(seen.receivers)))
        found = [seen.loss(seen.aggregate(repeated(i))) for i in range(len(seen.honest))]
        return repeated(int(np.argmax(found)))
