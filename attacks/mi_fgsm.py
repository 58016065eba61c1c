"""The momentum iterative fast gradient sign method."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from fedsem.hooks.budget import ascent, project, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream


@register("attack", "mi_fgsm")
class MiFgsm(Evasion):
    """Steps along an accumulated gradient, m <- decay m + g / mean |g|, which escapes the surrogate's own bumps: made
    to transfer (Dong et al., Boosting Adversarial Attacks with Momentum, 2018, algorithm 1; with the mean of |g| as
    torchattacks has it, which differs from ||g||_1 by a factor that all steps share).

    Attributes:
        steps: number of steps.
        step_size: length of a step as a share of the radius; default 1 / steps.
        decay: mu, of the accumulated gradient.
    """

    steps: PositiveInt = 10
    step_size: PositiveFloat | None = None
    decay: NonNegativeFloat = 1.0

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        delta: Perturbation = {name: torch.zeros_like(problem.sites[name].clean) for name in self.sites}
        momentum = dict(delta)
        share = self.step_size or 1 / self.steps
        for step in range(self.steps):
            gradient = problem.gradient(delta, step)
            for name in self.sites:
                site, new = problem.sites[name], ascent_direction(gradient[name])
                momentum[name] = self.decay * momentum[name] + new
                move = share * radius(site, problem.psr, self.norm) * ascent(momentum[name], self.norm)
                delta[name] = project(delta[name] + move, site, problem.psr, self.norm)
        return delta


def ascent_direction(gradient: torch.Tensor) -> torch.Tensor:
    """g / mean |g| of each row; an exact zero stays zero."""
    shape = (-1, *[1] * (gradient.dim() - 1))
    # The largest component is made 1 first: gradients of a confident model can be denormal.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / gradient.flatten(1).abs().amax(1).clamp_min(tiny).view(shape)
    return scaled / scaled.flatten(1).abs().mean(1).clamp_min(tiny).view(shape)
