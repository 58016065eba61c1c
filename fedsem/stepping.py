"""What the active attacks make of a malicious receiver's steps; nothing at all of an honest one's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedsem.hooks.step import StepAttack
from fedsem.plan import Plan


class Untouched:
    """Coordinates that a malicious receiver leaves as it received them; none for an honest one.

    Args:
        plan: the plan.
        receiver: its id.
        seed: the run's seed.
        round_number: from 1.
        moved: see `ReceiverTask.moved`.
        modules: what it trains, by the first part of the names in `moved`.
    """

    def __init__(
        self,
        plan: Plan,
        receiver: int,
        seed: int,
        round_number: int,
        moved: Mapping[str, Tensor],
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        attacks = step_attacks(plan, receiver, seed, round_number)
        if not attacks or not moved:
            return
        parameters = {
            f"{part}/{name}": value for part, module in modules.items() for name, value in module.named_parameters()
        }
        # No step moves a buffer.
        steps = {name: value for name, value in moved.items() if name in parameters}
        for attack in attacks:
            for name, mask in attack.untouched(steps).items():
                value = parameters[name]
                self.kept.append((value, mask.to(value.device), value.detach().clone()))

    def restore(self) -> None:
        """Undo what the last step did to them: a projected step, whatever the optimiser remembers."""
        with torch.no_grad():
            for parameter, mask, before in self.kept:
                parameter.copy_(torch.where(mask, before, parameter))


def step_attacks(plan: Plan, receiver: int, seed: int, round_number: int) -> list[StepAttack]:
    """The attacks on local steps that this receiver takes part in, in this round."""
    return [
        attack
        for attack in plan.training_attacks
        if isinstance(attack, StepAttack)
        and attack.acts(round_number)
        and receiver in attack.malicious(len(plan.receivers), seed)
    ]
