"""Jamming: waveforms that know nothing of what they disturb."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from fedsem.channels.symbols import from_air, uses
from fedsem.errors import ScenarioError
from fedsem.hooks.budget import radius, unit
from fedsem.hooks.evasion import Evasion, Perturbation, Problem, Site
from fedsem.registry import register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

NEEDS = {"duty": "pulsed", "frequency": "tone"}
"""Options of one waveform alone."""


@register("attack", "jamming")
class Jamming(Evasion):
    """A jammer over the air that knows nothing but the energy that it may spend on each example, PSR E = n P with P the
    mean power in its n symbols, and spends exactly that (Poisel, Modern Communications Jamming Principles and
    Techniques, 2011). The baselines of attacks over the air.

    Symbols are those of `link.symbols`: real, or complex of two numbers each. Every example is jammed anew: noise,
    pulses and phases are drawn for each.

    Attributes:
        waveform: `gaussian`: white noise; `pulsed`: white noise in a random share of the symbols, and nothing in the
            others, so that power varies: a symbol that is hit meets P / duty; `tone`: sqrt(2 P) cos(2 pi f i + phi) in
            real symbol i, sqrt(P) exp(j (2 pi f i + phi)) in a complex one, with a random phase phi.
        duty: share of the symbols that are hit, rounded, at least one symbol; `pulsed` only.
        frequency: f of the tone in cycles per symbol, half a cycle at most; None: random, uniform over 0 to 0.5 for
            real symbols, -0.5 to 0.5 for complex ones; `tone` only.
    """

    sites: list[Site] = Field(["air"], min_length=1)
    waveform: Literal["gaussian", "pulsed", "tone"] = "gaussian"
    duty: Annotated[float, Field(gt=0, le=1)] = 0.25
    frequency: Annotated[float, Field(ge=-0.5, le=0.5)] | None = None

    knows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weights": ("none",),
        "signal": ("statistics",),
        "channel": ("statistics",),
    }

    def check(self, path: str, plan: Plan) -> None:
        for key in ("norm", "objective", "targeted", "surrogate", "draws"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ScenarioError(f"In the scenario, '{path}.{key}': jamming aims at nothing; remove it.")
        if self.sites != ["air"]:
            raise ScenarioError(f"In the scenario, '{path}.sites': jamming acts over the air; use sites: [air].")
        for key, waveform in NEEDS.items():
            if self.waveform != waveform and getattr(self, key) != type(self).model_fields[key].default:
                raise ScenarioError(
                    f"In the scenario, '{path}.{key}': only waveform: {waveform} has it; remove it, or jam with that."
                )
        super().check(path, plan)

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        site = problem.sites["air"]
        count = uses(site.clean[0].numel(), problem.symbols)
        # Drawn on the CPU and in double precision: the same on every device, and energies exact in float32.
        dtype = torch.complex128 if problem.symbols == "complex" else torch.float64
        wave = self.wave(len(site.clean), count, dtype, stream.torch())
        direction = unit(from_air(wave, problem.symbols).reshape(site.clean.shape)).to(site.clean)
        return {"air": direction * radius(site, problem.psr, "l2")}

    def wave(self, rows: int, count: int, dtype: torch.dtype, generator: Generator) -> Tensor:
        """So many symbols for each row, (rows, count), of any power."""
        if self.waveform == "tone":
            return self._tone(rows, count, dtype, generator)
        noise = torch.randn((rows, count), generator=generator, dtype=dtype)
        if self.waveform == "gaussian":
            return noise
        hit = torch.rand((rows, count), generator=generator).argsort(1)[:, : max(1, round(self.duty * count))]
        return torch.zeros_like(noise).scatter(1, hit, noise)

    def _tone(self, rows: int, count: int, dtype: torch.dtype, generator: Generator) -> Tensor:
        drawn, phase = torch.rand((2, rows, 1), generator=generator, dtype=torch.float64)
        # A real tone of frequency -f is one of frequency f.
        frequency = drawn - 0.5 if dtype.is_complex else 0.5 * drawn
        if self.frequency is not None:
            frequency = torch.full_like(frequency, self.frequency)
        angle = 2 * math.pi * (frequency * torch.arange(count) + phase)
        return torch.polar(torch.ones_like(angle), angle) if dtype.is_complex else angle.cos()
