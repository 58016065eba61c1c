"""Hook `loss`: what malicious receivers do differently in every step of their local training."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from fedsem.hooks.adversary import TrainingAttack


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
