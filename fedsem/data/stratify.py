"""Stratified random order: every prefix holds the classes in their proportions.

Hold-out splits and image limits both take a prefix of such an order.
"""

from __future__ import annotations

import numpy as np

from fedsem.errors import DataError
from fedsem.streams import Stream


def stratified_order(labels: np.ndarray, stream: Stream) -> np.ndarray:
    """Indices 0..N-1 in random order, such that the first n hold about n * N_c / N of each class c.

    Each class is shuffled, and its k-th image (k from 0) is placed at the quantile (k + U) / N_c with U uniform in
    [0, 1); sorting all quantiles gives the order.

    Args:
        labels: (N,), any dtype.
        stream: decides the order.

    Returns:
        int64 (N,), a permutation.
    """
    generator = stream.numpy()
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        quantile[members] = (generator.permutation(len(members)) + generator.random(len(members))) / len(members)
    return np.argsort(quantile, kind="stable").astype(np.int64)


def hold_out(labels: np.ndarray, test_images: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Split 0..N-1 into training and test indices (both int64, sorted), stratified, the same in every run.

    Args:
        labels: (N,), any dtype.
        test_images: size of the test split.
        name: of the data set, for the message.

    Raises:
        DataError: one of the two splits would be empty.
    """
    if not 0 < test_images < len(labels):
        raise DataError(
            f"{name} has {len(labels)} images, of which {test_images} would be the test split; both splits need at "
            f"least one image, so add images or change data.test_fraction."
        )
    order = stratified_order(labels, Stream(0).child("data", "hold_out"))
    return np.sort(order[test_images:]), np.sort(order[:test_images])
