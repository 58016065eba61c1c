"""scikit-learn's handwritten digits: 1,797 gray images of 8x8 pixels, 10 classes; needs no download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test set).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from fedsem.data.dataset import DatasetOptions, Split
from fedsem.data.stratify import hold_out
from fedsem.errors import DataError
from fedsem.registry import register

SIDE = 32
TEST_IMAGES = 359


@register("dataset", "digits")
class Digits(DatasetOptions):
    """Digits at 32x32x3: 1,438 training and 359 test images, a stratified split that is the same in every run.

    Levels 0..16 are resized bilinearly, scaled to 0..255, rounded, and repeated in three channels.
    """

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        levels, labels, train, test = read_digits()
        gray = np.stack([_enlarge(image) for image in levels])
        images = np.repeat(gray[:, None], 3, axis=1)
        everything = Split(images, labels)
        return everything.take(train), everything.take(test), tuple(str(digit) for digit in range(10))


def read_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Levels 0..16, int64 (1797, 8, 8); labels; indices of the training and of the test images."""
    rows = np.loadtxt(_file(), delimiter=",", dtype=np.int64)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1], *hold_out(rows[:, -1], TEST_IMAGES, "digits")


def _file() -> Path:
    """The table that `sklearn.datasets.load_digits` reads, found without the seconds that importing sklearn takes."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("The digits come with scikit-learn, which is not installed; run 'pip install scikit-learn'.")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def _enlarge(image: np.ndarray) -> np.ndarray:
    """(8, 8) levels 0..16 -> uint8 (SIDE, SIDE)."""
    large = Image.fromarray(image.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(large) * (255 / 16)).astype(np.uint8)
