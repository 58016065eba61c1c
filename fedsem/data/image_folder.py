"""Folders of pictures, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from fedsem.data.cache import cached
from fedsem.data.dataset import DataPath, DatasetOptions, Split
from fedsem.data.picture import decode_pictures
from fedsem.data.stratify import hold_out
from fedsem.errors import DataError
from fedsem.registry import register

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Files with another ending are not looked at."""


@register("dataset", "image_folder")
class ImageFolder(DatasetOptions):
    """Your own images, as `path/train/CLASS/*.png` and `path/test/CLASS/*.png`.

    Without a folder `test`, `test_fraction` of the training images is held out; without either, the class folders are
    those of `path` itself. Classes are numbered in the order of their names. Pictures are resized to `image_size`
    (see `picture.decode_picture`).
    """

    path: DataPath = Field(description="the folder, relative to the current directory")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="used where there is no folder 'test'"
    )
    image_size: PositiveInt = Field(default=32, le=1024, description="height and width in pixels")

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise DataError(
                f"There is no folder '{root}' (data.path); correct the path (relative paths start at '{Path.cwd()}')."
            )
        train_root = root / "train" if (root / "train").is_dir() else root
        if train_root == root and (root / "test").is_dir():
            raise DataError(f"'{root}' has a folder 'test' but none 'train'; put the other class folders into 'train'.")
        classes = _class_folders(train_root)
        files, labels = _samples(train_root, classes)
        test_root = root / "test"
        if train_root != root and test_root.is_dir():
            unknown = sorted(set(_class_folders(test_root)) - set(classes))
            if unknown:
                raise DataError(f"'{test_root / unknown[0]}' has no counterpart in '{train_root}'; add or remove it.")
            present = [name for name in classes if (test_root / name).is_dir()]
            test_files, test_labels = _samples(test_root, present, classes)
            return self._split(files, labels), self._split(test_files, test_labels), classes
        train, test = hold_out(labels, round(self.test_fraction * len(labels)), f"'{train_root}'")
        return (
            self._split([files[i] for i in train], labels[train]),
            self._split([files[i] for i in test], labels[test]),
            classes,
        )

    def _split(self, files: list[Path], labels: np.ndarray) -> Split:
        images = cached(files, {"size": self.image_size}, lambda: decode_pictures(files, self.image_size))
        return Split(images, labels)


def _class_folders(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"'{root}' has no class folders; put the images into one folder per class, such as cat/1.png.")
    return tuple(names)


def _samples(root: Path, folders: Sequence[str], classes: Sequence[str] = ()) -> tuple[list[Path], np.ndarray]:
    """Picture files below the class folders, and their labels int64 (N,)."""
    files: list[Path] = []
    labels: list[int] = []
    for name in folders:
        found = sorted(file for file in (root / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise DataError(f"The class folder '{root / name}' has no pictures; add some or remove the folder.")
        files += found
        labels += [(classes or folders).index(name)] * len(found)
    return files, np.array(labels, np.int64)
