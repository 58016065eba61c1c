"""Projected gradient descent."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedsem.hooks.budget import ascent, inside, project, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem, SiteState
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "pgd")
class Pgd(Evasion):
    """Iterated steps up the gradient of the expected loss, each projected back into the ball (Madry et al., Towards
    Deep Learning Models Resistant to Adversarial Attacks, 2018), with fresh channel draws in every step.

    Attributes:
        steps: number of steps.
        step_size: length of a step as a share of the radius; default 2.5 / steps.
        random_start: start at a random point of the ball instead of its centre.
    """

    steps: PositiveInt = 20
    step_size: PositiveFloat | None = None
    random_start: bool = False

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        delta: Perturbation = {
            name: self.start(problem.sites[name], problem.psr, stream.child(name)) for name in self.sites
        }
        share = self.step_size or 2.5 / self.steps
        for step in range(self.steps):
            gradient = problem.gradient(delta, step)
            for name in self.sites:
                site = problem.sites[name]
                move = share * radius(site, problem.psr, self.norm) * ascent(gradient[name], self.norm)
                delta[name] = project(delta[name] + move, site, problem.psr, self.norm)
        return delta

    def start(self, site: SiteState, psr: float | Tensor, stream: Stream) -> Tensor:
        """Zero, or a point drawn uniformly from the ball (clipped to the image range)."""
        if not self.random_start:
            return torch.zeros_like(site.clean)
        return inside(site, psr, self.norm, stream.torch())
