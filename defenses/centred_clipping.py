"""Centred clipping."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .clipping import shortening
from .coordinates import by_coordinate, middle
from .distances import combination, distances_to, gram, norms


@register("aggregator", "centred_clipping")
class CentredClipping(Aggregator):
    """v <- v + mean_i (delta_i - v) min(1, tau / |delta_i - v|), `steps` times, from what it gave in the round before
    (Karimireddy, He and Jaggi, Learning from History for Byzantine Robust Optimization, 2021). No delta moves a step
    by more than tau / n; how much a receiver counts does not matter.

    Attributes:
        steps: how often v moves in a round.
        tau: the longest difference that is not cut; None: in each round the median length at its first step.
        start: `momentum` starts from the round before and from zero in the first round, as ByzFL does; `zero` and
            `median` (coordinate by coordinate) forget the round before.
    """

    steps: PositiveInt = 1
    tau: PositiveFloat | None = None
    start: Literal["momentum", "zero", "median"] = "momentum"

    def aggregate(self, updates: Updates) -> Aggregate:
        deltas = updates.deltas
        count = len(deltas)
        start = self._start(updates)
        at = np.append(np.zeros(count), 1.0)
        # A single step needs no distances but those to the start.
        inner = gram(deltas, start) if self.steps > 1 else None
        tau = self.tau
        for _ in range(self.steps):
            lengths = norms(deltas, start) if inner is None else np.sqrt(distances_to(inner, at)[:-1])
            tau = float(np.median(lengths)) if tau is None else tau
            share = shortening(lengths, tau) / count
            at = at * (1 - share.sum()) + np.append(share, 0.0)
        moved = combination(deltas, at[:-1]) + at[-1] * start
        return Aggregate(moved, memory={"momentum": moved} if self.start == "momentum" else {})

    def _start(self, updates: Updates) -> np.ndarray:
        if self.start == "median":
            return by_coordinate(updates.deltas, middle)
        before = updates.memory.get("momentum") if self.start == "momentum" else None
        return np.zeros(updates.deltas.shape[1]) if before is None else before
