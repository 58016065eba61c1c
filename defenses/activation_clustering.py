"""Activation clustering."""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from fedsem.hooks.sanitise import DataFilter, Held
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "activation_clustering")
class ActivationClustering(DataFilter):
    """Splits the features of every class in two by k-means, after a reduction to some components, and leaves out the
    smaller part where the split looks like that of poisoned and clean samples (Chen et al., Detecting Backdoor Attacks
    on Deep Neural Networks by Activation Clustering, 2018; there the features of a classifier's last hidden layer):

    - `relative_size`: where it holds less than `size` of the class;
    - `silhouette`: where, besides, the mean silhouette of the split is above `silhouette`.

    It supposes that fewer than half of a class are poisoned. A class of fewer than ten samples is left as it is.

    Attributes:
        criterion: when the smaller part is left out.
        reduction: independent components as in the paper, or principal ones, which find more poison and leave out
            many more clean samples.
        components: how many; all where the features span fewer.
        size: of the class; 0.35 in the authors' library.
        silhouette: the paper found 0.10 to 0.15 to tell poisoned classes from clean ones.
    """

    first_round: PositiveInt = 2
    criterion: Literal["relative_size", "silhouette"] = "silhouette"
    reduction: Literal["ica", "pca"] = "ica"
    components: PositiveInt = 10
    size: Annotated[float, Field(gt=0, le=0.5)] = 0.35
    silhouette: Annotated[float, Field(ge=-1, le=1)] = 0.1

    def suspects(self, held: Held, stream: Stream) -> np.ndarray:
        out = np.zeros(len(held.labels), bool)
        for rows in held.by_class():
            if len(rows) >= _LEAST:
                out[rows] = self.smaller(held.features[rows], stream.child(int(held.labels[rows[0]])))
        return out

    def smaller(self, features: np.ndarray, stream: Stream) -> np.ndarray:
        """The suspicious part of the samples of one class, bool (N,)."""
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score

        nobody = np.zeros(len(features), bool)
        if len(np.unique(features, axis=0)) <= 2:  # nothing to split, or nothing to compare a split with
            return nobody
        reduced = self.reduced(features, stream.child("components"))
        part = KMeans(2, n_init=10, random_state=stream.child("means").key % 2**32).fit_predict(reduced)
        few: np.ndarray = part == (part.mean() < 0.5)
        if few.mean() >= self.size:
            return nobody
        if self.criterion == "silhouette" and silhouette_score(reduced, part) <= self.silhouette:
            return nobody
        return few

    def reduced(self, features: np.ndarray, stream: Stream) -> np.ndarray:
        """The components of the samples of one class, (N, components)."""
        from sklearn.decomposition import PCA, FastICA
        from sklearn.exceptions import ConvergenceWarning

        # What has no variance cannot be brought to unit variance.
        count = min(self.components, int(np.linalg.matrix_rank(features - features.mean(0))))
        seed = stream.key % 2**32
        if self.reduction == "pca":
            made: np.ndarray = PCA(count, random_state=seed).fit_transform(features)
            return made
        with warnings.catch_warnings():
            # Few samples: what was found after the last step is a basis as good as the one before.
            warnings.simplefilter("ignore", ConvergenceWarning)
            ica = FastICA(count, whiten="unit-variance", max_iter=1000, tol=0.005, random_state=seed)
            found: np.ndarray = ica.fit_transform(features)
        return found


_LEAST = 10
