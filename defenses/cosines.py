"""Cosines of the angles between deltas."""

from __future__ import annotations

import numpy as np

from .distances import gram


def from_zero(deltas: np.ndarray) -> np.ndarray:
    """Inner products of the deltas, (n, n) float64."""
    inner = gram(deltas, np.zeros(deltas.shape[1], deltas.dtype))
    # They were seen from one of the deltas; the last row is the way from there to zero.
    back = inner[-1:, :-1]
    made = inner[:-1, :-1] - (back + back.T) + inner[-1, -1]
    np.fill_diagonal(made, np.maximum(made.diagonal(), 0.0))
    return made


def cosines(inner: np.ndarray) -> np.ndarray:
    """Cosines of the angles between points, from their inner products; 0 beside a point at zero, 1 with itself."""
    lengths = np.sqrt(inner.diagonal())
    scale = np.outer(lengths, lengths)
    made = np.clip(np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0), -1.0, 1.0)
    np.fill_diagonal(made, 1.0)
    return made
