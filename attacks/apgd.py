"""Auto-PGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.budget import ascent, clip, project, radius
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Problem
from fedsem.hooks.evasion_losses import Loss, difference_of_logits_ratio, differentiate, log_mean, measure, objective
from fedsem.plan import Plan
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

LOSSES: Mapping[str, Loss] = {"ce": objective, "dlr": difference_of_logits_ratio, "log_mean": log_mean}
MOMENTUM = 0.75
"""alpha of the paper: the share of the new step."""
RISING = 0.75
"""rho of the paper: steps that must have raised the loss between two checkpoints, else the step is halved."""


@register("attack", "apgd")
class Apgd(Evasion):
    """Auto-PGD (Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-free Attacks, 2020): projected ascent with momentum, z = P(d + eta g), d <- P(d + a (z - d) + (1 - a)
    (d - d_before)), a = 0.75, from eta = 2 radii; at checkpoints eta is halved, and the best point taken up again,
    where fewer than 75 % of the steps raised the loss or where nothing got better.

    Channel draws are new at each checkpoint only, and the best point is measured again on the new ones: a maximum over
    ever fresh draws would reward luck.

    Attributes:
        steps: number of steps of each run.
        restarts: runs from random points on the surface of the ball, of which each example keeps the best.
        loss: `ce`: the objective, whatever the task; for classification also `dlr`, the difference of logits ratio, and
            `log_mean`: -log of the mean probability over the draws.
    """

    steps: PositiveInt = 100
    restarts: PositiveInt = 1
    loss: Literal["ce", "dlr", "log_mean"] = "ce"

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if self.loss == "ce":
            return
        tasks = [plan.scenario.tasks[task] for task, weight in self.goals(plan).items() if weight]
        if len(tasks) != 1 or not isinstance(tasks[0], Classification) or self.targeted or self.objective == "joint":
            raise ScenarioError(
                f"In the scenario, '{path}.loss': '{self.loss}' is for an untargeted attack on one classification "
                "task; use ce."
            )
        if self.loss == "dlr" and len(plan.dataset.classes) < 3:
            raise ScenarioError(f"In the scenario, '{path}.loss': 'dlr' needs at least three classes; use ce.")

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        starts: list[Perturbation] = [
            {name: self.start(problem, name, stream.child(restart, name)) for name in self.sites}
            for restart in range(self.restarts)
        ]
        return climb_all(problem, self.norm, LOSSES[self.loss], starts, self.steps)

    def start(self, problem: Problem, name: str, stream: Stream) -> Tensor:
        """A random point on the surface of the ball, clipped to the image range."""
        return random_surface(problem, name, self.norm, stream)


def random_surface(problem: Problem, name: str, norm: Norm, stream: Stream) -> Tensor:
    """A random point on the surface of the ball of every row, clipped to the image range."""
    site = problem.sites[name]
    generator = stream.torch()
    if norm == "linf":
        point = 2 * torch.rand(site.clean.shape, generator=generator) - 1
        point = point / point.flatten(1).abs().amax(1).view(-1, *[1] * (point.dim() - 1))
    else:
        point = ascent(torch.randn(site.clean.shape, generator=generator), "l2")
    return clip(radius(site, problem.psr, norm) * point.to(site.clean.device), site)


def climb_all(
    problem: Problem, norm: Norm, loss: Loss, starts: list[Perturbation], steps: int, first_step: int = 0
) -> Perturbation:
    """Runs from all starting points, at once; of each row the best, by the loss over one set of new draws.

    Args:
        problem: what is attacked.
        norm: of the ball.
        loss: what is maximised.
        starts: one perturbation of all rows for each run.
        steps: of each run.
        first_step: number of the first set of channel draws.
    """
    names, runs = list(starts[0]), len(starts)
    rows = len(next(iter(starts[0].values())))
    everything = torch.arange(rows, device=problem.sites[names[0]].clean.device)
    many = problem if runs == 1 else problem.select(everything.repeat(runs))
    start = {name: torch.cat([one[name] for one in starts]) for name in names}
    best, draws = climb(many, norm, loss, start, steps, first_step)
    if runs == 1:
        return best
    reached = measure(many, best, draws, loss).view(runs, rows)
    chosen = reached.argmax(0) * rows + everything
    return {name: value[chosen] for name, value in best.items()}


def climb(
    problem: Problem, norm: Norm, loss: Loss, start: Perturbation, steps: int, first_step: int = 0
) -> tuple[Perturbation, int]:
    """One run: the best point of each row, and the number of the next unused set of channel draws."""
    wait, shortest, shorter = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    here, before, draws = start, start, first_step
    value, gradient = differentiate(problem, here, draws, loss)
    best, best_value, best_gradient = here, value, gradient
    at_last_check, halved = best_value, torch.ones_like(value, dtype=torch.bool)
    step_size, rises, since = torch.full_like(value, 2.0), torch.zeros_like(value), 0
    for step in range(steps):
        alpha = MOMENTUM if step else 1.0
        there: Perturbation = {}
        for name, delta in here.items():
            site = problem.sites[name]
            length = _rows(step_size, delta) * radius(site, problem.psr, norm)
            ahead = project(delta + length * ascent(gradient[name], norm), site, problem.psr, norm)
            moved = delta + alpha * (ahead - delta) + (1 - alpha) * (delta - before[name])
            there[name] = project(moved, site, problem.psr, norm)
        before, here = here, there
        last = value
        value, gradient = differentiate(problem, here, draws, loss)
        better = value > best_value
        best, best_gradient = _where(better, here, best), _where(better, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        rises, since = rises + (value > last), since + 1
        if since < wait:
            continue
        halve = (rises <= RISING * wait) | (~halved & (at_last_check >= best_value))
        step_size = torch.where(halve, step_size / 2, step_size)
        here, gradient = _where(halve, best, here), _where(halve, best_gradient, gradient)
        draws += 1
        best_value = measure(problem, best, draws, loss)
        value = torch.where(halve, best_value, value)
        at_last_check, halved, rises, since = best_value, halve, torch.zeros_like(rises), 0
        wait = max(wait - shorter, shortest)
    return best, draws + 1


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _where(rows: Tensor, one: Perturbation, other: Perturbation) -> Perturbation:
    return {name: torch.where(_rows(rows, value), value, other[name]) for name, value in one.items()}
