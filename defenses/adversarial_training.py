"""Adversarial training."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedsem.hooks.budget import ascent, inside, project, radius
from fedsem.hooks.evasion import Norm, Perturbation
from fedsem.hooks.loss import LocalStep
from fedsem.registry import register
from fedsem.streams import Stream

from .perturbed_training import PerturbedTraining


@register("defense", "adversarial_training")
class AdversarialTraining(PerturbedTraining):
    """Receivers minimise the loss at the worst perturbation that projected gradient ascent finds in every batch,
    min_w E max_{||d|| <= r} L(w, u + d) (Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks,
    2018), of their images, of what is on air, or of both. With one step from a random point it is "fast" adversarial
    training (Wong, Rice and Kolter, Fast Is Better than Free, 2020; there with a step of 1.25 radii).

    The channel draws of the step are the same in all ascent steps and in the descent step. It takes about
    1 + `steps` times the time of plain training.

    Attributes:
        norm: of the ball.
        steps: of the ascent.
        step_size: length of a step as a share of the radius; default 2.5 / steps, of a single step 1.25.
        random_start: start at a random point of the ball instead of its centre.
    """

    norm: Norm = "l2"
    steps: PositiveInt = 7
    step_size: PositiveFloat | None = None
    random_start: bool = True

    def perturb(self, step: LocalStep, psr: float | Tensor, stream: Stream) -> Perturbation:
        sites = {name: step.site(name) for name in self.sites}
        delta: Perturbation = {
            name: inside(site, psr, self.norm, stream.child(name).torch(site.clean.device))
            if self.random_start
            else torch.zeros_like(site.clean)
            for name, site in sites.items()
        }
        share = self.step_size or (2.5 / self.steps if self.steps > 1 else 1.25)
        for _ in range(self.steps):
            leaves = {name: value.detach().requires_grad_(True) for name, value in delta.items()}
            gradients = torch.autograd.grad(step.losses(leaves).sum(), list(leaves.values()))
            for (name, site), gradient in zip(sites.items(), gradients, strict=True):
                move = share * radius(site, psr, self.norm) * ascent(gradient, self.norm)
                delta[name] = project(delta[name] + move, site, psr, self.norm)
        return delta
