"""Scoring a perturbation: every listener's metrics over the shared channel draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.point import Tally
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation

ROWS_AT_ONCE = 4096
"""Receptions decoded at once: bounds memory (a reconstruction is 3,072 numbers each); results do not depend on it."""

Scores = dict[tuple[str, str, str], dict[str, Tally]]
"""Receiver group, task, channel -> metric -> tally."""


class Scorer:
    """Scores perturbations of a trained link; thresholds that clean receptions set are kept.

    Args:
        link: the trained link.
        air: its channel draws.
    """

    def __init__(self, link: TrainedLink, air: Air) -> None:
        self.link, self.air = link, air
        self.thresholds: dict[tuple[str, float], float | None] = {}
        self._clean: Tensor | None = None

    def sent(self, delta: Perturbation) -> Tensor:
        """Transmitted numbers (N, nc) for the perturbed test images."""
        if "input" not in delta and self._clean is not None:
            return self._clean
        images = self.link.images + delta["input"] if "input" in delta else self.link.images
        with torch.no_grad():
            batch = self.link.plan.scenario.evaluation.batch
            x = torch.cat([self.link.transmitter(part) for part in images.split(batch)])
        if "input" not in delta:
            self._clean = x
        return x

    def score(
        self, listeners: list[Listener], snr_db: float, delta: Perturbation, attack: Evasion | None = None
    ) -> Scores:
        """Metrics of these listeners at an SNR; with a targeted attack, also how far it reached its goal."""
        x = self.sent(delta)
        scores: Scores = {}
        for listener in listeners:
            threshold = self._threshold(listener, snr_db)
            goal = attack.targeted.get(listener.branch.task) if attack is not None else None
            task = self.link.plan.task(listener.branch)
            key = (listener.group, listener.branch.task, listener.branch.channel)
            into = scores.setdefault(key, {})
            for output, truth, draws in self._outputs(listener, snr_db, x, delta):
                shares = task.metrics(output, truth, threshold)
                if goal is not None:
                    aim = task.aim(goal, self.link.images, self.link.labels)
                    shares["reached"] = task.reached(output, truth, aim)
                # NaN has a largest entry too: without this a link that has broken down would score like chance.
                broken = ~output.isfinite().flatten(2).all(-1)
                for metric, share in shares.items():
                    tally = into.get(metric)
                    if tally is None:
                        tally = into[metric] = Tally(np.zeros(len(x)), np.zeros(len(x)))
                    tally.numerator += share.numerator.double().masked_fill(broken, torch.nan).sum(0).cpu().numpy()
                    tally.denominator += share.denominator.double().sum(0).cpu().numpy()
                    tally.receptions += draws
        return scores

    def _threshold(self, listener: Listener, snr_db: float) -> float | None:
        key = (listener.name, snr_db)
        if key not in self.thresholds:
            self.thresholds[key] = None
            if self.link.is_sensing(listener):
                pairs = [(output, truth) for output, truth, _ in self._outputs(listener, snr_db, self.sent({}), {})]
                self.thresholds[key] = self.link.plan.task(listener.branch).calibrate(
                    torch.cat([output for output, _ in pairs]), torch.cat([truth for _, truth in pairs])
                )
        return self.thresholds[key]

    def _outputs(
        self, listener: Listener, snr_db: float, x: Tensor, delta: Perturbation
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield decoder output, truth and number of draws, some draws of the whole test set at a time."""
        plan, channel = self.link.plan, self.link.plan.channel(listener.branch)
        whole = self.air.score(listener)
        draws = len(whole.noise)
        chunk = max(1, ROWS_AT_ONCE // len(x))
        for start in range(0, draws, chunk):
            part = whole.draws(slice(start, start + chunk))
            with torch.no_grad():
                received = channel.apply(x, part, snr_db, plan.scenario.link.symbols, delta.get("air"))
                output = listener.decoder(received)
            truth = plan.task(listener.branch).truth(self.link.images, self.link.labels, part)
            yield output, truth, len(part.noise)
