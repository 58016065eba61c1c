"""Data validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from fedsem.hooks.sanitise import DataFilter, Features, Held
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "data_validation")
class DataValidation(DataFilter):
    """Leaves out samples that cannot be right: images with pixels outside [0, 1]; images that the receiver holds twice
    with different classes, and further copies of the same class; and samples whose class is not the most frequent one
    among their `neighbours` nearest neighbours (Euclidean; Wilson, Asymptotic Properties of Nearest Neighbor Rules
    Using Edited Data, 1972; in features of the network against clean-label poisons, Deep k-NN of Peri et al., Deep k-NN
    Defense Against Clean-Label Data Poisoning Attacks, 2020). Of classes that are equally frequent, its own wins.

    It catches classes that were flipped one by one. A trigger that makes poisoned images each other's neighbours passes
    where they are many, and so does a poison that leaves the classes as they are.

    Attributes:
        features: where neighbours are near.
        neighbours: k, without the sample itself; 0: classes are not compared.
    """

    features: Features = "pixels"
    neighbours: NonNegativeInt = 5

    def suspects(self, held: Held, stream: Stream) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            out = ~((held.images >= 0) & (held.images <= 1)).all(1)
        out |= _repeated(held)
        count = min(self.neighbours, len(held.labels) - 1)
        if count > 0:
            out |= contradicted(held.features, held.labels, count)
        return out

    def adaptive(self) -> Mapping[str, Any] | None:
        """A trigger all over the image, which makes poisoned images each other's neighbours. (One that leaves classes
        as they are is not found either, but is hardly learnt.)"""
        return {"kind": "blend"}


def contradicted(features: np.ndarray, labels: np.ndarray, neighbours: int) -> np.ndarray:
    """Samples whose class is not (one of) the most frequent among so many nearest neighbours, bool (N,)."""
    from sklearn.neighbors import NearestNeighbors

    # Asked for without points, it leaves the point itself out.
    near = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(features).kneighbors(return_distance=False)
    classes, own = np.unique(labels, return_inverse=True)
    votes = (own[near][:, :, None] == np.arange(len(classes))).sum(1)
    return votes[np.arange(len(labels)), own] < votes.max(1)


def _repeated(held: Held) -> np.ndarray:
    """Samples whose image is there before with the same class, or anywhere with another one."""
    _, which = np.unique(held.images, axis=0, return_inverse=True)
    pairs, first, pair = np.unique(
        np.stack([which.ravel(), held.labels]), axis=1, return_index=True, return_inverse=True
    )
    told = np.bincount(pairs[0], minlength=int(which.max()) + 1)
    again = np.ones(len(held.labels), bool)
    again[first] = False
    return again | (told[pairs[0]] > 1)[pair.ravel()]
