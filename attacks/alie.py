"""A little is enough."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Directed, Rows, Seen
from fedsem.registry import register


@register("attack", "alie")
class Alie(Directed):
    """All send mean - z std of the honest deltas, coordinate by coordinate: inside the spread of the honest, so that
    rules which drop what stands out keep it (Baruch, Baruch and Goldberg, A Little Is Enough: Circumventing Defenses
    For Distributed Learning, 2019).

    The paper's own z is the largest that leaves more than half of all receivers further out: with n receivers, f of
    them malicious, s = floor(n / 2 + 1) - f and z = Phi^-1((n - f - s) / (n - f)). It is 0 for n = 10, f = 2: then the
    attack sends the mean, and does no harm.

    Attributes:
        z: standard deviations (of the sample, ddof = 1) from the mean; None: the paper's own.
        upwards: mean + z std, as ByzFL writes it, instead of mean - z std.
    """

    z: PositiveFloat | None = None
    upwards: bool = False

    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        mean = seen.honest.mean(0)
        spread = seen.honest.std(0, ddof=1) if len(seen.honest) > 1 else np.zeros_like(mean)
        return mean, spread if self.upwards else -spread

    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        return published_z(len(seen.honest) + len(seen.own), len(seen.own)) if self.z is None else self.z


def published_z(receivers: int, malicious: int) -> float:
    """z of the paper's algorithm 3, never negative."""
    honest = receivers - malicious
    supporters = receivers // 2 + 1 - malicious
    share = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(share)) if 0 < share < 1 else 0.0
