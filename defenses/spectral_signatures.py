"""Spectral signatures."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from fedsem.hooks.sanitise import DataFilter, Held
from fedsem.registry import register
from fedsem.streams import Stream

from .outlier_removal import largest


@register("defense", "spectral_signatures")
class SpectralSignatures(DataFilter):
    """Of every class, leaves out the samples with the largest outlier scores ((f - m) v)^2, with f a sample's features,
    m the mean of its class and v the top right singular vector of its centred features: `factor` times `epsilon` of
    each class, rounded down (Tran, Li and Madry, Spectral Signatures in Backdoor Attacks, 2018; algorithm 1, there with
    the features before the last layer of a classifier).

    It supposes that fewer than half of a class are poisoned: of a receiver whose target class holds more poison than
    clean samples it leaves out the clean ones. It leaves out as many samples where nothing is poisoned.

    Attributes:
        epsilon: the largest share of a class that may be poisoned.
        factor: 1.5 in the paper.
    """

    first_round: PositiveInt = 2
    epsilon: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    factor: PositiveFloat = 1.5

    def suspects(self, held: Held, stream: Stream) -> np.ndarray:
        out = np.zeros(len(held.labels), bool)
        for rows in held.by_class():
            count = min(int(self.factor * self.epsilon * len(rows)), len(rows) - 1)
            out[rows] = largest(signature(held.features[rows]), count)
        return out


def signature(features: np.ndarray) -> np.ndarray:
    """Outlier scores of the samples of one class, (N,)."""
    centred = features - features.mean(0)
    scores: np.ndarray = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
    return scores
