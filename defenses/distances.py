"""Distances between deltas, and combinations of them, in two sweeps over the parameters.

A rule that only combines deltas with coefficients can work out these coefficients from the deltas' inner products: an
(n, n) matrix instead of (n, d). It is summed over blocks of columns, so that no copy of all deltas is ever made.
"""

from __future__ import annotations

import math

import numpy as np

_WIDTH, _NARROW, _RUN = 1 << 13, 1 << 10, 1 << 16
_SAMPLES, _SAMPLE = 64, 64


def gram(deltas: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Inner products of the deltas as seen from one in their midst, (n, n) float64; (n + 1, n + 1) with a last row for
    the point `start` where there is one.

    Differences do not depend on the point of view, but their rounding does: seen from the mean, one huge delta would
    take all digits from the distances between the others.
    """
    count = len(deltas)
    some = _sample(deltas)
    usual = int(np.argsort((some**2).sum(1))[count // 2])
    apart = distances(_inner(some, usual))
    middle = _central(apart)
    scale = _scale(float(np.sqrt(np.median(apart[middle]) / some.shape[1])))
    for _ in range(4):
        found = _inner(deltas, middle, start, scale)
        apart = distances(found[:count, :count])
        better = _central(apart)
        if np.median(apart[middle]) <= 16 * np.median(apart[better]):
            break
        middle = better
    return found


def distances(inner: np.ndarray) -> np.ndarray:
    """Squared distances between points, from their inner products."""
    norms = inner.diagonal()
    squared = np.maximum(norms[:, None] + norms[None, :] - 2 * inner, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def distances_to(inner: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Squared distances of points to a combination of them whose coefficients sum to 1, from their inner products."""
    along = inner @ coefficients
    return np.maximum(inner.diagonal() - 2 * along + coefficients @ along, 0.0)


def norms(deltas: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Lengths of the deltas, or of their differences from a point; (n,) float64."""
    squared = np.zeros(len(deltas))
    origin = None if start is None else start.astype(deltas.dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, delta in enumerate(deltas):
            for run in _blocks(len(delta), _RUN):
                seen = delta[run] if origin is None else delta[run] - origin[run]
                square = float(seen @ seen)
                if not math.isfinite(square):
                    wide = delta[run].astype(np.float64) - (0.0 if start is None else start[run])
                    square = float(wide @ wide)
                squared[i] += square
    return np.sqrt(squared)


def products(deltas: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Inner products of the deltas with a vector, (n,) float64."""
    return np.sum(
        [
            deltas[:, columns].astype(np.float64) @ vector[columns].astype(np.float64)
            for columns in _blocks(deltas.shape[1], _NARROW)
        ],
        axis=0,
    )


def combination(deltas: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Sum of the deltas with these coefficients, (d,) float64."""
    used = np.flatnonzero(coefficients)
    # Picking rows copies them, which costs more than to read a few in vain.
    rows = used if 2 * len(used) < len(deltas) else slice(None)
    few, total = coefficients[rows], np.empty(deltas.shape[1])
    for columns in _blocks(deltas.shape[1], _NARROW):
        total[columns] = few @ deltas[rows, columns].astype(np.float64)
    return total


def mean(deltas: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Mean of the deltas that are kept, (d,) float64."""
    return combination(deltas, kept / kept.sum())


def _central(apart: np.ndarray) -> int:
    """The point from which half of the others are closest: with fewer than half malicious, one among the honest."""
    return int(np.argmin(np.median(apart, axis=1)))


def _inner(deltas: np.ndarray, middle: int, start: np.ndarray | None = None, scale: float = 1.0) -> np.ndarray:
    """Inner products of the deltas, and of a point, less one of the deltas."""
    centre = deltas[middle]
    count = len(deltas) + (start is not None)
    total = np.zeros((count, count))
    for columns in _blocks(deltas.shape[1], _WIDTH):
        part = np.empty((count, len(centre[columns])), deltas.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            inner = _differences(deltas, centre, start, columns, scale, part)
        # Products of huge float32 overflow: those blocks are done again in double precision.
        if part.dtype != np.float64 and not np.isfinite(inner).all():
            inner = _differences(deltas, centre, start, columns, scale, part.astype(np.float64))
        total += inner
    return total / scale**2


def _differences(
    deltas: np.ndarray, centre: np.ndarray, start: np.ndarray | None, columns: slice, scale: float, out: np.ndarray
) -> np.ndarray:
    origin = centre[columns].astype(out.dtype)
    np.subtract(deltas[:, columns], origin, out=out[: len(deltas)])
    if start is not None:
        out[-1] = start[columns] - origin
    if scale != 1:
        out *= out.dtype.type(scale)
    return out @ out.T


def _scale(typical: float) -> float:
    """A power of two that brings typical differences near 1 where their squares would vanish in single precision."""
    return 2.0 ** min(100, -round(np.log2(typical))) if 0 < typical < 1e-9 else 1.0


def _sample(deltas: np.ndarray) -> np.ndarray:
    """Some of the columns in double precision, in short runs from all over."""
    step = max(_SAMPLE, deltas.shape[1] // _SAMPLES)
    runs = [deltas[:, begin : begin + _SAMPLE] for begin in range(0, deltas.shape[1], step)]
    return np.concatenate(runs, axis=1).astype(np.float64)


def _blocks(length: int, width: int) -> list[slice]:
    return [slice(begin, min(begin + width, length)) for begin in range(0, length, width)]
