"""Hook `detector`: what tells receptions that somebody tampered with from others, at test time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

Fitted = Mapping[str, Tensor]
"""What a detector has learnt of a decoder's clean receptions, by name."""


class Detector(Defense):
    """Flags receptions whose score is above a threshold. Clean receptions of the images of `data.reserve` set it, for
    each decoder and SNR: no test image takes part in it.

    The link decides as it did; beside its metrics the table has `flagged`, the share of receptions that are flagged
    (clean: false alarms; attacked: detections), and for tasks with an accuracy `accuracy_passed`, that of receptions
    that pass, and `undetected_error`, the share of all that pass and are decided wrongly.

    An adversary who does not know the detector (`knowledge.defense: none`, `exact`) attacks the link alone.

    Attributes:
        false_alarm: share of clean receptions that are flagged.
        penalty: how much an adversary who knows the detector (`knowledge.defense: adaptive`) minds being flagged: its
            loss falls by penalty (s - threshold)+ / sigma, with sigma the standard deviation of clean scores (Carlini
            and Wagner, Adversarial Examples Are Not Easily Detected, 2017).
    """

    in_training: ClassVar[bool] = False

    false_alarm: Annotated[float, Field(gt=0, lt=1)] = 0.05
    penalty: NonNegativeFloat = 1.0

    @abstractmethod
    def fit(self, decoder: nn.Module, heard: Tensor, decisions: Tensor | None, stream: Stream) -> Fitted:
        """What it learns of clean receptions.

        Args:
            decoder: the decoder, in evaluation mode.
            heard: what it decodes, (M, ...) receptions.
            decisions: the class, or the sensing state, that it decides for each, (M,); None for tasks without.
            stream: random, by seed, decoder and SNR.
        """

    @abstractmethod
    def score(self, decoder: nn.Module, heard: Tensor, fitted: Fitted) -> Tensor:
        """How suspicious each reception is, (..., B) of (..., B, width); differentiable.

        Args:
            decoder: the decoder.
            heard: what it decodes.
            fitted: what `fit` found.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        return {"kind": "standard", "knowledge": {"defense": "adaptive"}}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: there are no images to set a threshold with.
        """
        if plan.dataset.reserve is None:
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' sets its threshold with images that neither a receiver nor "
                "a test holds; keep some of them with data.reserve."
            )
