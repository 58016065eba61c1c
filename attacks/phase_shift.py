"""The phase-rotation backdoor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedsem.errors import ScenarioError
from fedsem.hooks.evasion import Site
from fedsem.hooks.poison import Backdoor
from fedsem.registry import register

if TYPE_CHECKING:
    from fedsem.plan import Plan


@register("attack", "phase_shift")
class PhaseShift(Backdoor):
    """All received symbols are turned: y' = e^{j phi} y at the antenna, signal and noise alike, before the equaliser
    (Davaslioglu and Sagduyu, Trojan Attacks on Wireless Signal Classification with Adversarial Machine Learning, 2019).
    It adds no power; its PSR is that of the difference, |e^{j phi} - 1|^2 = 4 sin^2(phi / 2), relative to what is
    received.

    It needs complex symbols, and a receiver that knows its channel's phase: over fading with `csi: none` the phase is
    uniform and unknown, and a turn by phi changes nothing of what is received in distribution.

    Attributes:
        degrees: phi.
    """

    over_air: ClassVar[bool] = True
    site: ClassVar[Site] = "air"

    degrees: Annotated[float, Field(ge=-180, le=180)] = 45.0

    @property
    def rotation(self) -> float:
        return math.radians(self.degrees)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: symbols are real, the phase is unknown and uniform, or phi is 0.
        """
        symbols = plan.scenario.link.symbols
        if symbols == "real":
            raise ScenarioError(
                f"In the scenario, '{path}': real symbols have no phase to turn; use link.symbols: complex."
            )
        if not self.degrees:
            raise ScenarioError(f"In the scenario, '{path}.degrees': a turn by 0 is none; give another angle.")
        super().check(path, plan)
        for branch in plan.branches:
            if self.goal(plan, branch.task) is not None and not plan.channel(branch).knows_phase(symbols):
                raise ScenarioError(
                    f"In the scenario, '{path}': over the channel '{branch.channel}' of the task '{branch.task}' the "
                    "phase is unknown and uniform, so that no decoder can see it turned; use csi: phase, zf or mmse "
                    "(of sensing, fading: none), or aim at another task."
                )
