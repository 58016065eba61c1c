"""Hook `transform`: what a defense does at test time to an image before the encoder, or to what a decoder decodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from fedsem.hooks.defense import Defense


class Transform(Defense):
    """Changes signals at test time; the trained networks stay as they are.

    An adversary who knows it (`knowledge.defense: adaptive`) differentiates `stand_in` in its place (backward pass
    differentiable approximation) over the expectation of its random draws (Athalye, Carlini and Wagner, Obfuscated
    Gradients Give a False Sense of Security, 2018, sections 4.1 and 4.2); one with `defense: exact` differentiates what
    is computed, as far as it can be; one with `defense: none` does not know of it.
    """

    in_training: ClassVar[bool] = False
    where: ClassVar[Literal["input", "reception"]] = "input"
    """Before the encoder, images (B, C, H, W) in [0, 1]; or before every decoder, what it decodes (..., B, width)."""

    @abstractmethod
    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        """The changed signal, of the same shape.

        Args:
            signal: what comes in; must not be changed in place.
            drawn: the random numbers of each example, as `draw` made them, (B, ...).
        """

    def stand_in(self, signal: Tensor, drawn: Tensor) -> Tensor:
        """Something like `transform` whose gradient is of use; the signal itself by default."""
        return signal

    def draw(self, shape: tuple[int, ...], image: tuple[int, int, int], generator: Generator) -> Tensor | None:
        """What is random, (*shape, ...), for `shape` = (draws, B) images of this shape; None for a transform without
        chance. Only before the encoder."""
        return None

    def adaptive(self) -> Mapping[str, Any] | None:
        return {"kind": "standard", "knowledge": {"defense": "adaptive"}}

    def applied(self, signal: Tensor, drawn: Tensor | None, approximate: bool) -> Tensor:
        """The changed signal; with `approximate`, differentiable by way of `stand_in`."""
        numbers = signal.new_empty(len(signal), 0) if drawn is None else drawn
        if not approximate:
            return self.transform(signal, numbers)
        with torch.no_grad():
            exact = self.transform(signal, numbers)
        near = self.stand_in(signal, numbers)
        return near + (exact - near.detach())
