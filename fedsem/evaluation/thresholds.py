"""Thresholds of sensing: what clean noise-only receptions exceed with a given probability."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedsem.channels.channel import Realisation
from fedsem.evaluation.air import Air
from fedsem.evaluation.reception import PICTURES_AT_ONCE, Receptions
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.models.mae_encoder import MaeEncoder

TIMES = 20
"""Noise-only receptions that set a threshold, for each that a detection is counted in: an interval knows nothing of the
threshold's own error, whose variance is then a twentieth of what it would be with as many."""
MOST_NUMBERS = 2**23
"""Numbers on air in them at most: bounds memory, and the number of receptions where each has many numbers."""
MOST_IMAGES = 1024
"""Training images that they are of; a MAE, which is slow to encode, has `PICTURES_AT_ONCE`."""


class Thresholds:
    """Sets the thresholds of a link on receptions of their own: clean ones, without a target, of training images, over
    draws that score nothing. They are the same at every PSR, and for what is clean, noise and attacked.

    Args:
        link: the trained link, behind a defense or none.
        scored: receptions of each test image.
    """

    def __init__(self, link: TrainedLink, scored: int) -> None:
        self.link, self.scored = link, scored
        self._set: dict[tuple[str, float], float | None] = {}
        self._receptions: Receptions | None = None

    def of(self, listener: Listener, snr_db: float) -> float | None:
        """The threshold of a decoder at an SNR; None for one that needs none."""
        if not self.link.is_sensing(listener):
            return None
        key = listener.name, snr_db
        if key not in self._set:
            self._set[key] = self._calibrated(listener, snr_db)
        return self._set[key]

    def _calibrated(self, listener: Listener, snr_db: float) -> float | None:
        self._receptions = self._receptions or self._silent()
        task, examples, pairs = self.link.plan.task(listener.branch), self._receptions.link.examples, []
        for _, heard in self._receptions.heard([listener], [snr_db], {}):
            with torch.no_grad():
                output = listener.decoder(heard.inputs)
            pairs.append((output, task.truth(examples, heard.realisation)))
        return task.calibrate(torch.cat([output for output, _ in pairs]), torch.cat([truth for _, truth in pairs]))

    def _silent(self) -> Receptions:
        """Receptions of training images without a target."""
        plan = self.link.plan
        most = PICTURES_AT_ONCE if isinstance(self.link.transmitter.encoder, MaeEncoder) else MOST_IMAGES
        held = replace(self.link, examples=plan.some_train_examples(most))
        # A target is there in every second reception that is scored.
        wanted = min(TIMES * self.scored * len(self.link.labels) // 2, MOST_NUMBERS // plan.channel_uses)
        return Receptions(held, _Silence(held, "threshold", max(1, -(-wanted // len(held.labels)))))


class _Silence(Air):
    """Draws without a target; made anew for each who asks, as there are many."""

    def score(self, listener: Listener) -> Realisation:
        drawn = self._draw(listener, self.draws, self.stream.child("score", listener.name))
        assert drawn.target is not None
        return replace(drawn, target=torch.zeros_like(drawn.target))
