"""A reference for the choice of patches: a greedy one by the true loss of the receivers' tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsem.models.mae_encoder import MaeEncoder

GLIMPSE = 0.2
"""Gate of a patch that is not chosen yet while its worth is told: between nothing, where the attention's logarithm
makes gradients useless, and a whole patch, which would stand in for its neighbours."""
AT_ONCE = 16


def greedy_order(encoder: MaeEncoder, images: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """An order of patches that a transmitter could only find with the truth and all decoders at hand.

    Patches are added in rounds: one, and one more for each dozen that is there already. In each round all patches that
    are left have the gate 0.2; those along whose gates the loss falls most steeply are added. Greedy and of first
    order, so that it is no bound: another choice may be better. Nothing is disturbed on air.

    Args:
        encoder: the transmitter's.
        images: pictures (N, 3, H, W) in [0, 1].
        loss: of painted pictures (B, 3, H, W) and the numbers (B,) of the images that they show, (B,).

    Returns:
        (N, L), the best first: the first k are the choice of k patches.
    """
    everything = torch.arange(len(images), device=images.device)
    return torch.cat([_some(encoder, images[index], index, loss) for index in everything.split(AT_ONCE)])


def _some(encoder: MaeEncoder, images: Tensor, index: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    patches = encoder.mae.patches
    chosen = torch.zeros(len(images), patches, dtype=torch.bool, device=images.device)
    order: list[Tensor] = []
    count = 0
    while count < patches:
        gates = torch.where(chosen, 1.0, GLIMPSE).requires_grad_(True)
        with torch.enable_grad():
            values, selected = encoder.gated_by(images, gates)
            total = loss(encoder.paint_gated(values, selected), index).sum()
        (slope,) = torch.autograd.grad(total, gates)
        some = min(1 + count // 12, patches - count)
        best = slope.masked_fill(chosen, torch.inf).topk(some, dim=1, largest=False).indices
        chosen = chosen.scatter(1, best, True)
        order.append(best)
        count += some
    return torch.cat(order, dim=1)
