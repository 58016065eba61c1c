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
from fedsem.units import energy, from_db, linf_radius


def can_certify(link: TrainedLink, listener: Listener) -> bool:
    """Whether interval bounds are known for this listener's decisions."""
    task = link.plan.task(listener.branch)
    return not link.plan.scenario.link.encoder.paints and task.bounded(listener.decoder)


def certified_accuracy(
    link: TrainedLink, air: Air, listener: Listener, snrs_db: Sequence[float], psrs_db: Sequence[float]
) -> dict[tuple[float, float], Tally]:
    """For each SNR and PSR, in how many receptions of each test image the decision is right and stays so.

    With the image, noise and fading of a reception fixed, the adversary adds any w with ||w||_inf <= sqrt(PSR E / nc)
    to what is on air, E being the energy of what is sent, and knows everything: the reception, its noise, both gains. w
    passes the gain g and the equaliser (`fedsem.channels.reach`) and then the decoder, whose outputs are bounded by
    `fedsem.models.interval_bounds` in float64. The share of such receptions is a lower bound of the accuracy that any
    attack at the site `air` alone and in the norm L-inf leaves over the same channel draws. It says nothing of the norm
    L2, whose ball does not lie in that cube, of perturbed images, or of budgets that hold on average only.

    Args:
        link: the trained link.
        air: its channel draws; those of `evaluation.draws.score` are used.
        listener: one for which `can_certify` holds.
        snrs_db: SNRs of the listener's channel.
        psrs_db: PSRs at the adversary's antenna.
    """
    plan, receptions = link.plan, Receptions(link, air)
    task, channel, symbols = plan.task(listener.branch), plan.channel(listener.branch), plan.scenario.link.symbols
    decoder, sent = copy.deepcopy(listener.decoder).double(), receptions.sent({}).x
    found = {}
    for snr_db in snrs_db:
        sums = {psr_db: np.zeros(len(link.labels)) for psr_db in psrs_db}
        draws = 0
        for _, heard in receptions.heard([listener], [snr_db], {}):
            moved = reach(channel, heard.realisation, snr_db, symbols, plan.channel_uses).double()
            truth = task.truth(link.examples, heard.realisation)
            draws += len(heard.inputs)
            for psr_db in psrs_db:
                eps = linf_radius(energy(sent).double(), from_db(psr_db), plan.channel_uses)
                with torch.no_grad():
                    failed = task.worst_failure(decoder, heard.inputs.double(), eps.unsqueeze(-1) * moved, truth)
                sums[psr_db] += (1 - failed).sum(0).cpu().numpy()
        for psr_db, right in sums.items():
            found[snr_db, psr_db] = Tally(right, np.full(len(right), float(draws)), receptions=draws)
    return found
