"""What stands where in a picture: boxes, categories, masks and keypoints of the objects of a split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Objects:
    """The annotated objects of N images, one after another: those of image i are `first[i]` up to `first[i + 1]`.

    Attributes:
        first: int64 (N + 1,), index of each image's first object; images may have none.
        boxes: float32 (M, 4), x1, y1, x2, y2 in pixels, x to the right and y down, within the image.
        categories: int64 (M,), index into `Dataset.categories`.
        crowd: bool (M,), whether the box holds a crowd, which detection metrics ignore (COCO's `iscrowd`).
        area: float32 (M,), pixels of the object, by which COCO tells small objects from large ones.
        keypoints: float32 (M, K, 3), x, y in pixels and visibility (0: not labelled).
        segmentation: uint8 (N, H, W), 0 for background, else 1 + category of the object that is in front.

    Raises:
        ValueError: arrays that do not fit each other.
    """

    first: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    keypoints: np.ndarray
    segmentation: np.ndarray

    def __post_init__(self) -> None:
        count = int(self.first[-1])
        for name in ("boxes", "categories", "crowd", "area", "keypoints"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name}: {len(getattr(self, name))} entries for {count} objects")
        if len(self.segmentation) != len(self):
            raise ValueError(f"segmentation of {len(self.segmentation)} images for {len(self)}")

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def most(self) -> int:
        """The largest number of objects in one image."""
        return int(np.diff(self.first).max(initial=0))

    def take(self, index: np.ndarray) -> Objects:
        """The objects of the images at `index` (K,), copied."""
        spans = [np.arange(self.first[i], self.first[i + 1]) for i in index]
        chosen = np.concatenate([np.empty(0, np.int64), *spans])
        return Objects(
            first=np.cumsum([0, *map(len, spans)]).astype(np.int64),
            boxes=self.boxes[chosen],
            categories=self.categories[chosen],
            crowd=self.crowd[chosen],
            area=self.area[chosen],
            keypoints=self.keypoints[chosen],
            segmentation=self.segmentation[index],
        )

    def fingerprint(self) -> bytes:
        """Hash of everything."""
        digest = hashlib.blake2b(digest_size=16)
        for field in fields(self):
            value = getattr(self, field.name)
            digest.update(f"{field.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.digest()
