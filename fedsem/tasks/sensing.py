"""Detection of a target from its reflection, and of its range bin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.models.interval_bounds import difference_bounds
from fedsem.models.mlp import mlp
from fedsem.registry import register
from fedsem.tasks.decision import Decision
from fedsem.tasks.task import DecoderFormat, Examples, Share

FALSE_ALARM_RATE = 0.1
"""P_FA at which the probability of detection is reported (design section 4)."""

WIDEST = 256
"""Neurons of the first layer at most: a MAE's waveform has tens of thousands of numbers."""


@register("task", "sensing")
class Sensing(Decision):
    """[S3] section IV: dense nc, nc/2 (ReLU), then two outputs (absent, present); cross-entropy.

    Attributes:
        range: the decoder also tells the range bin: outputs (absent, bin 0, ..., bin D - 1).
    """

    range: bool = False

    @property
    def is_sensing(self) -> bool:
        return True

    def build(self, decoder: DecoderFormat) -> nn.Module:
        outputs = 1 + (decoder.range_bins if self.range else 1)
        first = min(decoder.channel_uses, WIDEST)
        return mlp(decoder.width, (first, max(first // 2, 1)), outputs)

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        assert realisation.target is not None
        return realisation.target if self.range else realisation.target.clamp_max(1)

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return 1 + (decoder.range_bins if self.range else 1)

    def aim(self, goal: int, examples: Examples) -> Tensor:
        return torch.full_like(examples.labels, goal)

    def worst_failure(self, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        absent = torch.zeros_like(truth.expand(heard.shape[:-1]))
        below, above = difference_bounds(decoder, heard, radius, absent)
        # The log-odds of a target grow with every difference to "absent", which is itself exactly 0.
        may_miss, may_see = _score(below) <= 0, _score(above) > 0
        return torch.where(truth > 0, may_miss, may_see).to(heard.dtype)

    def calibrate(self, output: Tensor, truth: Tensor) -> float | None:
        """The score that clean noise-only receptions exceed with probability `FALSE_ALARM_RATE`."""
        absent = _score(output)[truth == 0]
        if absent.numel() == 0:
            return None
        rank = min(int((1 - FALSE_ALARM_RATE) * absent.numel()), absent.numel() - 1)
        return float(absent.flatten().sort().values[rank])

    def decisions(self, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a target is present, 0 or 1."""
        return (_score(output) > 0).long(), truth.clamp_max(1)

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """`accuracy` of presence; `misses` and `ghosts` (shares of present and absent targets told wrongly);
        `detection_at_pfa_0.1` with the clean threshold, set on other receptions; with `range` also `range_accuracy`
        given a target."""
        score, present = _score(output), (truth > 0).float()
        absent, says = 1 - present, (score > 0).float()
        right = says * present + (1 - says) * absent
        shares = {
            "accuracy": Share(right, torch.ones_like(right)),
            "misses": Share((1 - says) * present, present),
            "ghosts": Share(says * absent, absent),
        }
        if threshold is not None:
            shares["detection_at_pfa_0.1"] = Share((score > threshold).float() * present, present)
        if self.range:
            told = (output[..., 1:].argmax(-1) + 1 == truth).float()
            shares["range_accuracy"] = Share(told * present, present)
        return shares

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Share of receptions of other states that are taken for the state aimed at: absent where the receiver misses,
        else the likeliest bin."""
        said = torch.where(_score(output) > 0, output[..., 1:].argmax(-1) + 1, 0)
        other = (truth != aim).float()
        return Share((said == aim).float() * other, other)


def _score(output: Tensor) -> Tensor:
    """Log-odds that a target is present."""
    return output[..., 1:].logsumexp(-1) - output[..., 0]
