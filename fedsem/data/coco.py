"""COCO: a folder of pictures and a JSON file of what stands in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from fedsem.data.cache import cached
from fedsem.data.dataset import NOTHING, DataPath, DatasetOptions, Split
from fedsem.data.objects import Objects
from fedsem.data.picture import decode_pictures
from fedsem.data.stratify import hold_out
from fedsem.errors import DataError
from fedsem.registry import register


@register("dataset", "coco")
class Coco(DatasetOptions):
    """Pictures annotated in COCO's format (Lin et al., Microsoft COCO: Common Objects in Context, 2014).

    Every picture is resized to `image_size` without keeping its aspect ratio, as in [S0], and boxes, masks and
    keypoints with it. Boxes are clipped to the picture; of an annotation that lies outside, or whose box is empty,
    nothing is left. Pictures without objects stay. The label of a picture is the category of its largest object that
    is no crowd, or the extra class `nothing`. Masks are the polygons, drawn smallest area last; run-length encoded
    masks are those of crowds and do not count as objects. Keypoints are read where the file has them (COCO's
    person_keypoints).

    Attributes:
        images, annotations: of the training pictures.
        test_images_folder, test_annotations: of the test pictures; None: `test_fraction` of the training pictures is
            held out.
    """

    images: DataPath = Field(description="folder of the pictures, relative to the current directory")
    annotations: DataPath = Field(description="COCO's JSON file of these pictures")
    test_images_folder: DataPath | None = Field(default=None, description="folder of the test pictures")
    test_annotations: DataPath | None = Field(default=None, description="JSON file of the test pictures")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="held out where no test pictures are named"
    )
    image_size: PositiveInt = Field(default=224, le=1024, description="height and width in pixels")

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        whole, names = _split(Path(self.images), Path(self.annotations), self.image_size)
        classes = (*names, NOTHING)
        if (self.test_images_folder is None) != (self.test_annotations is None):
            raise DataError("Name both data.test_images_folder and data.test_annotations, or neither.")
        if self.test_images_folder is not None:
            test, others = _split(Path(self.test_images_folder), Path(str(self.test_annotations)), self.image_size)
            points = [split.objects.keypoints.shape[1] for split in (whole, test) if split.objects is not None]
            if len(set(points)) > 1:
                raise DataError(
                    f"'{self.test_annotations}' has {points[1]} keypoints of an object, '{self.annotations}' has "
                    f"{points[0]}; use files of one set."
                )
            if others != names:
                raise DataError(
                    f"'{self.test_annotations}' has other categories than '{self.annotations}'; use files of one set."
                )
            return whole, test, classes
        # Not by class: most categories of a small set occur once.
        train, held_out = hold_out(
            np.zeros(len(whole), np.int64), round(self.test_fraction * len(whole)), f"'{self.images}'"
        )
        return whole.take(train), whole.take(held_out), classes


def _split(folder: Path, annotations: Path, size: int) -> tuple[Split, tuple[str, ...]]:
    content = _json(annotations)
    categories = sorted(content["categories"], key=lambda one: one["id"])
    number = {one["id"]: i for i, one in enumerate(categories)}
    pictures = sorted(content["images"], key=lambda one: one["id"])
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}' (data.images); correct the path.")
    if not pictures:
        raise DataError(f"'{annotations}' lists no pictures.")
    files = [folder / str(one["file_name"]) for one in pictures]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"'{annotations}' lists {len(missing)} picture(s) that are not there, such as '{missing[0]}'; correct "
            "data.images, or take those entries out."
        )
    images = cached(files, {"size": size}, lambda: decode_pictures(files, size))
    held: dict[Any, list[Mapping[str, Any]]] = {one["id"]: [] for one in pictures}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in held:
            raise DataError(f"In '{annotations}', annotation {annotation.get('id')} is of an image that is not listed.")
        if annotation["category_id"] not in number:
            raise DataError(f"In '{annotations}', annotation {annotation.get('id')} has an unknown category.")
        held[annotation["image_id"]].append(annotation)
    most = max((len(one.get("keypoints", ())) // 3 for one in content["annotations"]), default=0)
    objects = _objects([(one, held[one["id"]]) for one in pictures], number, size, most, annotations)
    names = tuple(str(one["name"]) for one in categories)
    return Split(images, _labels(objects, len(names)), objects), names


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The annotations '{path}' cannot be read ({error}); they should be COCO's JSON.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"The annotations '{path}' have no list '{key}'; they should be COCO's instances JSON.")
    return content


def _objects(
    pictures: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    number: Mapping[Any, int],
    size: int,
    keypoints: int,
    path: Path,
) -> Objects:
    from pycocotools import mask as masks

    first, boxes, categories, crowd, area, points = [0], [], [], [], [], []
    segmentation = np.zeros((len(pictures), size, size), np.uint8)
    for i, (picture, found) in enumerate(pictures):
        scale = np.array([size / float(picture["width"]), size / float(picture["height"])])
        kept = []
        for annotation in found:
            try:
                x, y, width, height = (float(v) for v in annotation["bbox"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"In '{path}', the box of annotation {annotation.get('id')} is not [x, y, width, height]."
                ) from error
            corners = np.array([x, y, x + width, y + height]) * np.tile(scale, 2)
            box = corners.clip(0, size)
            if not np.isfinite(corners).all() or box[2] - box[0] <= 0 or box[3] - box[1] <= 0:
                continue
            kept.append(annotation)
            boxes.append(box)
            categories.append(number[annotation["category_id"]])
            crowd.append(bool(annotation.get("iscrowd", 0)))
            area.append(float(annotation.get("area", width * height)) * scale.prod())
            own = np.zeros((keypoints, 3))
            given = np.array(annotation.get("keypoints", ()), float).reshape(-1, 3)
            own[: len(given)] = given * [*scale, 1]
            points.append(own)
        for annotation in sorted(kept, key=lambda one: -float(one.get("area", 0))):
            polygons = annotation.get("segmentation")
            if isinstance(polygons, list) and not annotation.get("iscrowd", 0):
                scaled = [
                    (np.array(polygon, float).reshape(-1, 2) * scale).ravel().tolist()
                    for polygon in polygons
                    if len(polygon) >= 6
                ]
                if scaled:
                    inside = masks.decode(masks.merge(masks.frPyObjects(scaled, size, size))).astype(bool)
                    segmentation[i][inside] = 1 + number[annotation["category_id"]]
        first.append(len(boxes))
    return Objects(
        first=np.array(first, np.int64),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        categories=np.array(categories, np.int64),
        crowd=np.array(crowd, bool),
        area=np.array(area, np.float32),
        keypoints=np.array(points, np.float32).reshape(len(boxes), keypoints, 3),
        segmentation=segmentation,
    )


def _labels(objects: Objects, nothing: int) -> np.ndarray:
    labels = np.full(len(objects), nothing, np.int64)
    for i in range(len(objects)):
        here = slice(objects.first[i], objects.first[i + 1])
        area = np.where(objects.crowd[here], -1.0, objects.area[here])
        if len(area) and area.max() >= 0:
            labels[i] = objects.categories[here][area.argmax()]
    return labels
