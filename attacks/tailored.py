"""The forged update that is tailored to the aggregation rule."""

from __future__ import annotations

from fedsem.hooks.update import Rows, Seen, UpdateAttack, harm
from fedsem.registry import register
from fedsem.streams import Stream

from .alie import Alie
from .ipm import Ipm


@register("attack", "tailored")
class Tailored(UpdateAttack):
    """What moves the server furthest from the mean of the honest deltas (see `harm`), of what two searches through the
    rule itself find: along the mean, away from it and from zero (`ipm`), and along the spread of the honest deltas,
    coordinate by coordinate (`alie`). Which one is worse depends on the rule and on how much the honest agree: FLTrust
    trusts nothing that points against the mean, and what stands out in the spread is far from the others for Krum.

    The AGR-tailored attack of Shejwalkar and Houmansadr (Manipulating the Byzantine, 2021) with their unit and their
    standard-deviation perturbation; it knows the rule, what it draws and the server's own data. It is greedy: it looks
    at one round, and a fixed attack may do more in the end.
    """

    def forge(self, seen: Seen, stream: Stream) -> Rows:
        mean = seen.honest.mean(0)
        found = [one.forge(seen, stream) for one in (Ipm(search=True), Alie(search=True))]
        return max(found, key=lambda sent: harm(seen.aggregate(sent), mean))
