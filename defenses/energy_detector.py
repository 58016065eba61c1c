"""Energy detection of interference."""

from __future__ import annotations

from torch import Tensor, nn

from fedsem.hooks.detector import Detector, Fitted
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "energy_detector")
class EnergyDetector(Detector):
    """Flags receptions of more power than clean ones: the score is ||y||^2 over the numbers that the receiver decodes,
    after the equaliser, against a threshold for a given false-alarm rate (Urkowitz, Energy Detection of Unknown
    Deterministic Signals, 1967): the baseline that knows nothing of signal or jammer. Over AWGN, with real symbols of
    constant power, SNR ||y||^2 of a clean reception follows the noncentral chi-square law of nc degrees and
    noncentrality nc SNR.
    """

    def fit(self, decoder: nn.Module, heard: Tensor, decisions: Tensor | None, stream: Stream) -> Fitted:
        return {}

    def score(self, decoder: nn.Module, heard: Tensor, fitted: Fitted) -> Tensor:
        return heard.square().sum(-1)
