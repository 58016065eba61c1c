"""Gaussian noise, the baseline that every attack is compared with."""

from __future__ import annotations

from torch import Tensor

from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius


@register("attack", "noise")
class Noise(Evasion):
    """White Gaussian noise of the full nominal PSR in every example, where clipping allows it.

    The name `noise` in a grid needs no entry in `attacks`; beside other attacks it stands for noise of the PSR that
    each of them achieved ([S3] figure 6 compares at equal nominal PSR, where clipping spares one more than the other).
    """

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        energies: dict[str, Tensor] = {
            name: l2_radius(problem.sites[name].energy, problem.psr).square() for name in self.sites
        }
        return gaussian(problem.sites, energies, stream)
