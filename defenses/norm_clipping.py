"""Norm clipping with noise."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .distances import combination, norms


@register("aggregator", "norm_clipping")
class NormClipping(Aggregator):
    """sum_i w_i delta_i min(1, limit / |delta_i|) / sum_i w_i + noise N(0, noise^2) on each coordinate (Sun et al., Can
    You Really Backdoor Federated Learning?, 2019, who call the noise weak differential privacy). It assumes nothing of
    the number of malicious updates: one moves the result by no more than its share of the weight times the limit.

    Attributes:
        limit: the longest that an update may be; None: the median length of the group, in each round.
        noise: standard deviation of the noise.
    """

    limit: PositiveFloat | None = None
    noise: NonNegativeFloat = 0.0

    def aggregate(self, updates: Updates) -> Aggregate:
        share = updates.weights / updates.weights.sum()
        made = combination(updates.deltas, share * shortening(norms(updates.deltas), self.limit))
        if self.noise:
            made += updates.stream.child("noise").numpy().normal(0.0, self.noise, len(made))
        return Aggregate(made)
