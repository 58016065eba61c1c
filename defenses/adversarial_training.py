"""Adversarial training."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import LocalStep
from fedsem.registry import register
from fedsem.streams import Stream

from .ascent import Ascent
from .perturbed_training import PerturbedTraining


@register("defense", "adversarial_training")
class AdversarialTraining(Ascent, PerturbedTraining):
    """Receivers minimise the loss at the worst perturbation that projected gradient ascent finds in every batch,
    min_w E max_{||d|| <= r} L(w, u + d) (Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks,
    2018), of their images, of what is on air, or of both. With one step from a random point it is "fast" adversarial
    training (Wong, Rice and Kolter, Fast Is Better than Free, 2020; there with a step of 1.25 radii). With `steps: 1`
    and `random_start: false` it is training on FGSM (Goodfellow et al., Explaining and Harnessing Adversarial Examples,
    2015; there with `clean: 0.5`).

    It takes about 1 + `steps` times the time of plain training.

    Attributes:
        random_start: start at a random point of the ball instead of its centre.
    """

    random_start: bool = True

    def perturb(self, step: LocalStep, psr: float | Tensor, stream: Stream) -> Perturbation:
        sites: dict[str, SiteState] = {name: step.site(name) for name in self.sites}
        centre: Perturbation = {name: torch.zeros_like(site.clean) for name, site in sites.items()}
        start = self.at_random(sites, psr, stream) if self.random_start else centre
        return self.climb(sites, psr, start, step.losses)
