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
    """What does most harm of all that two searches through the rule itself try: along the mean of the honest deltas,
    away from it and from zero (`ipm`), and along their spread, coordinate by coordinate (`alie`). Which one is worse
    depends on the rule and on how much the honest agree: FLTrust trusts nothing that points against the mean, and what
    stands out in the spread is far from the others for Krum.

    The AGR-tailored attack of Shejwalkar and Houmansadr (Manipulating the Byzantine, 2021) with two of their
    directions. They take the distance between what the server makes of the round and the honest mean for the harm; here
    it is the loss on the malicious receivers' own images, because a step along the spread and one of the same length
    against the mean are not the same harm. Harm to tasks that no malicious receiver has is not seen. It is greedy: it
    looks at one round, and a fixed attack may do more in the end. In each round it asks the rule and the network some
    sixty times for each aggregation group.
    """

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        return max((one.worst(seen) for one in (Ipm(), Alie())), key=itemgetter(0))[1]
