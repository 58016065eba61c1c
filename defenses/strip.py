"""STRIP."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedsem.hooks.detector import Detector, Fitted
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "strip")
class Strip(Detector):
    """Flags receptions whose decision something else hardly changes (Gao et al., STRIP: A Defence Against Trojan
    Attacks on Deep Neural Networks, 2019): what is received is superimposed with clean receptions of other images,
    (y + y_k) / sqrt 2, and the score is minus the mean entropy of the decoder's softmax, H = -1/K sum_k sum_c p_kc
    log2 p_kc. A trigger goes on deciding: its entropy is low. The paper superimposes images; a receiver has receptions.

    An evasion attack is the other way round: it sits close to a border, and what is added moves it across; `flags:
    high` takes receptions of high entropy for attacks.

    Attributes:
        overlays: K, clean receptions that are superimposed, the same for all.
        flags: which entropy is suspicious: `low` (triggers) or `high` (evasion).
    """

    needs_decisions = True

    overlays: PositiveInt = 16
    flags: Literal["low", "high"] = "low"

    def fit(self, decoder: nn.Module, heard: Tensor, decisions: Tensor | None, stream: Stream) -> Fitted:
        order = torch.randperm(len(heard), generator=stream.torch())[: self.overlays]
        return {"overlays": heard[order.to(heard.device)]}

    def score(self, decoder: nn.Module, heard: Tensor, fitted: Fitted) -> Tensor:
        total = torch.zeros(heard.shape[:-1], dtype=heard.dtype, device=heard.device)
        for overlay in fitted["overlays"]:
            logs = decoder((heard + overlay) / 2**0.5).log_softmax(-1)
            total = total - (logs.exp() * logs).sum(-1)
        entropy = total / (len(fitted["overlays"]) * torch.log(heard.new_tensor(2.0)))
        return -entropy if self.flags == "low" else entropy
