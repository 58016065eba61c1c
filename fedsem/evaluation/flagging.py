"""Detectors at test time: fitted on clean receptions of the reserve, asked for every reception of the test set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.detector import Detector, Fitted
from fedsem.plan import examples_of
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.sensing import Sensing

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

    def cost(self, heard: Tensor) -> Tensor:
        """What being flagged costs an adversary who knows of it, (..., B)."""
        score = self.detector.score(self.listener.decoder, heard, self.fitted)
        return self.detector.penalty * ((score - self.threshold) / self.spread).clamp_min(0)


class Alarms:
    """A link's detector, set for its listeners at the SNRs that are asked for.

    Half of the images of the reserve teach it what clean receptions are; the other half, which it has not seen, set the
    threshold.

    Args:
        link: the link, with a detector.
    """

    def __init__(self, link: TrainedLink) -> None:
        assert link.detector is not None
        self.link, self.detector = link, link.detector
        reserve = link.plan.dataset.reserve
        assert reserve is not None, "checked with the scenario"
        self._set: dict[tuple[str, float], Alarm] = {}
        order = Stream(link.seed).child("alarm").numpy().permutation(len(reserve))[: 2 * MOST_FITTED]
        self._receptions: list[Receptions] = []
        for part in (order[::2], order[1::2]):
            examples = examples_of(reserve.take(part), link.plan.device)
            held = replace(link, examples=replace(examples, images=examples.images.float() / 255))
            self._receptions.append(Receptions(held, Air(held, "alarm")))

    def alarm(self, listener: Listener, snr_db: float) -> Alarm:
        """The detector as it is set for a decoder at an SNR."""
        key = listener.name, snr_db
        if key not in self._set:
            seen, unseen = (self._heard(receptions, listener, snr_db) for receptions in self._receptions)
            stream = Stream(self.link.seed).child("alarm", listener.name, str(snr_db))
            decides = isinstance(self.link.plan.task(listener.branch), (Classification, Sensing))
            with torch.no_grad():
                decisions = listener.decoder(seen).argmax(-1) if decides else None
                fitted = self.detector.fit(listener.decoder, seen, decisions, stream)
                scores = self.detector.score(listener.decoder, unseen, fitted).double().cpu().numpy()
            threshold = float(np.quantile(scores, 1 - self.detector.false_alarm, method="higher"))
            spread = max(float(scores.std()), 1e-12)
            self._set[key] = Alarm(self.detector, listener, fitted, threshold, spread)
        return self._set[key]

    def _heard(self, receptions: Receptions, listener: Listener, snr_db: float) -> Tensor:
        rows, parts = FITTED_DRAWS * len(receptions.everything), []
        for _, heard in receptions.heard([listener], [snr_db], {}):
            parts.append(heard.inputs.flatten(0, 1))
            if sum(len(part) for part in parts) >= rows:
                break
        return torch.cat(parts)[:rows]
