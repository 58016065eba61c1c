"""The least power that breaks an example."""

from __future__ import annotations

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from fedsem.errors import ScenarioError
from fedsem.hooks.evasion import Perturbation, Problem
from fedsem.plan import Plan
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import from_db, to_db

from .pgd import Pgd

JUDGES = -1
"""Number of the channel draws that decide: the steps' are 0 and more."""


@register("attack", "minimum_power")
class MinimumPower(Pgd):
    """The least PSR at which PGD breaks an example, found by bisection in dB, example by example (Sadeghi and Larsson,
    Adversarial Attacks on Deep-Learning Based Radio Signal Classification, 2019, algorithm 1; on images
    Moosavi-Dezfooli et al., DeepFool: A Simple and Accurate Method to Fool Deep Neural Networks, 2016).

    An example is broken where it fails in more than `threshold` of the channel draws that judge it. The grid's PSR is
    the most that is tried: what it does not break, and what fails without it, is left as it is. The table has
    `least_psr_db`, the mean over broken examples, and `broken`, their share, by the draws that judged; the accuracy
    beside them is that of other draws, as always.

    Attributes:
        halvings: of the interval from `floor_db` to the grid's PSR: 10 leave 0.1 dB of 100.
        floor_db: the least PSR that is tried, in dB.
        threshold: share of failed draws; for a task without decisions, a loss.
        judged_by: channel draws that decide whether an example is broken, others than those of the steps.
    """

    halvings: PositiveInt = 8
    floor_db: float = Field(-60.0, ge=-200, le=0)
    threshold: PositiveFloat = 0.5
    judged_by: PositiveInt = 64

    knows = {"weights": ("all",), "signal": ("exact",), "channel": ("statistics",)}
    minimal = True

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if self.targeted:
            raise ScenarioError(
                f"In the scenario, '{path}.targeted': 'minimum_power' asks what breaks an example, not what turns it "
                "into something; remove it, or use pgd."
            )
        if self.objective == "joint" or sum(bool(weight) for weight in self.goals(plan).values()) != 1:
            raise ScenarioError(
                f"In the scenario, '{path}.objective': whether an example is broken is asked of one task; name it."
            )

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        names: list[str] = list(self.sites)
        clean = problem.sites[names[0]].clean
        rows = problem.select(torch.arange(len(clean), device=clean.device))
        top = problem.psr if isinstance(problem.psr, torch.Tensor) else clean.new_full((len(clean),), problem.psr)
        high = to_db(top)
        low = high.clamp_max(self.floor_db)
        best: Perturbation = {name: torch.zeros_like(problem.sites[name].clean) for name in names}
        whole = problem.failures(best, JUDGES, self.judged_by) <= self.threshold
        level = high
        for _ in range(self.halvings + 1):
            rows.psr = from_db(level)
            delta = super().perturb(rows, stream)
            broken = whole & (problem.failures(delta, JUDGES, self.judged_by) > self.threshold)
            for name, value in delta.items():
                keep = broken.view(-1, *[1] * (value.dim() - 1))
                best[name] = torch.where(keep, value, best[name])
            high, low = torch.where(broken, level, high), torch.where(broken, low, level)
            level = (high + low) / 2
        return best
