"""Certified accuracy of a trained decoder under perturbations over the air, by interval bounds."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from fedsem.channels.reach import reach
from fedsem.evaluation.air import Air
from fedsem.evaluation.point import Tally
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.tasks.decision import Decision
from fedsem.units import energy, from_db, linf_radius


def certified_accuracy(
    link: TrainedLink, air: Air, listener: Listener, snr_db: float, psrs_db: Sequence[float]
) -> dict[float, Tally]:
    """For each PSR, in how many receptions of each test image the decision is right and stays so.

    With the image, noise and fading of a reception fixed, the adversary adds any w with ||w||_inf <= sqrt(PSR E / nc)
    to what is on air, E being the energy of what is sent, and knows everything: the reception, its noise, both gains. w
    passes the gain g and the equaliser (`fedsem.channels.reach`) and then the decoder, whose outputs are bounded by
    `fedsem.models.interval_bounds` in float64. The share of such receptions is a lower bound of the accuracy that any
    attack at the site `air` alone and in the norm L-inf leaves over the same channel draws. It says nothing of the norm
    L2, whose ball does not lie in that cube, of perturbed images, or of budgets that hold on average only.

    Args:
        link: the trained link.
        air: its channel draws; those of `evaluation.draws.score` are used.
        listener: one whose decoder has bounds (`Decision.bounded`).
        snr_db: SNR of the listener's channel.
        psrs_db: PSRs at the adversary's antenna.
    """
    plan, receptions = link.plan, Receptions(link, air)
    task, channel, symbols = plan.task(listener.branch), plan.channel(listener.branch), plan.scenario.link.symbols
    assert isinstance(task, Decision), "checked with the scenario"
    decoder, power = copy.deepcopy(listener.decoder).double(), energy(receptions.sent({}).x).double()
    found = {psr_db: Tally(np.zeros(len(link.labels)), np.zeros(len(link.labels))) for psr_db in psrs_db}
    for _, heard in receptions.heard([listener], [snr_db], {}):
        moved = reach(channel, heard.realisation, snr_db, symbols, plan.channel_uses).double()
        truth = task.truth(link.examples, heard.realisation)
        for psr_db, tally in found.items():
            eps = linf_radius(power, from_db(psr_db), plan.channel_uses)
            with torch.no_grad():
                failed = task.worst_failure(decoder, heard.inputs.double(), eps.unsqueeze(-1) * moved, truth)
            tally.numerator += (1 - failed).sum(0).cpu().numpy()
            tally.denominator += len(failed)
            tally.receptions += len(failed)
    return found
