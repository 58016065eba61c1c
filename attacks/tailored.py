"""The forged update that is tailored to the aggregation rule."""

from __future__ import annotations

from operator import itemgetter

from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.registry import register
from fedsem.streams import Stream

from .alie import Alie
from .ipm import Ipm


@register("attack", "tailored")
class Tailored(UpdateAttack):
    """What makes the network worst for the data that the malicious receivers hold, of all that two searches through the
    rule itself try: along the mean of the honest deltas, away from it and from zero (`ipm`), and along their spread,
    coordinate by coordinate (`alie`). Which one is worse depends on the rule and on how much the honest agree: FLTrust
    trusts nothing that points against the mean, and what stands out in the spread is far from the others for Krum.

    The AGR-tailored attack of Shejwalkar and Houmansadr (Manipulating the Byzantine, 2021) with two of their
    directions, but judged by the loss that it causes, not by how far it moves the server: along the spread that is far
    less harm than against the mean. It knows the rule, what it draws and the server's own data. It is greedy: it looks
    at one round, and a fixed attack may do more in the end.
    """

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        return max((one.worst(seen, seen.loss) for one in (Ipm(), Alie())), key=itemgetter(0))[1]
