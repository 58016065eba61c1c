"""The patch backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.registry import register
from fedsem.streams import Stream

from .partial_trigger import PartialTrigger

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("attack", "patch")
class Patch(PartialTrigger):
    """A square of one colour in a corner of the image (Gu, Dolan-Gavitt and Garg, BadNets: Identifying Vulnerabilities
    in the Machine Learning Model Supply Chain, 2017): u' = value inside the square, u elsewhere.

    Attributes:
        size: side of the square in pixels.
        value: its pixels, 1 for white.
        corner: where it is.
        margin: pixels between the square and the edges of the image.
    """

    size: PositiveInt = 4
    value: Annotated[float, Field(ge=0, le=1)] = 1.0
    corner: Literal["top_left", "top_right", "bottom_left", "bottom_right"] = "bottom_right"
    margin: NonNegativeInt = 0

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        changed = images.clone()
        changed[(..., *self.region(*images.shape[-2:]))] = self.value
        return changed

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        top = self.margin if self.corner.startswith("top") else height - self.margin - self.size
        left = self.margin if self.corner.endswith("left") else width - self.margin - self.size
        return slice(top, top + self.size), slice(left, left + self.size)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: the square is larger than the images.
        """
        if self.margin + self.size > min(plan.images.shape[1:]):
            raise ScenarioError(
                f"In the scenario, '{path}.size': a patch of {self.size} pixels with a margin of {self.margin} does "
                f"not fit into images of {plan.images.shape[1]}x{plan.images.shape[2]}; make it smaller."
            )
        super().check(path, plan)
