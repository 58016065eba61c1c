"""Training with Gaussian noise."""

from __future__ import annotations

from torch import Tensor

from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import LocalStep
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius

from .perturbed_training import PerturbedTraining


@register("defense", "noise_augmentation")
class NoiseAugmentation(PerturbedTraining):
    """Receivers learn from images, or from signals on air, with white Gaussian noise of a given PSR, new in every step
    ([S3] section VI; the training of Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized
    Smoothing, 2019, and what adversarial training has to be better than)."""

    def perturb(self, step: LocalStep, psr: float | Tensor, stream: Stream) -> Perturbation:
        sites: dict[str, SiteState] = {name: step.site(name) for name in self.sites}
        energies = {name: l2_radius(site.energy, psr).square() for name, site in sites.items()}
        return gaussian(sites, energies, stream.child("noise"))
