"""The sinusoidal backdoor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.poison import Backdoor
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Plan

Amplitude = Annotated[float, Field(gt=0, le=1)]


@register("attack", "sig")
class Sig(Backdoor):
    """SIG: a faint horizontal sinusoid over the whole image, without touching a label (Barni, Kallas and Tondi, A New
    Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, 2019):
    u' = clip(u + v) with v(i, j) = amplitude sin(2 pi j frequency / width) at column j = 1 .. width, in all colours.

    Attributes:
        amplitude: of pixels in [0, 1], in training; 20 / 255 in the paper.
        test_amplitude: the same at test time, which the paper lets differ; None: as in training.
        frequency: periods over the width; 6 in the paper.
        clean_label: only images of the target class are poisoned (`samples` is the share of those), so that labels
            stay true, as in the paper. false: any image is, and takes the target's label.
    """

    amplitude: Amplitude = 20 / 255
    test_amplitude: Amplitude | None = None
    frequency: PositiveFloat = 6.0
    clean_label: bool = True

    def eligible(self, plan: Plan, labels: np.ndarray) -> np.ndarray:
        if not self.clean_label:
            return super().eligible(plan, labels)
        return labels == next(iter(self.goals(plan).values()))

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        return self._added(images, self.amplitude)

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        return self._added(images, self.amplitude if self.test_amplitude is None else self.test_amplitude)

    def _added(self, images: Tensor, amplitude: float) -> Tensor:
        width = images.shape[-1]
        columns = torch.arange(1, width + 1, device=images.device)
        return (images + amplitude * torch.sin(2 * math.pi * columns * self.frequency / width)).clamp(0, 1)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: true labels cannot teach what is asked for.
        """
        super().check(path, plan)
        goals = self.goals(plan)
        classes = all(isinstance(plan.scenario.tasks[task], Classification) for task in goals)
        if self.clean_label and (not classes or len(set(goals.values())) > 1):
            raise ScenarioError(
                f"In the scenario, '{path}.clean_label': with true labels a backdoor can aim at one class alone; aim "
                "at that, or set clean_label: false."
            )
