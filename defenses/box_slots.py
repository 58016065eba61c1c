"""The i-th box of a category in every noisy copy of an image, and what its bounds say of the objects there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.tasks.detection import MATCHED


def in_slots(found: Tensor, categories: int, boxes: int, confidence: float) -> Tensor:
    """The boxes of each category in each copy, sorted by the middle of their sides from left to right.

    Args:
        found: what a detector found in the copies, (n, most, 6), laid out as `fedsem.models.detector.Detector` says.
        categories: C.
        boxes: K, of one category at most; of more, those of the best scores.
        confidence: score from which a box counts.

    Returns:
        (n, C, K, 5): x1, y1, x2, y2, infinite where there is no box, and the score, 0 where there is none.
    """
    slots = found.new_empty(len(found), categories, boxes, 5)
    found = F.pad(found, (0, 0, 0, max(0, boxes - found.shape[1])))
    for category in range(categories):
        mine = (found[..., 5] == category) & (found[..., 4] >= confidence)
        # Found boxes come the best first.
        mine &= mine.cumsum(1) <= boxes
        middle = torch.where(mine, found[..., 0] + found[..., 2], torch.inf)
        order = middle.argsort(dim=1, stable=True)[:, :boxes]
        rows = found.gather(1, order.unsqueeze(-1).expand(-1, -1, 6))
        there = mine.gather(1, order).unsqueeze(-1)
        slots[:, category] = torch.cat(
            [torch.where(there, rows[..., :4], torch.inf), torch.where(there, rows[..., 4:5], 0.0)], dim=-1
        )
    return slots


def median_boxes(slots: Tensor) -> Tensor:
    """The median box of every slot (n, C, K, 5), laid out as what a detector finds, (C K, 6); none where more than half
    of the copies have none."""
    corners = slots[..., :4].median(0).values
    # From above, so that boxes and scores are there in the same slots.
    score = -(-slots[..., 4]).median(0).values
    there = corners.isfinite().all(-1, keepdim=True)
    category = torch.arange(slots.shape[1], device=slots.device).view(-1, 1, 1).expand(-1, slots.shape[2], 1)
    rows = torch.cat([corners, score.unsqueeze(-1), category.to(corners)], dim=-1)
    rows = torch.where(there, rows, torch.zeros_like(rows)).flatten(0, 1)
    return rows[rows[:, 4].argsort(descending=True, stable=True)]


def found_surely(low: Tensor, high: Tensor, truth: Tensor) -> Tensor:
    """How many objects are found whatever the boxes are between their bounds, how many boxes there may be, and how many
    objects there are, (3,) float64.

    Args:
        low, high: bounds of the boxes' x1, y1, x2, y2, (C, K, 4); at +inf there is no box.
        truth: objects (M, 5), laid out as `fedsem.models.detector.Detector` says; crowds are left out.
    """
    objects = truth[truth[:, 4] >= 0]
    surely = 0
    for category in objects[:, 4].unique().long().tolist():
        mine = objects[objects[:, 4] == category, :4].double()
        least, most = overlap_bounds(low[category].double(), high[category].double(), mine)
        alone = (most >= MATCHED).sum(1, keepdim=True) == 1
        surely += int(((least >= MATCHED) & alone).any(0).sum())
    there = (low < torch.inf).any(-1)
    return torch.tensor([surely, int(there.sum()), len(objects)], dtype=torch.float64, device=low.device)


def overlap_bounds(low: Tensor, high: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest IoU of any box between bounds (K, 4) with objects (M, 4), (K, M) each.

    The IoU falls as a side of the box leaves that of the object, whatever the other sides are: it is least at one of
    the 16 corners of the bounds, and greatest where every side is as near the object's as it may be.
    """
    corners = torch.cartesian_prod(*[torch.arange(2, device=low.device)] * 4).bool()
    boxes = torch.where(corners.unsqueeze(1), high, low)
    least = _overlaps(boxes.unsqueeze(2), objects).amin(0)
    nearest = torch.maximum(torch.minimum(objects, high.unsqueeze(1)), low.unsqueeze(1))
    return least, _overlaps(nearest, objects)


def _overlaps(boxes: Tensor, objects: Tensor) -> Tensor:
    """IoU (...) of boxes (..., 4), which may be turned inside out or infinite, with objects (M, 4)."""
    known = boxes.isfinite().all(-1)
    boxes = torch.where(known.unsqueeze(-1), boxes, torch.zeros_like(boxes))
    inner = torch.minimum(boxes[..., 2:], objects[:, 2:]) - torch.maximum(boxes[..., :2], objects[:, :2])
    both = inner.clamp_min(0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
    return torch.where(known, both / (area + (objects[:, 2:] - objects[:, :2]).prod(-1) - both), torch.zeros_like(both))
