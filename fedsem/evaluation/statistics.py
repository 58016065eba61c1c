"""Intervals: Wilson for shares of independent trials, otherwise a bootstrap clustered by image and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

import numpy as np

from fedsem.evaluation.average_precision import Ranking
from fedsem.streams import Stream

LEVEL = 0.95
REPLICATES = 1000
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """95 % Wilson score interval of a share of independent trials (Wilson 1927; Brown, Cai, DasGupta 2001).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), with z the 97.5 % normal quantile.
    """
    p, z2 = successes / trials, _Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z / (1 + z2 / trials) * np.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Measured:
    """Numerators and denominators of a metric for each seed and image: the value is their ratio of sums.

    Attributes:
        numerator, denominator: (seeds, images); summed over channel draws and receivers.
        single: whether each image was seen once, by one receiver over one channel draw.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    single: bool

    @property
    def value(self) -> float:
        """sum(numerator) / sum(denominator)."""
        return float(self.numerator.sum(dtype=np.float64) / self.denominator.sum(dtype=np.float64))

    @property
    def images(self) -> int:
        """Size of the test set."""
        return int(self.numerator.shape[1])

    @property
    def n(self) -> int:
        """Images that count, summed over seeds: a miss counts only where a target was drawn."""
        return int(np.count_nonzero(self.denominator))


@dataclass(frozen=True)
class MeasuredPrecision:
    """Average precision of each seed: the value is their mean.

    Attributes:
        rankings: one for each seed.
    """

    rankings: Sequence[Ranking]

    @cached_property
    def value(self) -> float:
        """Mean over seeds."""
        return float(
            np.mean([one.precision(np.ones((1, one.truths.shape[1]), np.float32))[0] for one in self.rankings])
        )

    @property
    def images(self) -> int:
        """Size of the test set."""
        return int(self.rankings[0].truths.shape[1])

    @property
    def n(self) -> int:
        """Images that hold objects, summed over seeds."""
        return int(sum(np.count_nonzero(one.truths.any(0)) for one in self.rankings))


@lru_cache(maxsize=8)
def bootstrap(images: int, seeds: int) -> Bootstrap:
    """The bootstrap of test sets of that size; all figures share its replicates."""
    return Bootstrap(images, seeds)


class Bootstrap:
    """Percentile bootstrap with the image, and with several seeds also the seed, as the unit that is resampled.

    Channel draws of one image are not independent trials: they share the image. Images are the same for every seed,
    so both are resampled crosswise (Owen, The Pigeonhole Bootstrap, 2007). All figures of one test set share their
    replicates, which pairs their differences.

    Args:
        images: size of the test set.
        seeds: number of seeds.
    """

    def __init__(self, images: int, seeds: int) -> None:
        stream = Stream(0).child("bootstrap", images)
        self.images = stream.child("images").numpy().multinomial(images, np.full(images, 1 / images), REPLICATES)
        self.images = self.images.astype(np.float32)
        self.seeds = stream.child("seeds", seeds).numpy().multinomial(seeds, np.full(seeds, 1 / seeds), REPLICATES)

    def replicates(self, measured: Measured | MeasuredPrecision) -> np.ndarray:
        """The metric in each replicate, (REPLICATES,)."""
        if isinstance(measured, MeasuredPrecision):
            each = np.stack([_precisions(ranking, self.images) for ranking in measured.rankings], axis=1)
            return (each * self.seeds).sum(1) / self.seeds.sum(1)
        numerator = (self.images @ measured.numerator.T.astype(np.float32)).astype(np.float64)
        denominator = (self.images @ measured.denominator.T.astype(np.float32)).astype(np.float64)
        # A replicate may hold none of the few examples that count; `_percentiles` leaves it out.
        with np.errstate(invalid="ignore"):
            return (numerator * self.seeds).sum(1) / (denominator * self.seeds).sum(1)

    def interval(self, measured: Measured | MeasuredPrecision) -> tuple[float, float]:
        """95 % interval of a metric.

        Wilson within one model and one draw per image. A share of exactly 0 or 1 has no spread to resample: Wilson
        with one trial for each image that counts with any seed, the widest that the data allow.
        """
        if isinstance(measured, MeasuredPrecision):
            return _percentiles(self.replicates(measured))
        shares = measured.numerator.min() >= 0 and bool((measured.numerator <= measured.denominator).all())
        one_model = len(measured.numerator) == 1
        if shares and measured.single and one_model and set(np.unique(measured.numerator)) <= {0.0, 1.0}:
            return wilson(float(measured.numerator.sum()), float(measured.denominator.sum()))
        if shares and measured.value in (0.0, 1.0):
            trials = int(measured.denominator.any(axis=0).sum())
            return wilson(measured.value * trials, trials)
        return _percentiles(self.replicates(measured))

    def difference(self, one: Measured | MeasuredPrecision, other: Measured | MeasuredPrecision) -> tuple[float, float]:
        """95 % interval of `one` minus `other`, paired: both are computed on the same resampled images and seeds."""
        return _percentiles(self.replicates(one) - self.replicates(other))


def _precisions(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """AP of a ranking in each replicate; kept with the ranking, as several figures ask for it."""
    known = ranking.__dict__.setdefault("_replicates", {})
    key = weights.shape
    if key not in known:
        known[key] = ranking.precision(weights)
    return known[key]


def _percentiles(replicates: np.ndarray) -> tuple[float, float]:
    finite = replicates[np.isfinite(replicates)]
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
