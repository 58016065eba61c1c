"""What a detector learns from before it serves at a receiver."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.data.objects import Objects
from fedsem.models.fcos import Fcos


def detector_loss(detector: Fcos, images: Tensor, objects: Objects, generator: torch.Generator) -> Tensor:
    """FCOS's own loss on pictures of which every second batch on average is blurred, as reconstructions are: averaged
    over squares of 2 to 6 pixels and interpolated back."""
    if torch.rand((), generator=generator) < 0.5:
        size = images.shape[-2:]
        factor = int(torch.randint(2, 7, (), generator=generator))
        images = F.interpolate(F.avg_pool2d(images, factor, ceil_mode=True), size, mode="bilinear")
    return detector.batch_loss(images, truth_of(objects).to(images.device))


def truth_of(objects: Objects) -> Tensor:
    """Boxes and categories of every image, float32 (N, M, 5), laid out as `Detector` says."""
    rows = np.full((len(objects), max(1, objects.most), 5), -1, np.float32)
    for i in range(len(objects)):
        here = slice(objects.first[i], objects.first[i + 1])
        count = here.stop - here.start
        rows[i, :count, :4] = objects.boxes[here]
        rows[i, :count, 4] = np.where(objects.crowd[here], -2, objects.categories[here])
    return torch.from_numpy(rows)
