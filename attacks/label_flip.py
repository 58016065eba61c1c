"""Label flipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor

from fedsem.errors import ScenarioError, closest
from fedsem.hooks.poison import Poison, Portion
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.sensing import Sensing

if TYPE_CHECKING:
    from fedsem.plan import Branch, Plan


@register("attack", "label_flip")
class LabelFlip(Poison):
    """Malicious receivers learn wrong classes (Biggio, Nelson and Laskov, Support Vector Machines Under Adversarial
    Label Noise, 2011; in federated learning Tolpegin et al., Data Poisoning Attacks Against Federated Learning
    Systems, 2020). The image stays as it is. Of sensing the state of the target is flipped.

    With C classes (states) a chosen sample of class y is learnt as

    - `random`: (y + u) mod C with u uniform in 1 .. C - 1, drawn once for each image: never its own class;
    - `pairwise`: (y + 1) mod C (Han et al., Co-teaching, 2018);
    - `opposite`: C - 1 - y (Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, 2020);
      the middle class of an odd number stays what it is;
    - `targeted`: `target` where y is `source`; of classification only images of that class are chosen.

    Attributes:
        samples: 1 by default: all of a malicious receiver's samples.
        mode: what becomes of a class.
        source: class that `targeted` flips.
        target: what it becomes.
        tasks: names of tasks whose truth is flipped; empty: every classification task.
    """

    samples: Portion = 1.0
    mode: Literal["random", "pairwise", "opposite", "targeted"] = "random"
    source: NonNegativeInt | None = None
    target: NonNegativeInt | None = None
    tasks: list[str] = []

    @model_validator(mode="after")
    def _targeted_has_both(self) -> LabelFlip:
        if (self.mode == "targeted") != (self.source is not None) or (self.source is None) != (self.target is None):
            raise ValueError("'source' and 'target' belong to mode: targeted, which needs both")
        if self.source is not None and self.source == self.target:
            raise ValueError(f"'source' and 'target' are both {self.source}, so that nothing would be flipped")
        return self

    def flipped(self, plan: Plan) -> list[str]:
        """Tasks whose truth is flipped."""
        every = [name for name, task in plan.scenario.tasks.items() if isinstance(task, Classification)]
        return self.tasks or every

    def eligible(self, plan: Plan, labels: np.ndarray) -> np.ndarray:
        kinds = [plan.scenario.tasks[name] for name in self.flipped(plan)]
        if self.mode == "targeted" and all(isinstance(task, Classification) for task in kinds):
            return np.equal(labels, self.source or 0)
        return np.ones(len(labels), dtype=bool)

    def relabelled(self, plan: Plan, branch: Branch, truth: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        if branch.task not in self.flipped(plan):
            return truth
        states = plan.task(branch).goals(plan.decoder_format(branch), 0)
        if self.mode == "targeted":
            return torch.where(truth.eq(self.source or 0), torch.full_like(truth, self.target or 0), truth)
        if self.mode == "opposite":
            return states - 1 - truth
        if self.mode == "pairwise":
            return (truth + 1) % states
        drawn = [int(stream.child(number).numpy().integers(1, states)) for number in numbers.tolist()]
        return (truth + torch.tensor(drawn, device=truth.device)) % states

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: an unknown task, one without classes, none at all, or a class that does not exist.
        """
        tasks = plan.scenario.tasks
        for name in self.tasks:
            if name not in tasks:
                raise ScenarioError(f"In the scenario, '{path}.tasks': unknown task '{name}'.{closest(name, tasks)}")
            if not isinstance(tasks[name], (Classification, Sensing)):
                raise ScenarioError(
                    f"In the scenario, '{path}.tasks': '{name}' is no classification and no sensing, so that there is "
                    "no class to flip; leave it out."
                )
        flipped = self.flipped(plan)
        if not flipped:
            raise ScenarioError(
                f"In the scenario, '{path}.tasks': there is no classification task; name a sensing task."
            )
        for branch in plan.branches:
            if self.mode == "targeted" and branch.task in flipped:
                states = plan.task(branch).goals(plan.decoder_format(branch), 0)
                for key in ("source", "target"):
                    if getattr(self, key) >= states:
                        raise ScenarioError(
                            f"In the scenario, '{path}.{key}': the task '{branch.task}' has no class "
                            f"{getattr(self, key)}; choose 0 to {states - 1}."
                        )
        super().check(path, plan)

    def check_holders(self, path: str, plan: Plan, seed: int) -> None:
        super().check_holders(path, plan, seed)
        flipped = self.flipped(plan)
        malicious = self.malicious(len(plan.receivers), seed)
        if not any(b.task in flipped for n in malicious for b in plan.trained_branches(plan.receivers[n])):
            raise ScenarioError(
                f"In the scenario, '{path}.tasks': with seed {seed} no malicious receiver has a task whose classes are "
                "flipped; raise the fraction, or choose another seed."
            )
