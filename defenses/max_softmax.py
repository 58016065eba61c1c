"""The confidence of the decision as a detector."""

from __future__ import annotations

from torch import Tensor, nn

from fedsem.hooks.detector import Detector, Fitted
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "max_softmax")
class MaxSoftmax(Detector):
    """Flags decisions of little confidence: the score is -log max_c p_c, of the decoder's softmax (Hendrycks and
    Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks, 2017). A
    control: an attack that goes on raising the loss makes its wrong decisions confident.
    """

    needs_decisions = True

    def fit(self, decoder: nn.Module, heard: Tensor, decisions: Tensor | None, stream: Stream) -> Fitted:
        return {}

    def score(self, decoder: nn.Module, heard: Tensor, fitted: Fitted) -> Tensor:
        return -decoder(heard).log_softmax(-1).amax(-1)
