"""Gaussian noise, the baseline that every attack is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("attack", "noise")
class Noise(Evasion):
    """White Gaussian noise of the full nominal PSR in every example, where clipping allows it.

    The name `noise` in a grid needs no entry in `attacks`; beside other attacks it stands for noise of the PSR that
    each of them achieved ([S3] figure 6 compares at equal nominal PSR, where clipping spares one more than the other).
    """

    knows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weights": ("none",),
        "signal": ("statistics",),
        "channel": ("statistics",),
    }

    def check(self, path: str, plan: Plan) -> None:
        for key in ("norm", "objective", "targeted", "surrogate", "draws"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ScenarioError(f"In the scenario, '{path}.{key}': noise aims at nothing; remove it.")
        super().check(path, plan)

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        energies: dict[str, Tensor] = {
            name: l2_radius(problem.sites[name].energy, problem.psr).square() for name in self.sites
        }
        return gaussian(problem.sites, energies, stream)
