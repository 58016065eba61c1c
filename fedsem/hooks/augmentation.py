"""Hook `data`, in every step: what receivers make of a batch of their images before they learn from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedsem.hooks.defense import Defense
from fedsem.streams import Stream


class Augmentation(Defense):
    """A defense in `use.defenses` that changes the images of all receivers, new in every step, after `train.augment`.
    Poisoned images and triggers in them are changed like all others: who tampers with a data set does not train the
    model. Several such defenses act one after another, and beside those of other hooks."""

    @abstractmethod
    def augmented(self, images: Tensor, stream: Stream) -> Tensor:
        """Changed images in [0, 1], of the same shape.

        Args:
            images: (B, C, H, W) in [0, 1]; must not be changed in place.
            stream: random, by seed, receiver, round and step.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        """All that it leaves behind is weights, which `standard` differentiates."""
        return {"kind": "standard"}
