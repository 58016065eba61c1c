"""Median smoothing of reconstructions and of detected objects."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor

from fedsem.hooks.binomial import rank_above
from fedsem.hooks.vote import NoisyCopies
from fedsem.registry import register
from fedsem.tasks.detection import Detection
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import DecoderFormat, Share, Task

from .box_slots import found_surely, in_slots, median_boxes


@register("defense", "median_smoothing")
class MedianSmoothing(NoisyCopies):
    """Receivers decode every noisy copy of the image and take medians: of each pixel of a picture, clipped to [0, 1],
    or of each coordinate of a box. Under every ||delta|| <= r a median stays between the quantiles Phi(-r / sigma) and
    Phi(r / sigma) of that number without attack (Chiang et al., Detection as Regression: Certified Object Detection
    with Median Smoothing, 2020, lemma 1). Order statistics of n copies bound these quantiles, for both sides of all
    numbers of an image together with probability 1 - alpha (a union bound): of N numbers n copies reach as far as
    Phi(r / sigma)^n <= alpha / (2 N). The bounds hold for medians of infinitely many copies. A mean has no such bound:
    one copy in a thousand could move it anywhere.

    Pictures: `certified_mse` is the squared error of the worst picture between the bounds, the mean over images, and
    `certified_psnr_db` its PSNR; where no order statistic is a bound, 0 and 1 are.

    Objects: of each category the boxes that count (the task's `confidence`) are sorted by the middle of their sides,
    from left to right; the i-th boxes of all copies are one, and where more than half of the copies have none it is
    none (binning by category and sorting by place, section 4). An object is surely found if every box between the
    bounds of one of them has an IoU of 0.5 with it, and none of these with another object of its category, which could
    be matched first. `certified_f1` = 2 S / (B + M), S objects surely found of M, B boxes that may be there, is no more
    than `f1` under any such attack. N is four for each of the boxes that there are at most.

    Attributes:
        boxes: of one category at most, those of the best scores; for objects.
    """

    serves = (Reconstruction, Detection)

    boxes: PositiveInt = 5

    def measure(self, output: Tensor, truth: Tensor, task: Task) -> dict[str, Share]:
        if isinstance(task, Detection):
            categories = 1 + int(output[..., 5].max())
            boxes = [median_boxes(in_slots(one, categories, self.boxes, task.confidence)) for one in output.unbind(1)]
            return task.metrics(torch.stack(boxes), truth, None)
        return task.metrics(output.clamp(0, 1).median(0).values, truth, None)

    def certify(
        self, output: Tensor, truth: Tensor, task: Task, distance: Tensor, decoder: DecoderFormat
    ) -> dict[str, Share]:
        if isinstance(task, Detection):
            return self._objects(output, truth, task, distance, len(decoder.categories))
        ranks = self._ranks(distance, output.shape[-1])
        low, high = self._between(output.clamp(0, 1), ranks, 0.0, 1.0)
        error = torch.maximum((high - truth).square(), (low - truth).square()).mean(-1).double()
        one = torch.ones_like(error)
        return {
            "certified_mse": Share(error, one),
            "certified_psnr_db": Share(-10 * error.clamp_min(1e-12).log10(), one),
        }

    def _objects(
        self, output: Tensor, truth: Tensor, task: Detection, distance: Tensor, categories: int
    ) -> dict[str, Share]:
        ranks, counted = self._ranks(distance, 4 * categories * self.boxes), []
        for i, boxes in enumerate(truth):
            slots = in_slots(output[:, i], categories, self.boxes, task.confidence)
            low, high = self._between(
                slots[..., :4].flatten(1).unsqueeze(1), ranks[:, i : i + 1], -torch.inf, torch.inf
            )
            shape = (len(distance), categories, self.boxes, 4)
            bounds = zip(low.view(shape), high.view(shape), strict=True)
            counted.append(torch.stack([found_surely(least, most, boxes) for least, most in bounds]))
        surely, there, objects = torch.stack(counted, 1).unbind(-1)
        return {"certified_f1": Share(2 * surely, there + objects)}

    def _ranks(self, distance: Tensor, numbers: int) -> Tensor:
        """Ranks (P, B) of the order statistics above the quantiles of so many numbers of each image together."""
        return rank_above(torch.special.ndtr(distance), self.n, self.alpha / (2 * numbers))

    def _between(self, copies: Tensor, ranks: Tensor, least: float, most: float) -> tuple[Tensor, Tensor]:
        """Bounds of the medians of numbers (n, B, ...) at each power, (P, B, ...); below the first and beyond the last
        copy nothing is known of a number but its range."""
        copies = copies.sort(0).values
        known = torch.cat([torch.full_like(copies[:1], least), copies, torch.full_like(copies[:1], most)])
        image = torch.arange(copies.shape[1], device=copies.device)
        return known[self.n + 1 - ranks, image], known[ranks, image]
