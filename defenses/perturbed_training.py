"""Training on perturbed batches: what adversarial training, TRADES and noise augmentation share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.evasion import Perturbation, Site
from fedsem.hooks.loss import LocalStep, LossDefense
from fedsem.scenario import Level, Uniform
from fedsem.streams import Stream
from fedsem.units import from_db

if TYPE_CHECKING:
    from fedsem.plan import Plan


class Perturbing(LossDefense):
    """Perturbations are found anew for every batch.

    Attributes:
        psr_db: PSR of the perturbation in dB, one for all, or {uniform: [low, high]}: one for each image of a batch.
        sites: where it acts; with both, each site has the whole PSR.
        warmup: share of the training in which the radius grows from 0 in a straight line; 0: it is full from the start.
            A network that meets a large radius before it has learnt anything may never leave chance.
    """

    psr_db: Level
    sites: list[Site] = Field(["input"], min_length=1)
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0

    def psr(self, step: LocalStep, stream: Stream) -> float | Tensor:
        """The PSR (linear) of a batch, a number or one for each image, (B,)."""
        # The radius goes with the root of the PSR.
        grown = min(1.0, step.progress / self.warmup) ** 2 if self.warmup else 1.0
        if not isinstance(self.psr_db, Uniform):
            return grown * from_db(self.psr_db)
        low, high = self.psr_db.uniform
        energies = step.site("input").energy
        drawn = torch.rand(energies.shape, generator=stream.child("psr").torch(energies.device), device=energies.device)
        return grown * from_db(low + (high - low) * drawn)

    def check(self, path: str, plan: Plan) -> None:
        if len(set(self.sites)) != len(self.sites):
            raise ScenarioError(f"In the scenario, '{path}.sites': lists a site twice.")
        if "air" in self.sites and plan.scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}.sites': what is on air has no fixed place where chosen patches are sent; "
                "use sites: [input], or the encoder 'cnn'."
            )


class PerturbedTraining(Perturbing):
    """The loss is c L(clean) + (1 - c) L(perturbed), on the same channel draws.

    Attributes:
        clean: c, the weight of the clean loss.
    """

    clean: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @abstractmethod
    def perturb(self, step: LocalStep, psr: float | Tensor, stream: Stream) -> Perturbation:
        """The perturbation of a batch at a PSR (linear), a number or one for each image, (B,)."""

    def loss(self, step: LocalStep, stream: Stream) -> Tensor:
        perturbed = step.loss(self.perturb(step, self.psr(step, stream), stream))
        return perturbed if self.clean == 0 else self.clean * step.loss({}) + (1 - self.clean) * perturbed
