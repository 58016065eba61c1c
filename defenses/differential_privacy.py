"""Differential privacy of receivers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat
from scipy.optimize import brentq
from scipy.stats import norm

from fedsem.errors import ScenarioError
from fedsem.hooks.update_defense import UpdateDefense
from fedsem.registry import register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

ORDERS = (*range(2, 21), 24, 28, 32, 40, 48, 64, 96, 128)
"""Renyi orders of which the best is taken; any of them gives an upper bound."""


@register("defense", "differential_privacy")
class DifferentialPrivacy(UpdateDefense):
    """Client-level differential privacy, DP-FedAvg: a receiver scales all that it sends by min(1, C / ||Delta||), the
    server divides the sum over receivers by the number m that it expects and adds N(0, (z C / m)^2) to each coordinate
    (McMahan et al., Learning Differentially Private Recurrent Language Models, 2018). All receivers count alike,
    whatever they hold, and one that does not answer counts as zero. Of a decoder of policy `group`, m is the mean
    number of its holders in a round.

    The table has the epsilon that is spent after each round at the given delta, for someone who sees every model of
    the server; two data sets are neighbours if one receiver's data are replaced by any other, so that a sum moves by up
    to 2 C. A round asks a fixed number of receivers, drawn without replacement, and that is what is accounted for:
    Renyi bounds of the Gaussian mechanism under such sampling (Wang, Balle and Kasiviswanathan, Subsampled Renyi
    Differential Privacy and Analytical Moments Accountant, 2019) by Google's dp-accounting, or, where it is smaller
    (always with fraction: 1), the exact epsilon of so many Gaussian mechanisms without sampling (Balle and Wang,
    Improving the Gaussian Mechanism for Differential Privacy, 2018). Papers that draw each receiver by its own coin
    (Poisson sampling) and call data sets neighbours that differ in one receiver's presence report smaller figures for
    the same z.

    The server is trusted: it sees what each receiver sends. Not covered are the experimenter's own figures, such as
    training losses and the test of local decoders. Each receiver's data are protected as a whole, not each picture:
    example-level DP-SGD is not here.

    Attributes:
        clip: C, the longest update.
        noise: z, standard deviation of the noise in units of C; 0: clipping alone, without any epsilon.
        delta: of the guarantee; should be well below 1 / receivers.
    """

    distributions: ClassVar[tuple[str, ...]] = ("dp-accounting",)

    clip: PositiveFloat
    noise: NonNegativeFloat
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    def factor(self, norm: float) -> float:
        return self.clip / norm if norm > self.clip else 1.0

    def release(self, mean: np.ndarray, expected: float, stream: Stream) -> np.ndarray:
        return mean + stream.numpy().normal(0.0, self.noise * self.clip / expected, mean.shape)

    def spent(self, rounds: int, asked: int, receivers: int) -> Mapping[str, Sequence[float]]:
        if self.noise == 0:
            return {}
        return {
            "epsilon": epsilons(self.noise, self.delta, rounds, asked, receivers),
            "delta": [self.delta] * rounds,
        }

    def adaptive(self) -> Mapping[str, Any] | None:
        """All that it leaves behind is weights, which `standard` differentiates."""
        return {"kind": "standard"}

    def check(self, path: str, plan: Plan) -> None:
        federation = plan.scenario.federation
        if self is not plan.update_defense:
            return
        if federation.kind == "none":
            raise ScenarioError(
                f"In the scenario, '{path}': 'differential_privacy' protects receivers, and the centralised reference "
                "(federation.kind: none) has none; use federation.kind: flower."
            )
        if other := next(
            (key for key, rule in federation.rules.items() if rule.kind not in ("fedavg", "fedprox")), None
        ):
            raise ScenarioError(
                f"In the scenario, 'federation.{other}': the noise of 'differential_privacy' (at '{path}') is that of "
                f"a mean, which '{federation.rules[other].kind}' does not take; use fedavg or fedprox."
            )
        if federation.pre_aggregators:
            raise ScenarioError(
                f"In the scenario, 'federation.pre_aggregators': '{federation.pre_aggregators[0].kind}' would mix "
                f"updates before the noise of 'differential_privacy' (at '{path}'), which is that of single ones; "
                "remove it."
            )


@lru_cache(maxsize=64)
def epsilons(noise: float, delta: float, rounds: int, asked: int, receivers: int) -> tuple[float, ...]:
    """Epsilon after each round, see `DifferentialPrivacy`.

    Args:
        noise: z.
        delta: of the guarantee.
        rounds: how many.
        asked: receivers in each, drawn without replacement.
        receivers: all of them.
    """
    # Replacing a receiver moves the sum by 2 C; of the mechanisms of several rounds the squares of mu add up.
    exact = [gaussian_epsilon(2 * math.sqrt(done) / noise, delta) for done in range(1, rounds + 1)]
    if asked == receivers:
        return tuple(exact)
    # Slow to import, and only scenarios with sampled receivers need it.
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = SampledWithoutReplacementDpEvent(receivers, asked, GaussianDpEvent(noise / 2))
    found = []
    for done in range(1, rounds + 1):
        accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
        accountant.compose(event, done)
        found.append(min(exact[done - 1], float(accountant.get_epsilon(delta))))
    return tuple(found)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism whose mean moves by mu standard deviations: the root of
    delta = Phi(mu / 2 - eps / mu) - e^eps Phi(-mu / 2 - eps / mu) (Balle and Wang 2018, theorem 8); 0 where delta alone
    is enough."""

    def excess(epsilon: float) -> float:
        below = math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(norm.cdf(mu / 2 - epsilon / mu) - below - delta)

    if excess(0.0) <= 0:
        return 0.0
    # The privacy loss is N(mu^2 / 2, mu^2): beyond this quantile the first term alone is below delta.
    return float(brentq(excess, 0.0, mu * mu / 2 + mu * float(norm.isf(delta)) + 1e-9, xtol=1e-12))
