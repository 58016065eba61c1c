"""Scenes of real handwritten digits on cluttered backgrounds, composed on the fly; needs no download."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pydantic import Field, PositiveInt, model_validator

from fedsem.data.dataset import DatasetOptions, Split
from fedsem.data.digits import read_digits
from fedsem.data.objects import Objects
from fedsem.registry import register
from fedsem.streams import Stream

KEYPOINTS = ("top", "left", "bottom", "right", "centre")
"""The four extreme points of a digit's ink and the centre of its mass, as in Zhou et al., Bottom-up Object Detection by
Grouping Extreme and Center Points, 2019."""


@register("dataset", "digit_scenes")
class DigitScenes(DatasetOptions):
    """One to five handwritten digits (scikit-learn's, see `digits`) before a smooth colour field with clutter.

    The background of each colour is a random field on a coarse grid, interpolated smoothly; clutter are blurred
    ellipses and strokes. Digits have sizes between 16 and 32 per cent of the picture's side, a colour that stands
    out from what is behind them, and boxes that overlap little. Each digit's box is that of its ink, its mask is its
    ink, its keypoints are `KEYPOINTS`. The label of a scene is the class of its largest digit.

    Scene i of a split is a function of `scene_seed`, the split and i alone. Training scenes hold the 1,438 training
    digits of `digits`, test scenes the 359 others.
    """

    image_size: PositiveInt = Field(default=224, ge=32, le=1024, description="height and width in pixels")
    objects: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = Field(
        default=(1, 5), description="least and greatest number of digits; fewer where there is no room"
    )
    scene_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    train_scenes: PositiveInt = Field(default=2000, le=100_000, description="size of the training split")
    test_scenes: PositiveInt = Field(default=500, le=100_000, description="size of the test split")

    @model_validator(mode="after")
    def _ordered(self) -> DigitScenes:
        if self.objects[0] > self.objects[1] or self.objects[1] > 9:
            raise ValueError(f"'objects' should be [least, greatest] with at most 9 digits, not {list(self.objects)}")
        return self

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        train = self.compose(np.arange(self.train_scenes), "train")
        test = self.compose(np.arange(self.test_scenes), "test")
        return train, test, tuple(str(digit) for digit in range(10))

    @property
    def composes(self) -> bool:
        return True

    def fresh(self, index: np.ndarray) -> Split:
        """Further scenes of training digits, disjoint from the training split; any number of them."""
        return self.compose(index, "fresh")

    def compose(self, index: np.ndarray, split: str) -> Split:
        """The scenes of these numbers of the split `train`, `test` or `fresh`."""
        stream = Stream(self.scene_seed).child("digit_scenes", split)
        digits = _digits(split == "test")
        scenes = [_scene(stream.child(int(i)).numpy(), digits, self.image_size, self.objects) for i in index]
        counts = [len(scene.categories) for scene in scenes]
        objects = Objects(
            first=np.cumsum([0, *counts]).astype(np.int64),
            boxes=np.concatenate([scene.boxes for scene in scenes]),
            categories=np.concatenate([scene.categories for scene in scenes]),
            crowd=np.zeros(sum(counts), bool),
            area=np.concatenate([scene.area for scene in scenes]),
            keypoints=np.concatenate([scene.keypoints for scene in scenes]),
            segmentation=np.stack([scene.segmentation for scene in scenes]),
        )
        largest = [int(scene.categories[scene.area.argmax()]) for scene in scenes]
        return Split(np.stack([scene.image for scene in scenes]), np.array(largest, np.int64), objects)


class _Scene(NamedTuple):
    image: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    area: np.ndarray
    keypoints: np.ndarray
    segmentation: np.ndarray


@lru_cache(maxsize=2)
def _digits(test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ink of the digits in 0..1, float32 (N, 8, 8), and their classes."""
    ink, labels, train, held_out = read_digits()
    chosen = held_out if test else train
    return ink[chosen].astype(np.float32) / 16, labels[chosen]


def _scene(
    random: np.random.Generator, digits: tuple[np.ndarray, np.ndarray], size: int, objects: tuple[int, int]
) -> _Scene:
    picture = _background(random, size)
    segmentation = np.zeros((size, size), np.uint8)
    places: list[tuple[int, int, int]] = []
    boxes, categories, area, keypoints = [], [], [], []
    for _ in range(int(random.integers(objects[0], objects[1] + 1))):
        place = _place(random, places, size)
        if place is None:
            break
        places.append(place)
        x, y, side = place
        number = int(random.integers(len(digits[1])))
        mask = _paint(picture[:, y : y + side, x : x + side], digits[0][number], random)
        segmentation[y : y + side, x : x + side][mask] = 1 + digits[1][number]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1))
        categories.append(digits[1][number])
        area.append(mask.sum())
        keypoints.append(_keypoints(mask) + np.array([x, y, 0], np.float32))
    return _Scene(
        np.rint(picture).clip(0, 255).astype(np.uint8),
        np.array(boxes, np.float32),
        np.array(categories, np.int64),
        np.array(area, np.float32),
        np.stack(keypoints).astype(np.float32),
        segmentation,
    )


def _background(random: np.random.Generator, size: int) -> np.ndarray:
    """A smooth field with clutter, float32 (3, size, size) around 0..255."""
    cells = int(random.integers(3, 6))
    smooth = _interpolation(cells, size)
    field = random.normal(0, 55, (3, cells, cells)).astype(np.float32)
    # Half of the variation is common to the colours, as light and shade are.
    field = 0.6 * field + 0.6 * random.normal(0, 55, (1, cells, cells)).astype(np.float32)
    picture = random.uniform(90, 165, (3, 1, 1)).astype(np.float32) + smooth @ field @ smooth.T
    clutter = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(clutter)
    for _ in range(int(random.integers(2, 6))):
        x, y = random.uniform(0, size, 2)
        length, angle = random.uniform(0.1, 0.45) * size, random.uniform(0, np.pi)
        dx, dy = length * np.cos(angle) / 2, length * np.sin(angle) / 2
        level, width = int(random.integers(90, 256)), int(random.uniform(0.01, 0.035) * size) + 1
        if random.random() < 0.5:
            pen.line((x - dx, y - dy, x + dx, y + dy), fill=level, width=width)
        else:
            pen.ellipse((x - abs(dx), y - abs(dy), x + abs(dx), y + abs(dy)), outline=level, width=width)
    alpha = np.asarray(clutter.filter(ImageFilter.GaussianBlur(size / 112)), np.float32) / 255
    tint = (70 if random.random() < 0.5 else -70) * random.uniform(0.4, 1, (3, 1, 1)).astype(np.float32)
    picture += alpha * tint
    return picture


@lru_cache(maxsize=16)
def _interpolation(cells: int, size: int) -> np.ndarray:
    """(size, cells) weights of cubic interpolation of `cells` values that lie evenly from edge to edge (Catmull-Rom,
    ends repeated)."""
    position = np.linspace(0, cells - 1, size)
    cell = np.minimum(position.astype(int), cells - 2)
    t = position - cell
    weights = np.stack(
        [
            (-t + 2 * t**2 - t**3) / 2,
            (2 - 5 * t**2 + 3 * t**3) / 2,
            (t + 4 * t**2 - 3 * t**3) / 2,
            (t**3 - t**2) / 2,
        ]
    )
    matrix = np.zeros((size, cells), np.float32)
    for offset in range(4):
        np.add.at(matrix, (np.arange(size), np.clip(cell + offset - 1, 0, cells - 1)), weights[offset])
    return matrix


def _place(random: np.random.Generator, places: list[tuple[int, int, int]], size: int) -> tuple[int, int, int] | None:
    """Left, top and side of a square that leaves room to the others, or None where thirty attempts find none."""
    for _ in range(30):
        side = int(random.uniform(0.16, 0.32) * size)
        x, y = (int(v) for v in random.integers(0, size - side + 1, 2))
        overlaps = [
            max(0, min(x + side, a + s) - max(x, a)) * max(0, min(y + side, b + s) - max(y, b)) / min(side, s) ** 2
            for a, b, s in places
        ]
        if max(overlaps, default=0) <= 0.1:
            return x, y, side
    return None


def _paint(window: np.ndarray, ink: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Paint a digit over a square window (3, side, side) of the picture; its mask, bool (side, side)."""
    side = window.shape[1]
    large = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC))
    alpha = (2.5 * large - 0.6).clip(0, 1)
    behind = window.mean((1, 2))
    away = 1.0 if behind.mean() < 128 else -1.0
    colour = (behind + away * random.uniform(80, 160) + random.normal(0, 30, 3)).clip(0, 255).astype(np.float32)
    window += alpha * (colour.reshape(3, 1, 1) - window)
    return alpha > 0.5


def _keypoints(ink: np.ndarray) -> np.ndarray:
    """`KEYPOINTS` of a mask, (5, 3): x, y at pixel centres, visibility 2."""
    y, x = np.nonzero(ink)
    ends = []
    for along, across, last in ((y, x, False), (x, y, False), (y, x, True), (x, y, True)):
        edge = along.max() if last else along.min()
        middle = float(across[along == edge].mean())
        ends.append((middle, edge) if along is y else (edge, middle))
    points = np.array([*ends, (x.mean(), y.mean())], np.float32) + 0.5
    return np.concatenate([points, np.full((5, 1), 2, np.float32)], axis=1)
