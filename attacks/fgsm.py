"""The fast gradient sign method."""

from __future__ import annotations

import torch

from fedsem.hooks.budget import ascent, clip, fill, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius


@register("attack", "fgsm")
class Fgsm(Evasion):
    """One step up the gradient of the expected loss (Goodfellow et al., Explaining and Harnessing Adversarial
    Examples, 2015; [S3] section VI).

    `linf`: delta = eps sign(g), clipped to the image range. `l2`: delta = s g, clipped, with s such that the budget
    is met where the image range allows it.
    """

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        start: Perturbation = {name: torch.zeros_like(problem.sites[name].clean) for name in self.sites}
        gradient = problem.gradient(start, step=0)
        delta: Perturbation = {}
        for name in self.sites:
            site = problem.sites[name]
            if self.norm == "linf":
                delta[name] = clip(radius(site, problem.psr, "linf") * ascent(gradient[name], "linf"), site)
            else:
                full = l2_radius(site.energy, problem.psr).square()
                delta[name] = fill(ascent(gradient[name], "l2"), site, full)
        return delta
