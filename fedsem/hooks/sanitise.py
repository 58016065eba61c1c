"""Hook `data`, in every round: before it trains, a receiver leaves out those of its samples that look poisoned.

A filter sees what the receiver is about to learn from: its images with their triggers, the classes that it is told, and
what reaches its antenna. Which samples really are poisoned it does not see; the table says it afterwards
(`removed_poisoned` and `removed_clean`, of all such samples of the round's receivers).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveInt

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

Features = Literal["pixels", "sent", "received"]


@dataclass(frozen=True)
class Held:
    """What a receiver is about to learn from.

    Attributes:
        images: as it learns from them, without augmentation, (N, P) float32 pixels.
        features: what the filter asked for, (N, d) float64.
        labels: classes that the receiver is told, (N,); all 0 for a receiver without a classification task.
    """

    images: np.ndarray
    features: np.ndarray
    labels: np.ndarray

    def by_class(self) -> Iterator[np.ndarray]:
        """Rows of each class in turn."""
        for label in np.unique(self.labels):
            yield np.flatnonzero(self.labels == label)


class DataFilter(Defense):
    """A defense in `use.defenses` that chooses what receivers train on, in every round anew. Several of them act one
    after another, each on what those before it left. What a receiver counts in the average is what it trained on.

    A receiver with several classification tasks leaves out what looks poisoned for any of them; one with none takes all
    its samples for one class. Flipped states of a radar's target cannot be seen: they are drawn with the channel.

    Attributes:
        features: what the filter looks at. `sent`: what the encoder of the round sends for an image, which a receiver
            works out by itself; `received`: one reception of it at the training SNR, with what an adversary adds on
            air; `pixels`: the image.
        first_round: the round in which it begins, from 1. What an encoder sends that has learnt nothing says little.
        run_by: `all`: malicious receivers filter too, as victims would whose data somebody else has poisoned; `honest`:
            those that work for the adversary do not (victims of an attack on air do).
    """

    features: Features = "sent"
    first_round: PositiveInt = 1
    run_by: Literal["all", "honest"] = "all"

    @abstractmethod
    def suspects(self, held: Held, stream: Stream) -> np.ndarray:
        """Which samples are left out, bool (N,). Must not change its input.

        Args:
            held: the samples, in the order of their images' numbers; N >= 1.
            stream: random, by seed, receiver and round.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        """A blended trigger of which samples bear half and test images all: no two poisoned samples are alike, and the
        trigger works. Adaptive blending of Qi et al. (Revisiting the Assumption of Latent Separability for Backdoor
        Defenses, 2023), with a trigger as strong in training as at test time, and without the samples that cover it up:
        where half of a receiver's samples are poisoned they cost the trigger more than they hide."""
        return {"kind": "blend", "shown": 0.5}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: what it looks at does not exist for an encoder that sends patches; or it would begin after
                the last round.
        """
        encoder, rounds = plan.scenario.link.encoder, plan.scenario.federation.rounds
        if self.features != "pixels" and encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}.features': link.encoder '{encoder.kind}' sends chosen patches, which images "
                "do not have in common; use features: pixels."
            )
        if any(self is defense for defense in plan.data_filters) and self.first_round > rounds:
            raise ScenarioError(
                f"In the scenario, '{path}.first_round': {self.first_round} is after the last of {rounds} rounds."
            )
