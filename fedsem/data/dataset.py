"""What a data set is, and what every data set plug-in has in common.

A data set is two splits of colour images with one integer label each. Pixels stay `uint8` until a batch is made: they
are a quarter of the size, exact, and can be mapped from disk by several processes at once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from fedsem.data.objects import Objects
from fedsem.data.partition import Iid
from fedsem.data.stratify import stratified_order
from fedsem.errors import DataError
from fedsem.registry import Options, Plugin
from fedsem.streams import Stream

DataPath = Annotated[str, AfterValidator(lambda path: str(Path(path).expanduser().absolute()))]
"""A file or folder that a scenario names. Made absolute when the scenario is read: workers and a resumed run may have
another current directory."""

STD_FLOOR = 1e-3
"""Smallest standard deviation of a channel that `Dataset.std` reports: a constant channel must not divide by zero."""


NOTHING = "nothing"
"""The class of an image that shows no object of any category. Else, where objects are annotated, an image's label is
the category of one of them."""


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True)
class Split:
    """Images with labels. Both arrays are read-only (and may be mapped from disk): index or copy before you change.

    Attributes:
        images: uint8 (N, 3, H, W), red, green, blue, 0..255.
        labels: int64 (N,), index into `Dataset.classes`.
        objects: what stands in the images; None where that is not annotated.

    Raises:
        ValueError: a wrong shape or dtype, or not as many labels (or annotations) as images.
    """

    images: np.ndarray
    labels: np.ndarray
    objects: Objects | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images should be uint8 (N, 3, H, W), not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels should be int64 ({len(self.images)},), not {self.labels.dtype} {self.labels.shape}"
            )
        if self.objects is not None and len(self.objects) != len(self.labels):
            raise ValueError(f"objects of {len(self.objects)} images for {len(self.labels)}")
        object.__setattr__(self, "images", _read_only(self.images))
        object.__setattr__(self, "labels", _read_only(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every pixel and label: the same path may hold other images tomorrow."""
        digest = hashlib.blake2b(str(self.images.shape).encode(), digest_size=16)
        for start in range(0, len(self), 512):
            digest.update(self.images[start : start + 512].tobytes())
        digest.update(self.labels.tobytes())
        if self.objects is not None:
            digest.update(self.objects.fingerprint())
        return digest.hexdigest()

    def take(self, index: np.ndarray) -> Split:
        """The images at `index` (K,) with all that belongs to them, copied."""
        return Split(self.images[index], self.labels[index], self.objects and self.objects.take(index))


@dataclass(frozen=True)
class Dataset:
    """A data set, ready to be handed out.

    Attributes:
        name: kind of the data set.
        train: what receivers learn from.
        test: what evaluation uses; disjoint from `train`.
        reserve: training images that no receiver holds, for adversaries and defenders who have data of their own; None
            where none are kept back.
        classes: name of each label.
        mean: mean of the training pixels per colour channel, pixels in [0, 1].
        std: their standard deviation (population, at least `STD_FLOOR`).
        categories: name of each category of annotated objects; empty where none are annotated.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    categories: tuple[str, ...] = ()
    reserve: Split | None = None


class DatasetOptions(Options):
    """The mapping under `data:`. A data set implements `_read`; limits and pixel statistics are added here."""

    partition: Annotated[Any, Plugin("partition")] = Field(
        default_factory=Iid, description="how the training images are dealt out to receivers; default: iid"
    )
    train_images: PositiveInt | None = Field(default=None, description="use this many training images; default: all")
    test_images: PositiveInt | None = Field(default=None, description="use this many test images; default: all")
    reserve: NonNegativeInt = Field(
        default=0,
        description="keep so many training images from the receivers, for adversaries and defenders with own data",
    )
    portion: Literal["train", "reserve"] = Field(
        default="train", description="what is trained on: `reserve` instead of `train`, as a surrogate is"
    )

    def load(self) -> Dataset:
        """Read the data set.

        A limit keeps a stratified random subset, in the order of the full split; it is the same in every run, and a
        smaller limit keeps a subset of what a larger one keeps.

        Raises:
            DataError: the data are missing or cannot be read, or a limit asks for more images than there are.
        """
        train, test, classes = self._read()
        train, reserve = self._kept_back(train)
        if self.portion == "reserve":
            if reserve is None:
                raise DataError("data.portion is 'reserve', but data.reserve keeps no images; raise it.")
            train, reserve = reserve, None
        else:
            train = self._limit(train, self.train_images, "train")
        test = self._limit(test, self.test_images, "test")
        mean, std = pixel_statistics(train.images)
        categories = tuple(name for name in classes if name != NOTHING) if train.objects is not None else ()
        return Dataset(self.kind, train, test, classes, mean, std, categories, reserve)

    @property
    def composes(self) -> bool:
        """Whether `fresh` can make any number of further training pictures."""
        return False

    def fresh(self, index: np.ndarray) -> Split:
        """Further training pictures of these numbers, disjoint from the training split."""
        raise NotImplementedError

    @abstractmethod
    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        """The whole training split, the whole test split, and the class names.

        Raises:
            DataError: the data are missing or cannot be read.
        """

    def _kept_back(self, train: Split) -> tuple[Split, Split | None]:
        """The training split without the reserve, and that: a stratified subset, the last that a limit would take."""
        if not self.reserve:
            return train, None
        if self.reserve >= len(train):
            raise DataError(
                f"data.reserve keeps {self.reserve} images, but the train split of '{self.kind}' has {len(train)}; "
                "lower it."
            )
        order = stratified_order(train.labels, Stream(0).child("data", "limit", "train"))
        first = len(train) - self.reserve
        return train.take(np.sort(order[:first])), train.take(np.sort(order[first:]))

    def _limit(self, split: Split, limit: int | None, part: str) -> Split:
        if limit is None or limit == len(split):
            return split
        if limit > len(split):
            raise DataError(
                f"data.{part}_images asks for {limit} images, but the {part} split of '{self.kind}' has {len(split)}; "
                f"lower it or leave it out."
            )
        order = stratified_order(split.labels, Stream(0).child("data", "limit", part))
        return split.take(np.sort(order[:limit]))


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each colour channel of uint8 (N, 3, H, W), in units of full scale (255).

    Counted from exact integer histograms, so that the result does not depend on the order of the images or on how
    many are read at once.
    """
    counts = np.zeros((3, 256), np.int64)
    for start in range(0, len(images), 512):
        chunk = images[start : start + 512]
        for channel in range(3):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    deviation = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    m, s = mean.tolist(), np.maximum(deviation, STD_FLOOR).tolist()
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])
