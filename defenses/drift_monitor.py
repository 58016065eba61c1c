"""Drift monitoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat

from fedsem.hooks.monitor import Monitor
from fedsem.registry import register


@register("defense", "drift_monitor")
class DriftMonitor(Monitor):
    """A cumulative sum over the drift of semantic features (Page, Continuous Inspection Schemes, 1954). The drift d_r
    of round r is a distance between what the encoder sent before and after it:

    - `frechet`: ||m - m'||^2 + tr(C + C' - 2 (C C')^(1/2)), of means and covariances (Heusel et al., GANs Trained by a
      Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017);
    - `mmd`: the squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance between features
      (Gretton et al., A Kernel Two-Sample Test, 2012; its biased estimate, which is never below 0).

    With mu and sigma the mean and standard deviation of ln d over the first `calibration` rounds after `skip` others,
    S_r = max(0, S_(r-1) + (ln d_r - mu) / sigma - slack) from then on, and an alarm is S_r > `limit`; the score is
    S_r / limit. Drift falls while a link learns, so that the threshold of the first rounds is a lenient one: it tells
    an attack that begins later, and not one that was there from the start.

    Attributes:
        statistic: the distance.
        skip: rounds at the start that set no threshold: they move most.
        calibration: rounds that do.
        slack: standard deviations that are not counted.
        limit: standard deviations that make an alarm.
    """

    statistic: Literal["frechet", "mmd"] = "frechet"
    skip: Annotated[int, Field(ge=0)] = 1
    calibration: Annotated[int, Field(ge=2)] = 5
    slack: NonNegativeFloat = 0.5
    limit: PositiveFloat = 5.0

    def drift(self, before: np.ndarray, after: np.ndarray) -> float:
        return frechet(before, after) if self.statistic == "frechet" else squared_discrepancy(before, after)

    def score(self, drifts: Sequence[float]) -> float:
        logs = np.log(np.maximum(drifts, _LEAST))
        first = self.skip + self.calibration
        known = logs[self.skip : first]
        if len(logs) <= first:
            return 0.0
        spread, total = max(float(known.std(ddof=1)), _LEAST), 0.0
        for value in logs[first:]:
            total = max(0.0, total + (float(value) - float(known.mean())) / spread - self.slack)
        return total / self.limit


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance, squared, between normal distributions with the moments of these rows."""
    first, second = np.atleast_2d(np.cov(one, rowvar=False)), np.atleast_2d(np.cov(other, rowvar=False))
    # tr (C C')^(1/2) is the sum of the singular values of C^(1/2) C'^(1/2).
    cross = np.linalg.svd(_root(first) @ _root(second), compute_uv=False).sum()
    apart = one.mean(0) - other.mean(0)
    return max(float(apart @ apart + np.trace(first) + np.trace(second) - 2 * cross), 0.0)


def squared_discrepancy(one: np.ndarray, other: np.ndarray) -> float:
    """Squared maximum mean discrepancy between rows."""
    both = np.concatenate([one, other])
    squares = (both**2).sum(1)
    apart = np.maximum(squares[:, None] + squares[None, :] - 2 * both @ both.T, 0.0)
    kernel = np.exp(-apart / max(float(np.median(apart[np.triu_indices(len(both), 1)])), _LEAST))
    n = len(one)
    return max(float(kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()), 0.0)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    made: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return made


_LEAST = 1e-12
