"""Hook `detector`: what tells receptions that somebody tampered with from others, at test time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.streams import Stream
from fedsem.tasks.decision import Decision

if TYPE_CHECKING:
    from fedsem.plan import Plan

Fitted = Mapping[str, Tensor]
"""What a detector has learnt of a decoder's clean receptions, by name."""


class Detector(Defense):
    """Flags receptions whose score is above a threshold. Clean receptions of the images of `data.reserve` set it, for
    each decoder and SNR: no test image takes part in it.

    The link decides as it did; beside its metrics the table has `flagged`, the share of receptions that are flagged
    (clean: false alarms; attacked: detections), and for tasks with an accuracy `accuracy_passed`, that of receptions
    that pass, and `passed_right` and `undetected_error`, the shares of all that pass and are decided rightly, and
    wrongly. A link is judged by the first where nobody attacks and by the second under attack: a false alarm is an
    error like others, and an attack that is flagged has failed.

    An adversary who does not work around the detector (`knowledge.defense: none`, `exact`) attacks the link alone. One
    with a surrogate, or with images of its own, has the same `data.reserve`, which favours the adversary.

    Attributes:
        false_alarm: share of clean receptions that are flagged.
        penalty: how much an adversary who knows the detector (`knowledge.defense: adaptive`) minds being flagged: its
            loss falls by penalty (s - threshold)+ / sigma, with sigma the standard deviation of clean scores (Carlini
            and Wagner, Adversarial Examples Are Not Easily Detected, 2017). `standard` tries penalties of its own.
    """

    in_training: ClassVar[bool] = False
    needs_decisions: ClassVar[bool] = False
    """Whether it watches only decoders that decide something, of classification and sensing."""

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
            ScenarioError: there are too few images to set a threshold with, or nothing to watch.
        """
        encoder, reserve = plan.scenario.link.encoder, plan.dataset.reserve
        self._needs_reserve(path, plan, "sets its threshold with")
        assert reserve is not None
        # One half of them sets the threshold, which should be below the largest of its clean scores.
        if len(reserve) < (least := 2 * math.ceil(1 / self.false_alarm)):
            raise ScenarioError(
                f"In the scenario, '{path}.false_alarm': {len(reserve)} images cannot tell so rare an alarm; raise it, "
                f"or data.reserve to {least}."
            )
        if encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' watches symbols, and receivers of '{encoder.kind}' decode "
                "pictures; use another encoder."
            )
        if self.needs_decisions and not any(isinstance(task, Decision) for task in plan.scenario.tasks.values()):
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' watches decisions, and no task makes any; add a task of "
                "classification or sensing, or use another detector."
            )
