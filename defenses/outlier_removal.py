"""Outlier removal."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedsem.hooks.sanitise import DataFilter, Held
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "outlier_removal")
class OutlierRemoval(DataFilter):
    """Leaves out the `share` of every class that lies furthest from the rest of it (Paudice et al., Detection of
    Adversarial Training Examples in Poisoning Attacks through Anomaly Detection, 2018; the sphere of Steinhardt, Koh
    and Liang, Certified Defenses for Data Poisoning Attacks, 2017), with f a sample's features and m the mean of its
    class:

    - `centroid`: ||f - m||;
    - `mahalanobis`: (f - m)^T S^-1 (f - m), with one covariance S of all classes (Lee et al., A Simple Unified
      Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks, 2018), shrunk as Ledoit and Wolf do
      (A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices, 2004);
    - `isolation_forest`: how few random cuts isolate it within its class (Liu, Ting and Zhou, Isolation Forest, 2008).

    It leaves out as many samples where nothing is poisoned.

    Attributes:
        method: what far means.
        share: of each class, rounded down.
    """

    method: Literal["centroid", "mahalanobis", "isolation_forest"] = "centroid"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def suspects(self, held: Held, stream: Stream) -> np.ndarray:
        scores = np.empty(len(held.labels))
        centred = held.features.copy()
        for rows in held.by_class():
            centred[rows] -= centred[rows].mean(0)
        if self.method == "isolation_forest":
            for place, rows in enumerate(held.by_class()):
                scores[rows] = _isolation(held.features[rows], stream.child(place))
        elif self.method == "mahalanobis":
            from sklearn.covariance import LedoitWolf

            scores = LedoitWolf(assume_centered=True).fit(centred).mahalanobis(centred)
        else:
            scores = np.linalg.norm(centred, axis=1)
        out = np.zeros(len(scores), bool)
        for rows in held.by_class():
            out[rows] = largest(scores[rows], int(self.share * len(rows)))
        return out


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """The so many largest scores, bool (N,)."""
    out = np.zeros(len(scores), bool)
    out[np.argsort(-scores, kind="stable")[:count]] = True
    return out


def _isolation(features: np.ndarray, stream: Stream) -> np.ndarray:
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=stream.key % 2**32).fit(features).score_samples(features)
