"""Label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.loss import LocalStep, LossDefense
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("defense", "label_smoothing")
class LabelSmoothing(LossDefense):
    """Classification learns from (1 - a) [k = y] + a / K in place of [k = y], the cross-entropy
    (1 - a) (-log p_y) + a mean_k(-log p_k) over K classes (Szegedy et al., Rethinking the Inception Architecture for
    Computer Vision, 2016). Other tasks keep their loss.

    It is a control, not a defense: it makes gradients small and logits alike, so that weak attacks fail, and stands
    here to be seen through by strong ones. The training loss in the table is the plain one.

    Attributes:
        smoothing: a.
    """

    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def loss(self, step: LocalStep, stream: Stream) -> Tensor:
        total = step.loss({})
        for one in step.decodings({}):
            if isinstance(one.task, Classification):
                uniform = -one.output.log_softmax(-1).mean(-1)
                total = total + one.share * self.smoothing * (uniform - one.task.loss(one.output, one.truth)).mean()
        return total

    def check(self, path: str, plan: Plan) -> None:
        if not any(isinstance(task, Classification) for task in plan.scenario.tasks.values()):
            raise ScenarioError(
                f"In the scenario, '{path}': 'label_smoothing' needs a task of kind classification, and there is none; "
                "add one, or remove it."
            )
