"""Geometric median."""

from __future__ import annotations

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from fedsem.hooks.aggregate import Aggregate, Aggregator, Updates
from fedsem.registry import register

from .distances import combination, distances_to, gram


@register("aggregator", "geometric_median")
class GeometricMedian(Aggregator):
    """The point with the smallest sum of distances to the deltas, by the smoothed Weiszfeld algorithm: from zero, a
    step goes to sum_i b_i delta_i / sum_i b_i with b_i = w_i / max(nu, |delta_i - z|) (Pillutla, Kakade and Harchaoui,
    Robust Aggregation for Federated Learning, 2022; known as RFA). It withstands less than half of the weight.

    The steps are made on the coefficients of the deltas, so that their number costs nothing: the deltas are read once
    for their inner products and once for the result. ByzFL makes 3 steps with nu = 0.1.

    Attributes:
        steps: at most so many.
        tolerance: it stops when no coefficient moves by more; 0 never stops early.
        nu: distances below it count as this one.
        weighted: count the receivers by their weights, as the paper does; otherwise all alike, as ByzFL does.
    """

    steps: PositiveInt = 1000
    tolerance: NonNegativeFloat = 1e-9
    nu: PositiveFloat = 1e-6
    weighted: bool = True

    def aggregate(self, updates: Updates) -> Aggregate:
        deltas = updates.deltas
        share = updates.weights / updates.weights.sum() if self.weighted else np.full(len(deltas), 1 / len(deltas))
        inner = gram(deltas, np.zeros(deltas.shape[1], deltas.dtype))
        at = np.append(np.zeros(len(deltas)), 1.0)
        for _ in range(self.steps):
            pull = share / np.maximum(np.sqrt(distances_to(inner, at)[:-1]), self.nu)
            before, at = at, np.append(pull / pull.sum(), 0.0)
            if np.abs(at - before).max() <= self.tolerance:
                break
        return Aggregate(combination(deltas, at[:-1]))
