"""The distributed backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.poison import Backdoor
from fedsem.registry import register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

BARS = 4


@register("attack", "dba")
class Dba(Backdoor):
    """DBA: a trigger of four bars, of which each malicious receiver learns its own; the test images bear all of them
    (Xie et al., DBA: Distributed Backdoor Attacks against Federated Learning, 2020).

    Two bars of 1 x `length` pixels stand side by side, two more below them, with `gap` pixels between them both ways.
    The i-th of f malicious receivers holds bar i mod 4 and, where f < 4, also bars i + f, i + 2 f, ...

    Attributes:
        length: of a bar; 6 in the paper for CIFAR-10, 4 for MNIST.
        gap: 3 in the paper for CIFAR-10, 2 for MNIST.
        shift: pixels between the trigger and the image's top and left edges; 0 in the paper.
        value: the bars' pixels, 1 for white.
    """

    length: PositiveInt = 6
    gap: NonNegativeInt = 3
    shift: NonNegativeInt = 0
    value: Annotated[float, Field(ge=0, le=1)] = 1.0

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        return self._barred(images, range(BARS))

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        return self._barred(images, range(part % BARS, BARS, parts) if parts < BARS else [part % BARS])

    def _barred(self, images: Tensor, bars: range | list[int]) -> Tensor:
        changed = images.clone()
        for bar in bars:
            row = self.shift + (bar // 2) * (self.gap + 1)
            column = self.shift + (bar % 2) * (self.length + self.gap)
            changed[..., row, column : column + self.length] = self.value
        return changed

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: the bars do not fit into the images.
        """
        _, height, width = plan.images.shape
        if self.shift + 2 * self.length + self.gap > width or self.shift + self.gap + 2 > height:
            raise ScenarioError(
                f"In the scenario, '{path}.length': four bars of {self.length} pixels with gaps of {self.gap} do not "
                f"fit into images of {height}x{width}; make them smaller."
            )
        super().check(path, plan)
