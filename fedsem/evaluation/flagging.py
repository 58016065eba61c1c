"""Detectors at test time: fitted on clean receptions of the reserve, asked for every reception of the test set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsem.data.dataset import Split
from fedsem.evaluation.air import Air
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.detector import Detector, Fitted
from fedsem.plan import examples_of
from fedsem.streams import Stream
from fedsem.tasks.decision import Decision

MOST_FITTED = 2048
"""Images of the reserve that a detector is fitted on, and as many that set its threshold, at most."""
FITTED_DRAWS = 4
"""Receptions of each of them."""


@dataclass(frozen=True)
class Alarm:
    """A detector as it is set for a decoder at an SNR.

    Attributes:
        detector: the detector.
        listener: whose receptions it watches.
        fitted: what it has learnt of them.
        threshold: the score above which it flags.
        spread: standard deviation of clean scores.
    """

    detector: Detector
    listener: Listener
    fitted: Fitted
    threshold: float
    spread: float

    def flags(self, heard: Tensor) -> Tensor:
        """Whether each reception is flagged, (..., B); one whose score is not a number is."""
        with torch.no_grad():
            return ~(self.detector.score(self.listener.decoder, heard, self.fitted) <= self.threshold)

    def excess(self, heard: Tensor) -> Tensor:
        """How far each reception is above the threshold, (..., B), in standard deviations of clean scores;
        differentiable."""
        return self.distance(heard).clamp_min(0)

    def distance(self, heard: Tensor) -> Tensor:
        """The same, negative below the threshold."""
        score = self.detector.score(self.listener.decoder, heard, self.fitted)
        return (score - self.threshold) / self.spread


class Alarms:
    """A detector, set for a link's listeners at the SNRs that are asked for.

    Half of the images of the reserve teach it what clean receptions are; the other half, which it has not seen, set the
    threshold.

    Args:
        link: the link; of an adversary with a surrogate, that.
        detector: the detector.
        reserve: images that neither a receiver nor a test holds.
    """

    def __init__(self, link: TrainedLink, detector: Detector, reserve: Split) -> None:
        self.link, self.detector = link, detector
        self._set: dict[tuple[str, float], Alarm] = {}
        order = Stream(link.seed).child("alarm").numpy().permutation(len(reserve))[: 2 * MOST_FITTED]
        self._receptions: list[Receptions] = []
        for name, part in (("fit", order[::2]), ("threshold", order[1::2])):
            examples = examples_of(reserve.take(part), link.plan.device)
            held = replace(link, examples=replace(examples, images=examples.images.float() / 255))
            self._receptions.append(Receptions(held, Air(held, f"alarm-{name}", FITTED_DRAWS)))

    def alarm(self, listener: Listener, snr_db: float) -> Alarm | None:
        """The detector as it is set for a decoder at an SNR; None for a decoder that it does not watch."""
        key = listener.name, snr_db
        decides = isinstance(self.link.plan.task(listener.branch), Decision)
        if self.detector.needs_decisions and not decides:
            return None
        if key not in self._set:
            seen, unseen = (self._heard(receptions, listener, snr_db) for receptions in self._receptions)
            stream = Stream(self.link.seed).child("alarm", listener.name, str(snr_db))
            with torch.no_grad():
                decisions = listener.decoder(seen).argmax(-1) if decides else None
                fitted = self.detector.fit(listener.decoder, seen, decisions, stream)
                scores = self.detector.score(listener.decoder, unseen, fitted).double().cpu().numpy()
            threshold = float(np.quantile(scores, 1 - self.detector.false_alarm, method="higher"))
            spread = max(float(scores.std()), 1e-12)
            self._set[key] = Alarm(self.detector, listener, fitted, threshold, spread)
        return self._set[key]

    def _heard(self, receptions: Receptions, listener: Listener, snr_db: float) -> Tensor:
        """All receptions of some images of the reserve, (M, width)."""
        return torch.cat([heard.inputs.flatten(0, 1) for _, heard in receptions.heard([listener], [snr_db], {})])
