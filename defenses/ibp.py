"""Training with interval bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.loss import LocalStep, LossDefense
from fedsem.registry import register
from fedsem.scenario import Decibel
from fedsem.streams import Stream
from fedsem.tasks.decision import Decision
from fedsem.units import from_db, linf_radius

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("defense", "ibp")
class Ibp(LossDefense):
    """kappa L(z) + (1 - kappa) L(z_worst): z_worst are the worst logits that interval bounds allow a decoder while each
    number on air is changed by at most eps (Gowal et al., On the Effectiveness of Interval Bound Propagation for
    Training Verifiably Robust Models, 2018; with the last layer and the difference to the true class taken as one). It
    acts on decoders of classification and sensing that are dense networks; other tasks keep their loss.

    eps = sqrt(PSR E / nc) with E the energy on air, the L-inf radius of `psr_db`; what it amounts to where a decoder
    listens depends on the reception: eps over AWGN, eps |g| / |h| with zero forcing, whose rare huge values make `mmse`
    the better equaliser to train with. From `start` to `end` of the training, eps grows from 0 in a straight line,
    and kappa falls from 1 to `kappa`. It takes little more time than plain training.

    What is certified is the decoder: perturbations over the air, not those of the image.

    Attributes:
        psr_db: PSR over the air in dB.
        kappa: weight of the plain loss in the end.
        start: share of the training after which eps begins to grow.
        end: share of the training after which it has its full size.
    """

    psr_db: Decibel
    kappa: Annotated[float, Field(ge=0, le=1)] = 0.5
    start: Annotated[float, Field(ge=0, lt=1)] = 0.1
    end: Annotated[float, Field(gt=0, le=1)] = 0.6

    def loss(self, step: LocalStep, stream: Stream) -> Tensor:
        total, site = step.loss({}), step.site("air")
        grown = min(1.0, max(0.0, (step.progress - self.start) / (self.end - self.start)))
        if grown == 0:
            return total
        eps = grown * linf_radius(site.energy, from_db(self.psr_db), site.clean[0].numel())
        weight = grown * (1 - self.kappa)
        for one in step.decodings({}):
            if isinstance(one.task, Decision) and one.task.bounded(one.decoder):
                box = eps.unsqueeze(-1) * step.reach(one.name)
                worst = one.task.worst_objective(one.decoder, one.heard, box, one.truth)
                total = total + weight * one.share * (worst - one.task.loss(one.output, one.truth)).mean()
        return total

    def check(self, path: str, plan: Plan) -> None:
        if self.end <= self.start:
            raise ScenarioError(
                f"In the scenario, '{path}.end': {self.end:g} is not after 'start' {self.start:g}; raise it."
            )
        if plan.scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': 'ibp' bounds dense decoders of received numbers, and link.encoder "
                f"'{plan.scenario.link.encoder.kind}' paints pictures; use the encoder 'cnn'."
            )
        with torch.random.fork_rng(devices=[]):
            pairs = ((plan.task(branch), plan.new_decoder(branch)) for branch in plan.branches)
            if not any(isinstance(task, Decision) and task.bounded(decoder) for task, decoder in pairs):
                raise ScenarioError(
                    f"In the scenario, '{path}': 'ibp' needs a task of kind classification or sensing with a dense "
                    "decoder, and there is none; add one, or remove it."
                )
