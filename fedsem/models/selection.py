"""Which patches are kept: by score in the link, by something simpler in its baselines; and gates for training."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fedsem.models.mae import Mae

Strategy = Literal["score", "random", "uniform", "variance", "oracle"]
Relaxation = Literal["straight_through", "gumbel", "perturbed"]


def variance_scores(mae: Mae, images: Tensor) -> Tensor:
    """Variance of the pixels in each patch, over rows and columns, mean over colours, (B, L)."""
    return mae.patchify(images).unflatten(-1, (3, -1)).var(-1, correction=0).mean(-1)


def gate(scores: Tensor, count: int, relaxation: Relaxation, temperature: float, partial: float = 0.0) -> Tensor:
    """Gates (B, L): 1 for the `count` best scores, 0 for the others, with a gradient to the scores.

    `straight_through`: that of sigmoid((log s - c) / T), with c half-way between the last kept and the first dropped
    log score (Bengio, Leonard and Courville, 2013). `gumbel`: the same after Gumbel noise is added to log s, which
    draws patches without replacement in proportion to s (Kool, van Hoof and Welling, Stochastic Beams and Where to
    Find Them, 2019). `perturbed`: the gradient of the expected choice under Gaussian noise of deviation T (Berthet et
    al., Learning with Differentiable Perturbed Optimizers, 2020), the choice itself without noise.

    A gradient taken at a gate of exactly 0 or 1 misjudges the patch: on the shipped MAE it over-rates dropped patches
    and under-rates kept ones by a factor of four, and a scorer trained so is worse than chance. Therefore some patches
    have a gate u that is uniform in (0, 1), and only these pass a gradient: a share `partial` of the kept or of the
    dropped ones, whichever are fewer, and as many of the others, so that as much is sent as before. Its mean,
    the integral of dL/dg from 0 to 1, is L(kept) - L(dropped) exactly, all other gates being as they are (the
    argument of integrated gradients; Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, 2017).

    Noise is drawn from torch's global generator.
    """
    logits = scores.clamp_min(1e-12).log()
    if relaxation == "gumbel":
        logits = logits - torch.empty_like(logits).exponential_().log()
    if count >= logits.shape[1]:
        return torch.ones_like(logits)
    order = logits.topk(count + 1, dim=1)
    hard = torch.zeros_like(logits).scatter(1, order.indices[:, :count], 1.0)
    if relaxation == "perturbed":
        soft: Tensor = _Perturbed.apply(logits, count, temperature)
    else:
        middle = order.values[:, count - 1 : count + 1].detach().mean(1, keepdim=True)
        soft = ((logits - middle) / temperature).sigmoid()
    through = soft - soft.detach()
    if not partial:
        return hard + through
    few = partial * min(count, logits.shape[1] - count)
    some = torch.rand_like(logits) < torch.where(hard > 0, few / count, few / (logits.shape[1] - count))
    return torch.where(some, torch.rand_like(logits) + through, hard)


class _Perturbed(torch.autograd.Function):
    """E[top-k(x + T z)] by Monte Carlo over 64 draws, with Jacobian E[top-k(x + T z) z^T] / T."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, count: int, temperature: float) -> Tensor:
        noise = torch.randn(64, *logits.shape, device=logits.device)
        noisy = logits + temperature * noise
        chosen = torch.zeros_like(noisy).scatter(-1, noisy.topk(count, dim=-1).indices, 1.0)
        ctx.save_for_backward(chosen, noise)
        ctx.temperature = temperature
        return chosen.mean(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        chosen, noise = ctx.saved_tensors
        # The mean choice as a control variate: E[z] = 0, so that it changes nothing but the spread.
        along = ((chosen - chosen.mean(0)) * gradients[0]).sum(-1, keepdim=True)
        return (along * noise).mean(0) / ctx.temperature, None, None
