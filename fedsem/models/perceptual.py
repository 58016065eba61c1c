"""Similarity of pictures beyond pixel errors: SSIM and LPIPS, both by torchmetrics."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

BACKBONE = "alexnet-owt-7be5be79.pth"
"""torchvision's AlexNet weights; LPIPS itself brings only the weights behind them."""


def similarity(output: Tensor, truth: Tensor) -> Tensor:
    """SSIM of flattened square colour pictures in [0, 1], (..., B, 3 n n), (B, 3 n n) -> (..., B); 11x11 Gaussian
    window of deviation 1.5 (Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity,
    2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    told, true = _pictures(output), _pictures(truth.expand_as(output))
    values = structural_similarity_index_measure(told, true, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.view(output.shape[:-1])


def available() -> bool:
    """Whether LPIPS can be computed without a download."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file()


def distance(output: Tensor, truth: Tensor) -> Tensor:
    """LPIPS (AlexNet) of flattened square colour pictures in [0, 1], shapes as of `similarity`."""
    told, true = _pictures(output), _pictures(truth.expand_as(output))
    network = _network(str(told.device))
    with torch.no_grad():
        values = network(2 * told.clamp(0, 1) - 1, 2 * true - 1)
    return values.view(output.shape[:-1])


@lru_cache(maxsize=2)
def _network(device: str) -> nn.Module:
    from torchmetrics.functional.image.lpips import _LPIPS

    return _LPIPS(pretrained=True, net="alex", use_dropout=True, eval_mode=True).to(device)


def _pictures(flat: Tensor) -> Tensor:
    side = math.isqrt(flat.shape[-1] // 3)
    return flat.reshape(-1, 3, side, side)
