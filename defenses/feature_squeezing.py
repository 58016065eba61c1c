"""Feature squeezing of the image before it is encoded."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fedsem.errors import ScenarioError
from fedsem.hooks.transform import Transform
from fedsem.plan import Plan
from fedsem.registry import register


@register("defense", "feature_squeezing")
class FeatureSqueezing(Transform):
    """Pixels are rounded to 2^bits levels, u -> round(u (2^bits - 1)) / (2^bits - 1), and each replaced by the median
    of the window around it (Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural
    Networks, 2018, section IV): the transmitter encodes the squeezed image.

    An adversary who knows it differentiates the median alone, as if nothing was rounded.

    Attributes:
        bits: bits of each colour of a pixel; 8: as they are.
        median: side of the median's window in pixels, odd; 1: none. Beyond the border the image goes on as in a mirror
            in the middle of its last pixels.
    """

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    median: Annotated[int, Field(ge=1, le=15)] = 1

    @model_validator(mode="after")
    def _squeezes(self) -> FeatureSqueezing:
        if self.median % 2 == 0:
            raise ValueError(f"'median' should be odd, so that a window has a middle, not {self.median}")
        if self.bits == 8 and self.median == 1:
            raise ValueError("with 8 bits and a median of 1 nothing is squeezed; lower 'bits' or raise 'median'")
        return self

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if self.median // 2 >= (side := min(plan.images.shape[1:])):
            raise ScenarioError(
                f"In the scenario, '{path}.median': a window of {self.median} pixels reaches beyond the mirror image "
                f"of a picture of {side}; lower it."
            )

    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        return self.stand_in((signal * levels).round() / levels if self.bits < 8 else signal, drawn)

    def stand_in(self, signal: Tensor, drawn: Tensor) -> Tensor:
        if self.median == 1:
            return signal
        margin = self.median // 2
        padded = F.pad(signal, (margin,) * 4, mode="reflect")
        windows = padded.unfold(2, self.median, 1).unfold(3, self.median, 1)
        return torch.median(windows.flatten(-2), dim=-1).values
