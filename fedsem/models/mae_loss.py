"""What a MAE learns from before it serves in a link."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.models.mae import Kept, Mae, kept_patches

GREATEST_RATIO = 0.95


def mae_loss(mae: Mae, images: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error, in standardised pixels, over *all* patches of pictures painted from a random part of theirs.

    He et al. supervise masked patches only; a receiver of features has no pixels to paste over the others (facts.md:
    without it, whole-image error grows as more is sent). The mask ratio is uniform in [0, 0.95], one for the batch, so
    that every ratio is in distribution. Which patches stay is random in every second batch on average; in the others
    they lie in clusters (where a smooth random field is high), since a scorer's choice is no even spread.
    """
    ratio = GREATEST_RATIO * float(torch.rand((), generator=generator))
    clustered = bool(torch.rand((), generator=generator) < 0.5)
    scores = torch.rand(len(images), mae.patches, generator=generator)
    if clustered:
        field = torch.randn(len(images), 1, 5, 5, generator=generator)
        smooth = F.interpolate(field, (mae.side, mae.side), mode="bicubic", align_corners=False).flatten(1)
        scores = scores + smooth
    count = max(1, kept_patches(mae.patches, ratio))
    kept = Kept(scores.topk(count, dim=1).indices.to(images.device))
    painted = mae.decode(mae.encode(images, kept), kept)
    return ((painted - images) / mae.std).square().mean()
