"""Hook `certificate`: what holds of single receptions of a trained link, whatever an adversary adds on air."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.tasks.task import Task

if TYPE_CHECKING:
    from fedsem.plan import Plan


class Certificate(Defense):
    """The link stays as it is. With the image, noise and gains of a reception fixed, an adversary who knows all of them
    adds w with ||w||_inf <= sqrt(PSR E / nc) to what is on air, E being the energy of what is sent; w passes its gain
    and the equaliser (`fedsem.channels.reach`). The table has, in rows of stage `certificate`, the share of receptions
    whose decision is right and stays so, `certified_accuracy` at each `psr_db` of the grids that name it: attack
    `none`, site `air`, norm `linf`.

    It is a lower bound of the accuracy that any attack on air alone leaves in that norm over the same channel draws. It
    says nothing of the norm L2, of images, or of budgets that hold on average only.
    """

    in_training: ClassVar[bool] = False

    @abstractmethod
    def serves(self, task: Task, decoder: nn.Module) -> bool:
        """Whether it can tell of this decoder."""

    @abstractmethod
    def fails(self, task: Task, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        """0 where a decision is right for all that lies within `radius` of `heard`, number by number, (..., B); 1 where
        it may not be.

        Args:
            task: the task.
            decoder: in float64.
            heard: what it decodes, float64 (..., B, width).
            radius: the most by which each number is moved, alike.
            truth: what it should say.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        return {"kind": "standard"}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: a grid that names it has no PSR to certify, or a task that it cannot tell of.
        """
        scenario = plan.scenario
        with torch.random.fork_rng(devices=[]):
            served = {
                branch.task
                for branch in plan.branches
                if not scenario.link.encoder.paints and self.serves(plan.task(branch), plan.new_decoder(branch))
            }
        for i, grid in enumerate(scenario.evaluation.grids):
            if not any(scenario.defenses.get(name) is self for name in grid.defenses):
                continue
            where = f"In the scenario, 'evaluation.grids.{i}"
            if grid.psr_db is None:
                raise ScenarioError(
                    f"{where}': '{self.kind}' certifies for perturbations of some power; list PSRs in 'psr_db'."
                )
            if strange := [name for name in grid.tasks or scenario.tasks if name not in served]:
                raise ScenarioError(
                    f"{where}.tasks': '{self.kind}' cannot tell of the decoder of '{strange[0]}' "
                    f"({scenario.tasks[strange[0]].kind}, {scenario.link.encoder.kind}); name other tasks, or leave it "
                    "out of the grid's defenses."
                )
