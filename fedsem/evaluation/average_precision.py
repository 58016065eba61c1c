"""Average precision of detections, matched by pycocotools, with weights on images so that it can be bootstrapped."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsem.tasks.task import Examples

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds of COCO's AP."""
METRICS = {"ap": slice(0, 10), "ap50": slice(0, 1), "ap75": slice(5, 6)}


@dataclass
class Ranking:
    """All boxes that were told of one test set, best first, and whether each was right: what AP is computed from.

    Attributes:
        image: int64 (D,), the image of each box.
        category: int64 (D,).
        times: float64 (D,), receptions that the box was told of.
        right: bool (T, D), whether it is matched at each IoU threshold.
        ignored: bool (T, D), whether it is matched to a crowd, which counts neither way.
        truths: float64 (C, N), objects of each category in each image, times its receptions.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    times: NDArray[np.float64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truths: NDArray[np.float64]

    def precision(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """AP (R,) when the images count `weights` (R, N): precision, made monotone, at the recalls 0, 0.01, ..., 1,
        mean over these, over IoU thresholds and over categories that have objects (COCO's 101-point interpolation)."""
        found = []
        for category, truths in enumerate(self.truths):
            total = weights @ truths.astype(np.float32)
            if not total.any():
                continue
            mine = self.category == category
            counted = weights[:, self.image[mine]] * self.times[mine].astype(np.float32)
            parts = [
                _area(counted * right, counted * ~(right | ignored), total)
                for right, ignored in zip(self.right[:, mine], self.ignored[:, mine], strict=True)
            ]
            found.append(np.where(total > 0, np.mean(parts, axis=0), np.nan))
        with np.errstate(invalid="ignore"):
            return np.nanmean(np.stack(found), axis=0) if found else np.full(len(weights), np.nan)


def _area(right: NDArray[np.float32], wrong: NDArray[np.float32], total: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean interpolated precision, (R,), of boxes in the order of their scores, (R, D)."""
    if not right.shape[1]:
        return np.zeros(len(total))
    tp = right.cumsum(1, dtype=np.float64)
    seen = tp + wrong.cumsum(1, dtype=np.float64)
    precision = np.divide(tp, seen, out=np.zeros_like(tp), where=seen > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(tp, total[:, None], out=np.zeros_like(tp), where=total[:, None] > 0)
    # Each box takes the recall points that it is the first to reach.
    reached = np.floor(recall * 100 + 1e-9) + 1
    taken = np.diff(reached, axis=1, prepend=0.0)
    # A recall of 0 is reached by the first box, right or wrong.
    return (envelope * taken).sum(1) / 101


class Detections:
    """Collects what was told of the test images.

    Args:
        examples: the test images and their objects.
    """

    def __init__(self, examples: Examples) -> None:
        assert examples.boxes is not None
        self.boxes = examples.boxes.cpu().numpy().astype(np.float64)
        self.rows: list[tuple[int, float, NDArray[np.float64]]] = []

    def add(self, output: Tensor, images: Tensor, times: Tensor) -> None:
        """Boxes (d, n, M, 6) of d receptions of n images, each of which stands for `times` (n,)."""
        told = output.double().cpu().numpy()
        for draw in told:
            for image, count, rows in zip(images.tolist(), times.tolist(), draw, strict=True):
                self.rows.append((image, count, rows[rows[:, 4] > 0]))

    def finished(self) -> dict[str, Ranking]:
        """What AP, AP50 and AP75 are computed from."""
        whole = self._ranking()
        return {
            name: Ranking(whole.image, whole.category, whole.times, whole.right[at], whole.ignored[at], whole.truths)
            for name, at in METRICS.items()
        }

    def _ranking(self) -> Ranking:
        evaluation, categories = self._matched()
        truths = np.zeros((categories, len(self.boxes)))
        parts: list[tuple[NDArray, ...]] = []
        for one in evaluation:
            if one is None:
                continue
            image, count, _ = self.rows[one["image_id"] - 1]
            category = one["category_id"] - 1
            truths[category, image] += count * np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
            scores = np.asarray(one["dtScores"], np.float64)
            right = (np.asarray(one["dtMatches"]) > 0).reshape(len(THRESHOLDS), -1)
            ignored = np.asarray(one["dtIgnore"]).astype(bool).reshape(len(THRESHOLDS), -1)
            full = [np.full(len(scores), value) for value in (image, category, count)]
            parts.append((scores, *full, right & ~ignored, ignored))
        if not parts:
            nothing = np.zeros((len(THRESHOLDS), 0), bool)
            none = np.zeros(0, np.int64)
            return Ranking(none, none, np.zeros(0), nothing, nothing, truths)
        scores, image, category, times = (np.concatenate([part[i] for part in parts]) for i in range(4))
        right, ignored = (np.concatenate([part[i] for part in parts], axis=1) for i in (4, 5))
        order = np.argsort(-scores, kind="mergesort")
        return Ranking(
            image[order].astype(np.int64),
            category[order].astype(np.int64),
            times[order].astype(np.float64),
            right[:, order],
            ignored[:, order],
            truths,
        )

    def _matched(self) -> tuple[list, int]:
        """pycocotools' matches of every reception and category, all sizes of objects, at most 100 boxes."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        truth: list[dict] = []
        told: list[dict] = []
        numbers = {int(row[4]) for image in self.boxes for row in image if row[4] >= 0}
        numbers |= {int(row[5]) for _, _, rows in self.rows for row in rows}
        categories = 1 + max(numbers, default=0)
        for number, (image, _, rows) in enumerate(self.rows, start=1):
            for row in self.boxes[image]:
                if row[4] == -1:
                    continue
                # A crowd hides objects of every category.
                for category in range(categories) if row[4] == -2 else [int(row[4])]:
                    truth.append(_annotation(len(truth) + 1, number, row, category, crowd=row[4] == -2))
            told += [
                {
                    **_annotation(0, number, row, int(row[5]), crowd=False),
                    "score": float(row[4]),
                    "id": len(told) + i + 1,
                }
                for i, row in enumerate(rows)
            ]
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = {
                "images": [{"id": number + 1} for number in range(len(self.rows))],
                "categories": [{"id": number + 1} for number in range(categories)],
                "annotations": truth,
            }
            known.createIndex()
            found = COCO()
            found.dataset = {**known.dataset, "annotations": told}
            found.createIndex()
            evaluation = COCOeval(known, found, "bbox")
            evaluation.params.areaRng = [evaluation.params.areaRng[0]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.params.maxDets = [100]
            evaluation.evaluate()
        return evaluation.evalImgs, categories


def _annotation(number: int, image: int, row: NDArray[np.float64], category: int, crowd: bool) -> dict:
    x1, y1, x2, y2 = (float(v) for v in row[:4])
    return {
        "id": number,
        "image_id": image,
        "category_id": category + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(crowd),
    }
