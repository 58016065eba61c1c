"""Certified accuracy of a trained decoder under perturbations over the air."""

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
from fedsem.hooks.certificate import Certificate
from fedsem.units import energy, from_db, linf_radius


def certified_accuracy(
    certificate: Certificate,
    link: TrainedLink,
    air: Air,
    listener: Listener,
    snrs_db: Sequence[float],
    psrs_db: Sequence[float],
) -> dict[tuple[float, float], Tally]:
    """For each SNR and PSR, in how many receptions of each test image the decision is right and stays so
    (`fedsem.hooks.certificate.Certificate`).

    Args:
        certificate: says which decisions stay.
        link: the trained link.
        air: its channel draws; those of `evaluation.draws.score` are used.
        listener: one that the certificate serves.
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
                    failed = certificate.fails(task, decoder, heard.inputs.double(), eps.unsqueeze(-1) * moved, truth)
                sums[psr_db] += (1 - failed).sum(0).cpu().numpy()
        for psr_db, right in sums.items():
            found[snr_db, psr_db] = Tally(right, np.full(len(right), float(draws)), receptions=draws)
    return found
