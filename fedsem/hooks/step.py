"""Hook `loss`: what malicious receivers do differently in every step of their local training."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.poison import Poison

if TYPE_CHECKING:
    from fedsem.plan import Plan


class StepAttack(TrainingAttack):
    """Malicious receivers train as the others do, but leave some coordinates as they received them.

    It says nothing of what they learn: name it in `use.attacks` beside a poison or a backdoor.
    """

    @abstractmethod
    def untouched(self, moved: dict[str, Tensor]) -> dict[str, Tensor]:
        """Which coordinates they leave alone, as bool tensors by parameter.

        Args:
            moved: how far the last round moved each parameter that the server averages and the receiver holds: what a
                receiver sees who compares two broadcasts. Empty before the second round.
        """

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: as for every training attack; or nothing is in use that poisons what is learnt.
        """
        super().check(path, plan)
        active = plan.training_attacks
        if any(self is attack for attack in active) and not any(isinstance(attack, Poison) for attack in active):
            raise ScenarioError(
                f"In the scenario, 'use.attacks': '{self.kind}' (at '{path}') says nothing of what malicious receivers "
                "learn; name a poison or a backdoor beside it."
            )
