"""Hook `certificate`: what is certain of decoders as they are, of which nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Norm, Site
from fedsem.tasks.decision import Decision

if TYPE_CHECKING:
    from fedsem.plan import Plan


class DecoderBounds(Defense):
    """Bounds of what a decoder can say of anything near what it has heard. The link decides as it does without them;
    rows of stage `certificate` have the `certified_accuracy` at each `psr_db` of the grids that name it, over the draws
    that score.
    """

    in_training: ClassVar[bool] = False
    site: ClassVar[Site] = "air"
    norm: ClassVar[Norm] = "linf"

    def adaptive(self) -> Mapping[str, Any] | None:
        return {"kind": "standard", "knowledge": {"defense": "adaptive"}}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: a grid names no PSR to certify, or tasks whose decoders have no bounds.
        """
        scenario = plan.scenario
        for where, grid in self.grids(scenario):
            if grid.psr_db is None:
                raise ScenarioError(
                    f"{where}': '{self.kind}' certifies for perturbations of some power; list PSRs in 'psr_db'."
                )
            for branch in plan.branches:
                if branch.task not in (grid.tasks or scenario.tasks):
                    continue
                task = plan.task(branch)
                if scenario.link.encoder.paints or not (
                    isinstance(task, Decision) and task.bounded(plan.new_decoder(branch))
                ):
                    raise ScenarioError(
                        f"{where}.tasks': '{self.kind}' knows no bounds of the decisions of '{branch.task}'; name "
                        "tasks of classification or sensing whose decoders hear numbers and are dense."
                    )
