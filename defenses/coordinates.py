"""Rules that look at one coordinate at a time: sorted values, block by block of columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_WIDTH = 1 << 11


def by_coordinate(
    deltas: np.ndarray, rule: Callable[[np.ndarray], np.ndarray], rows: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """What `rule` makes of the sorted values (width, n) of each block of coordinates of these rows; (d,) float64."""
    made = np.empty(deltas.shape[1])
    for begin in range(0, deltas.shape[1], _WIDTH):
        values = deltas[rows, begin : begin + _WIDTH].T.copy()
        values.sort(axis=1)
        made[begin : begin + _WIDTH] = rule(values)
    return made


def middle(values: np.ndarray) -> np.ndarray:
    """Median of sorted values; of an even number the mean of the two in the middle."""
    count = values.shape[1]
    # In double precision before they are added: two huge values have no sum in single precision.
    return (values[:, (count - 1) // 2].astype(np.float64) + values[:, count // 2]) / 2


def mean(values: np.ndarray) -> np.ndarray:
    """Mean along each row, in double precision."""
    return values.astype(np.float64) @ np.full(values.shape[1], 1 / values.shape[1])


def mean_near_median(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` sorted values that are nearest to their median."""
    spare = values.shape[1] - count
    centre = middle(values)[:, None]
    # The nearest stand side by side: what a window begins with goes where the value after its end is nearer. Not the
    # window whose farther end is nearest, of which there are several where malicious receivers send the same.
    first = (centre - values[:, :spare] > values[:, count:] - centre).sum(1)[:, None]
    place = np.arange(values.shape[1])
    # Not by differences of running sums, from which one huge value would take all digits.
    return mean(np.where((place >= first) & (place < first + count), values, 0)) * (values.shape[1] / count)
