"""Median smoothing of reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.hooks.binomial import rank_above
from fedsem.hooks.vote import NoisyCopies
from fedsem.registry import register
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Share, Task


@register("defense", "median_smoothing")
class MedianSmoothing(NoisyCopies):
    """Receivers rebuild every noisy copy of the image and take the median of each pixel, clipped to [0, 1]: under every
    ||delta|| <= r it stays between the quantiles Phi(-r / sigma) and Phi(r / sigma) of that pixel without attack
    (Chiang et al., Detection as Regression: Certified Object Detection with Median Smoothing, 2020, lemma 1). Order
    statistics of n copies bound these quantiles, for both sides of all pixels of a picture together with probability
    1 - alpha (a union bound); beyond them 0 and 1 do.

    `certified_mse` is the squared error of the worst picture between the bounds, the mean over images, and
    `certified_psnr_db` its PSNR. The bounds hold for the median of infinitely many copies. A mean has no such bound:
    one copy in a thousand could move it anywhere.
    """

    serves = (Reconstruction,)

    def measure(self, output: Tensor, truth: Tensor, task: Task) -> dict[str, Share]:
        return task.metrics(output.clamp(0, 1).median(0).values, truth, None)

    def certify(self, output: Tensor, truth: Tensor, task: Task, distance: Tensor) -> dict[str, Share]:
        copies, each = output.clamp(0, 1).sort(0).values, self.alpha / (2 * output.shape[-1])
        ranks = rank_above(torch.special.ndtr(distance), self.n, each)
        # Below the first and beyond the last copy nothing is known of a pixel but that it is one.
        known = torch.cat([torch.zeros_like(copies[:1]), copies, torch.ones_like(copies[:1])])
        image = torch.arange(copies.shape[1], device=copies.device)
        high, low = known[ranks, image], known[self.n + 1 - ranks, image]
        error = torch.maximum((high - truth).square(), (low - truth).square()).mean(-1).double()
        one = torch.ones_like(error)
        return {
            "certified_mse": Share(error, one),
            "certified_psnr_db": Share(-10 * error.clamp_min(1e-12).log10(), one),
        }
