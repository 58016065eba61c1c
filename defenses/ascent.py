"""Projected gradient ascent inside a training step: what adversarial training and TRADES share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedsem.hooks.budget import ascent, inside, project, radius
from fedsem.hooks.evasion import Norm, Perturbation, SiteState
from fedsem.streams import Stream

from .perturbed_training import Perturbing


class Ascent(Perturbing):
    """The channel draws of the step are the same in all ascent steps and in the descent step.

    Attributes:
        norm: of the ball.
        steps: of the ascent.
        step_size: length of a step as a share of the radius; default 2.5 / steps, of a single step 1.25.
    """

    norm: Norm = "l2"
    steps: PositiveInt = 7
    step_size: PositiveFloat | None = None

    def at_random(self, sites: Mapping[str, SiteState], psr: float | Tensor, stream: Stream) -> Perturbation:
        """A random point of each site's ball."""
        return {
            name: inside(site, psr, self.norm, stream.child(name).torch(site.clean.device))
            for name, site in sites.items()
        }

    def climb(
        self,
        sites: Mapping[str, SiteState],
        psr: float | Tensor,
        start: Perturbation,
        objective: Callable[[Perturbation], Tensor],
    ) -> Perturbation:
        """The perturbation after all steps of ascent on an objective of each example, (B,)."""
        share = self.step_size or (2.5 / self.steps if self.steps > 1 else 1.25)
        delta = dict(start)
        for _ in range(self.steps):
            leaves = {name: value.detach().requires_grad_(True) for name, value in delta.items()}
            gradients = torch.autograd.grad(objective(leaves).sum(), list(leaves.values()))
            for (name, site), gradient in zip(sites.items(), gradients, strict=True):
                move = share * radius(site, psr, self.norm) * ascent(gradient, self.norm)
                delta[name] = project(delta[name] + move, site, psr, self.norm)
        return delta
