"""The patch backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.poison import Backdoor
from fedsem.registry import register
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("attack", "patch")
class Patch(Backdoor):
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
        height, width = images.shape[-2:]
        low = self.margin
        top = low if self.corner.startswith("top") else height - low - self.size
        left = low if self.corner.endswith("left") else width - low - self.size
        changed = images.clone()
        changed[..., top : top + self.size, left : left + self.size] = self.value
        return changed

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
