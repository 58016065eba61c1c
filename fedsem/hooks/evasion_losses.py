"""What an adversary maximises: losses of each row over the channel draws of a step, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.hooks.evasion import Perturbation, Problem

Loss = Callable[[Problem, Perturbation, int, slice], Tensor]
"""(problem, delta of the rows in the slice, step, slice) -> loss of each of those rows, (B,); differentiable."""


def objective(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """The attack's own objective: the mean over draws of the tasks' losses."""
    return problem.objective(delta, step, index)


def log_mean(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """-log mean_k p_y: unlike the mean of -log p_y it does not reward making one draw wrong over and over."""
    loss = F.nll_loss(problem.logits(delta, step, index), problem.labels[index], reduction="none")
    return loss - problem.alarm(delta, step, index)


def difference_of_logits_ratio(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """DLR (Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020): -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), the mean over draws; needs three classes."""
    scores, labels = problem.scores(delta, step, index), problem.labels[index]
    ranked = scores.sort(dim=-1).values
    true, other = _true_and_other(scores, labels)
    ratio = ((other - true) / (ranked[..., -1] - ranked[..., -3] + 1e-12)).mean(0)
    return ratio - problem.alarm(delta, step, index)


def margin_to(target: Tensor) -> Loss:
    """z_t - z_y towards the class `target` of each row, (B,): the mean over draws."""

    def margin(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
        scores = problem.scores(delta, step, index)
        goal = target[index].expand(scores.shape[:-1]).unsqueeze(-1)
        true, _ = _true_and_other(scores, problem.labels[index])
        return (scores.gather(-1, goal).squeeze(-1) - true).mean(0) - problem.alarm(delta, step, index)

    return margin


def _true_and_other(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Score of the true class, and the largest of the others."""
    place = labels.expand(scores.shape[:-1]).unsqueeze(-1)
    others = scores.scatter(-1, place, -torch.inf)
    return scores.gather(-1, place).squeeze(-1), others.amax(-1)


def differentiate(problem: Problem, delta: Perturbation, step: int, loss: Loss) -> tuple[Tensor, Perturbation]:
    """Loss of every row (B,), and its gradient at every site."""
    values: list[Tensor] = []
    # A channels-last encoder gives channels-last gradients, and sums of mixed layouts are slow.
    gradient = {name: torch.empty_like(value, memory_format=torch.contiguous_format) for name, value in delta.items()}
    for index in problem.batches():
        leaves = {name: value[index].detach().requires_grad_(True) for name, value in delta.items()}
        some = loss(problem, leaves, step, index)
        for name, part in zip(leaves, torch.autograd.grad(some.sum(), list(leaves.values())), strict=True):
            gradient[name][index] = part
        values.append(some.detach())
    return torch.cat(values), gradient


def measure(problem: Problem, delta: Perturbation, step: int, loss: Loss) -> Tensor:
    """Loss of every row, (B,)."""
    with torch.no_grad():
        parts = [
            loss(problem, {name: value[index] for name, value in delta.items()}, step, index)
            for index in problem.batches()
        ]
    return torch.cat(parts)
