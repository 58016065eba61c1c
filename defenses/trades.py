"""TRADES."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import LocalStep
from fedsem.registry import register
from fedsem.streams import Stream

from .ascent import Ascent

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("defense", "trades")
class Trades(Ascent):
    """L(u) + beta max_{||d|| <= r} D(f(u), f(u + d)): the loss of the clean batch, and how far the worst perturbation
    moves what decoders say, whether that is right or wrong (Zhang et al., Theoretically Principled Trade-off between
    Robustness and Accuracy, 2019). D is the Kullback-Leibler divergence of the class probabilities for classification
    and sensing, clean from perturbed as in the authors' code. Reconstruction has none: the mean squared distance of the
    two pictures stands in for it, which is that divergence, up to a factor, between normal distributions around them.
    Each task's D counts as its loss does, and is the mean over the channel draws of the step, each draw compared with
    itself, with the same dropout.

    The ascent climbs D from a random point of the ball, as D has no slope at its centre. It takes about 2 + `steps`
    times the time of plain training.

    Attributes:
        beta: weight of D; the authors use 1 to 6.
    """

    beta: PositiveFloat = 6.0

    def loss(self, step: LocalStep, stream: Stream) -> Tensor:
        psr = self.psr(step, stream)
        sites: dict[str, SiteState] = {name: step.site(name) for name in self.sites}
        clean = [decoding.output for decoding in step.decodings({})]
        fixed = [output.detach() for output in clean]
        start = self.at_random(sites, psr, stream)
        delta = self.climb(sites, psr, start, lambda delta: self._moved(step, fixed, delta))
        return step.loss({}) + self.beta * self._moved(step, clean, delta).mean()

    def _moved(self, step: LocalStep, clean: list[Tensor], delta: Perturbation) -> Tensor:
        """D of each example, (B,)."""
        there = step.decodings(delta)
        moved = [
            one.share * one.task.divergence(said, one.output).mean(0) for said, one in zip(clean, there, strict=True)
        ]
        return torch.stack(moved).sum(0)

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        trained = {branch: None for receiver in plan.receivers for branch in plan.trained_branches(receiver)}
        for branch in trained:
            if not plan.task(branch).compares:
                raise ScenarioError(
                    f"In the scenario, '{path}': 'trades' needs a distance between two outputs, and none is defined "
                    f"for the task '{branch.task}' of kind '{plan.task(branch).kind}'; use adversarial_training."
                )
