"""Detection metrics: against pycocotools on the same boxes, and by hand."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from fedsem.evaluation.average_precision import Detections
from fedsem.evaluation.statistics import Bootstrap, MeasuredPrecision
from fedsem.models.fcos import Fcos
from fedsem.models.pretrained import load_detector
from fedsem.registry import find
from fedsem.tasks.task import Examples

SHARED = Path(__file__).parents[2] / "shared" / "data" / "coco128"


def boxes_of(images: int, seed: int, categories: int = 4, crowds: float = 0.1) -> tuple[Tensor, Tensor]:
    """Random truth (B, 6, 5), and found boxes (B, 12, 6): the true ones moved a little, some wrong, some made up."""
    random = np.random.default_rng(seed)
    truth = np.full((images, 6, 5), -1.0)
    found = np.zeros((images, 12, 6))
    for i in range(images):
        count = random.integers(0, 6)
        corner, size = random.uniform(0, 150, (count, 2)), random.uniform(15, 70, (count, 2))
        truth[i, :count, :2], truth[i, :count, 2:4] = corner, corner + size
        truth[i, :count, 4] = np.where(random.random(count) < crowds, -2, random.integers(0, categories, count))
        rows = []
        for box in truth[i, :count]:
            for _ in range(random.integers(0, 3)):
                moved = box[:4] + random.normal(0, 6, 4)
                category = box[4] if box[4] >= 0 and random.random() < 0.8 else random.integers(0, categories)
                rows.append([*moved, random.uniform(0.05, 1), category])
        corner = random.uniform(0, 150, (2, 2))
        rows += [[*xy, *(xy + 30), random.uniform(0.05, 0.7), random.integers(0, categories)] for xy in corner]
        rows.sort(key=lambda row: -row[4])
        found[i, : len(rows[:12])] = rows[:12]
    return torch.tensor(truth, dtype=torch.float32), torch.tensor(found, dtype=torch.float32)


def examples(truth: Tensor) -> Examples:
    n = len(truth)
    return Examples(torch.zeros(n, 3, 4, 4), torch.zeros(n, dtype=torch.long), boxes=truth)


def peer(truth: Tensor, found: Tensor) -> dict[str, float]:
    """COCO's own evaluation, from files as its users write them."""
    annotations: list[dict[str, Any]] = []
    for i, rows in enumerate(truth.double().numpy()):
        for row in rows[rows[:, 4] != -1]:
            for category in range(4) if row[4] == -2 else [int(row[4])]:
                size = row[2:4] - row[:2]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": [*row[:2], *size],
                     "area": float(size.prod()), "iscrowd": int(row[4] == -2)}
                )  # fmt: skip
    results = [
        {"image_id": i, "category_id": int(row[5]), "bbox": [*row[:2], *(row[2:4] - row[:2])], "score": row[4]}
        for i, rows in enumerate(found.double().numpy())
        for row in rows[rows[:, 4] > 0]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "categories": [{"id": i} for i in range(4)],
            "annotations": annotations,
            "info": {},
        }
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("ap", "ap50", "ap75"), evaluation.stats[:3], strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_pycocotools(seed: int) -> None:
    truth, found = boxes_of(40, seed)
    collected = Detections(examples(truth))
    # In two parts, as they come.
    for index in (torch.arange(25), torch.arange(25, 40)):
        collected.add(found[index].unsqueeze(0), index, torch.ones(len(index)))
    ours = {name: MeasuredPrecision([ranking]).value for name, ranking in collected.finished().items()}
    assert ours == pytest.approx(peer(truth, found), abs=1e-6)


def test_weights_on_images_are_images_that_occur_several_times() -> None:
    """A bootstrap replicate is the AP of the resampled test set, by pycocotools itself."""
    truth, found = boxes_of(30, 7)
    collected = Detections(examples(truth))
    collected.add(found.unsqueeze(0), torch.arange(30), torch.ones(30))
    rankings = collected.finished()
    times = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30))
    index = torch.tensor(np.repeat(np.arange(30), times))
    theirs = peer(truth[index], found[index])
    for name, ranking in rankings.items():
        # Copies of one image have equal scores: their order among each other is the one freedom left.
        assert ranking.precision(times[None].astype(np.float32))[0] == pytest.approx(theirs[name], abs=0.01)


def test_intervals_of_average_precision_hold_the_value_and_pair_differences() -> None:
    truth, found = boxes_of(60, 3)
    worse = found.clone()
    worse[..., :2] += 8
    measured = []
    for boxes in (found, worse):
        collected = Detections(examples(truth))
        collected.add(boxes.unsqueeze(0), torch.arange(60), torch.ones(60))
        measured.append(MeasuredPrecision([collected.finished()["ap50"]]))
    bootstrap = Bootstrap(60, 1)
    low, high = bootstrap.interval(measured[0])
    assert low < measured[0].value < high
    low, high = bootstrap.difference(*measured)
    assert low < measured[0].value - measured[1].value < high
    assert bootstrap.difference(measured[0], measured[0]) == (0, 0)


def test_counts_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 10, 10, 1], [20, 20, 40, 40, 2], [50, 50, 90, 90, -2], [0, 0, 0, 0, -1]]]).float()
    found = torch.tensor(
        [
            [
                [0, 0, 10, 8, 0.9, 1],  # right: IoU 0.8
                [0, 0, 10, 10, 0.8, 1],  # the same object again: wrong
                [20, 20, 40, 40, 0.7, 3],  # another category: wrong
                [55, 55, 65, 65, 0.6, 0],  # in a crowd: neither
                [20, 20, 40, 40, 0.2, 2],  # right, but not confident
                [0, 0, 0, 0, 0, 0],
            ]
        ]
    ).float()
    task = find("task", "detection").model_validate({"confidence": 0.4})
    shares = task.metrics(found.unsqueeze(0), truth, None)  # type: ignore[attr-defined]
    assert {name: float(s.numerator / s.denominator) for name, s in shares.items()} == pytest.approx(
        {"iou": 0.8, "detection_accuracy": 1 / 4, "f1": 2 / 5}
    )


def test_images_without_objects_count_false_alarms_alone() -> None:
    truth = torch.full((1, 1, 5), -1.0)
    found = torch.tensor([[[0, 0, 5, 5, 0.9, 1], [0, 0, 0, 0, 0, 0]]]).float()
    task = find("task", "detection").model_validate({})
    shares = task.metrics(found.unsqueeze(0), truth, None)  # type: ignore[attr-defined]
    assert float(shares["f1"].numerator) == 0
    assert float(shares["f1"].denominator) == 1
    assert float(shares["iou"].denominator) == 0


def test_the_detectors_loss_reaches_the_picture() -> None:
    detector, categories = load_detector("embedded")
    assert isinstance(detector, Fcos)
    assert categories == tuple("0123456789")
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).requires_grad_()
    truth = torch.tensor([[[20, 20, 70, 80, 3]], [[0, 0, 0, 0, -1]]]).float()
    losses = detector.loss(pictures, truth)
    assert losses.shape == (2,)
    losses.sum().backward()
    assert pictures.grad is not None
    assert bool(pictures.grad.any())
    assert not any(parameter.requires_grad for parameter in detector.parameters())
