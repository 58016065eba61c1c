"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels, 10 classes; needs no download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test set).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from fedsem.data.dataset import DatasetOptions, Split
from fedsem.data.stratify import hold_out
from fedsem.registry import register

SIDE = 32
TEST_IMAGES = 359


@register("dataset", "digits")
class Digits(DatasetOptions):
    """Digits at 32x32x3: 1,438 training and 359 test images, a stratified split that is the same in every run.

    Levels 0..16 are resized bilinearly, scaled to 0..255, rounded, and repeated in three channels.
    """

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        from sklearn.datasets import load_digits

        source = load_digits()
        gray = np.stack([_enlarge(image) for image in source.images])
        images = np.repeat(gray[:, None], 3, axis=1)
        labels = source.target.astype(np.int64)
        train, test = hold_out(labels, TEST_IMAGES, "digits")
        everything = Split(images, labels)
        return everything.take(train), everything.take(test), tuple(str(name) for name in source.target_names)


def _enlarge(image: np.ndarray) -> np.ndarray:
    """(8, 8) levels 0..16 -> uint8 (SIDE, SIDE)."""
    large = Image.fromarray(image.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(large) * (255 / 16)).astype(np.uint8)
