"""Annotated pictures: digit scenes, COCO files, and what becomes of bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fedsem.data.coco import Coco
from fedsem.data.digit_scenes import KEYPOINTS, DigitScenes, _interpolation
from fedsem.data.digits import read_digits
from fedsem.data.objects import Objects
from fedsem.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "coco128"


@pytest.fixture(scope="module")
def scenes() -> Any:
    return DigitScenes().compose(np.arange(40), "test")


def test_a_scene_is_a_function_of_its_number_alone(scenes: Any) -> None:
    again = DigitScenes().compose(np.array([30, 7]), "test")
    np.testing.assert_array_equal(again.images, scenes.images[[30, 7]])
    assert again.fingerprint == scenes.take(np.array([30, 7])).fingerprint
    other = DigitScenes(scene_seed=1).compose(np.array([7]), "test")
    assert not np.array_equal(other.images[0], scenes.images[7])
    train = DigitScenes().compose(np.array([7]), "train")
    assert not np.array_equal(train.images[0], scenes.images[7])


def test_boxes_masks_and_keypoints_belong_together(scenes: Any) -> None:
    objects: Objects = scenes.objects
    for i in range(len(scenes)):
        covered = np.zeros((224, 224), bool)
        for j in range(objects.first[i], objects.first[i + 1]):
            x1, y1, x2, y2 = objects.boxes[j].astype(int)
            assert 0 <= x1 < x2 <= 224
            assert 0 <= y1 < y2 <= 224
            covered[y1:y2, x1:x2] = True
            points = dict(zip(KEYPOINTS, objects.keypoints[j], strict=True))
            assert points["top"][1] == y1 + 0.5
            assert points["bottom"][1] == y2 - 0.5
            assert points["left"][0] == x1 + 0.5
            assert points["right"][0] == x2 - 0.5
            assert x1 < points["centre"][0] < x2
            assert y1 < points["centre"][1] < y2
        ink = objects.segmentation[i] > 0
        assert not bool((ink & ~covered).any())
        told = set(np.unique(objects.segmentation[i])) - {0}
        assert told <= {1 + c for c in objects.categories[objects.first[i] : objects.first[i + 1]]}


def test_test_scenes_show_digits_that_no_training_scene_shows() -> None:
    _, _, train, test = read_digits()
    assert not set(train) & set(test)


def test_the_background_is_interpolated_smoothly() -> None:
    """Catmull-Rom weights sum to one, meet the grid's values, and reproduce a straight line between them."""
    weights = _interpolation(5, 41)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights[::10], np.eye(5), atol=1e-6)
    np.testing.assert_allclose((weights @ np.arange(5.0))[10:31], np.linspace(1, 3, 21), atol=1e-5)


def test_there_are_as_many_digits_as_asked_for() -> None:
    split = DigitScenes(objects=(2, 3)).compose(np.arange(30), "train")
    assert split.objects is not None
    assert set(np.diff(split.objects.first)) <= {2, 3}
    with pytest.raises(ValidationError, match="least, greatest"):
        DigitScenes(objects=(3, 2))


def coco_file(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """A COCO file of one 40x20 picture, `a.png`."""
    content: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 3, "iscrowd": 0, "area": 10.0, **one}
            for i, one in enumerate(annotations)
        ],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def picture(folder: Path, mode: str = "RGB", name: str = "a.png") -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 40, 3), 100, np.uint8)).convert(mode).save(folder / name)
    return folder


def read(tmp_path: Path, annotations: list[dict[str, Any]], mode: str = "RGB", **changes: Any) -> Any:
    images = picture(tmp_path / "images", mode)
    options = Coco(images=str(images), annotations=str(coco_file(tmp_path, annotations, **changes)), image_size=80)
    from fedsem.data.coco import _split

    return _split(Path(options.images), Path(options.annotations), 80)


def test_coordinates_grow_with_the_picture(tmp_path: Path) -> None:
    """A 40x20 picture at 80x80: x twice, y four times."""
    polygon = [10, 5, 20, 5, 20, 10, 10, 10]
    split, names = read(
        tmp_path, [{"bbox": [10, 5, 10, 5], "segmentation": [polygon], "area": 50, "keypoints": [10, 5, 2, 0, 0, 0]}]
    )
    assert names == ("cat", "dog")
    assert split.images.shape == (1, 3, 80, 80)
    objects = split.objects
    assert objects.boxes.tolist() == [[20, 20, 40, 40]]
    assert objects.area.tolist() == [400]
    assert objects.keypoints.tolist() == [[[20, 20, 2], [0, 0, 0]]]
    mask = objects.segmentation[0]
    assert mask[20:40, 20:40].mean() > 0.9
    assert mask.sum() == pytest.approx(400, rel=0.12)
    assert split.labels.tolist() == [0]


def test_an_image_without_boxes_stays(tmp_path: Path) -> None:
    split, names = read(tmp_path, [])
    assert split.objects.first.tolist() == [0, 0]
    assert split.labels.tolist() == [len(names)]
    assert not split.objects.segmentation.any()


def test_a_gray_image_gets_three_channels(tmp_path: Path) -> None:
    split, _ = read(tmp_path, [], mode="L")
    assert split.images.shape == (1, 3, 80, 80)


def test_boxes_are_clipped_to_the_image_and_those_outside_left_out(tmp_path: Path) -> None:
    split, _ = read(tmp_path, [{"bbox": [30, -5, 20, 10]}, {"bbox": [50, 5, 10, 5]}, {"bbox": [3, 3, 0, 4]}])
    assert split.objects.boxes.tolist() == [[60, 0, 80, 20]]


def test_crowds_are_marked_and_do_not_name_an_image(tmp_path: Path) -> None:
    split, names = read(
        tmp_path,
        [{"bbox": [0, 0, 40, 20], "iscrowd": 1, "area": 800, "segmentation": {"counts": [], "size": [20, 40]}}],
    )
    assert split.objects.crowd.tolist() == [True]
    assert split.labels.tolist() == [len(names)]


@pytest.mark.parametrize(
    ("annotation", "changes", "message"),
    [
        ({"bbox": [1, 2, 3]}, {}, r"is not \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, 4], "category_id": 99}, {}, "unknown category"),
        ({"bbox": [1, 2, 3, 4], "image_id": 99}, {}, "of an image that is not listed"),
        ({"bbox": [1, 2, 3, 4]}, {"categories": 3}, "no list 'categories'"),
        ({"bbox": [1, 2, 3, 4]}, {"images": []}, "lists no pictures"),
        (
            {"bbox": [1, 2, 3, 4]},
            {"images": [{"id": 5, "file_name": "b.png", "width": 40, "height": 20}]},
            "not there, such as",
        ),
    ],
)
def test_bad_annotations_are_named_in_one_sentence(
    tmp_path: Path, annotation: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [annotation], **changes)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    images = picture(tmp_path / "images")
    (images / "a.png").write_bytes(b"no picture")
    path = coco_file(tmp_path, [])
    with pytest.raises(DataError, match=r"a\.png' is not a readable picture"):
        Coco(images=str(images), annotations=str(path)).load()


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    images = picture(tmp_path / "images")
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"x\.json' cannot be read"):
        Coco(images=str(images), annotations=str(path)).load()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/coco128, which users do not have")
def test_coco128_is_read_as_pycocotools_reads_it() -> None:
    from pycocotools.coco import COCO

    dataset = Coco(images=str(SHARED / "images"), annotations=str(SHARED / "instances.json")).load()
    peer = COCO(str(SHARED / "instances.json"))
    assert len(dataset.train) + len(dataset.test) == 128
    assert dataset.categories == tuple(one["name"] for one in peer.loadCats(sorted(peer.getCatIds())))
    assert dataset.classes == (*dataset.categories, "nothing")
    objects = [split.objects for split in (dataset.train, dataset.test)]
    boxes = [one for one in peer.loadAnns(peer.getAnnIds()) if min(one["bbox"][2:]) > 0]
    assert sum(int(one.first[-1]) for one in objects if one is not None) == len(boxes)
