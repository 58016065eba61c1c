"""Hook `transform`: what a defense does at test time to an image before the encoder, or to what a decoder decodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense

if TYPE_CHECKING:
    from fedsem.plan import Plan


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

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: the encoder sends patches, and it is random or acts on symbols.
        """
        encoder = plan.scenario.link.encoder
        if not encoder.paints:
            return
        if self.where == "reception":
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' acts on symbols, and receivers of '{encoder.kind}' decode "
                "pictures; use another encoder or another defense."
            )
        if self.draw((1, 1), plan.images.shape, Generator()) is not None:
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' is random, and pictures of '{encoder.kind}' are painted "
                "once for all receptions of the same patches; use another encoder or another defense."
            )

    def applied(self, signal: Tensor, drawn: Tensor | None, approximate: bool) -> Tensor:
        """The changed signal; with `approximate`, differentiable by way of `stand_in`."""
        numbers = signal.new_empty(len(signal), 0) if drawn is None else drawn
        if not approximate:
            changed = self.transform(signal, numbers)
            # What leaves no trace for gradients, such as a codec, is a step function: its slope is zero.
            return changed if changed.requires_grad or not signal.requires_grad else changed + 0 * signal
        with torch.no_grad():
            exact = self.transform(signal, numbers)
        near = self.stand_in(signal, numbers)
        return exact + (near - near.detach())
