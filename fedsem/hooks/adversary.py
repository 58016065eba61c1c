"""Adversaries in training: which receivers are malicious, and in which rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt, model_validator

from fedsem.errors import ScenarioError
from fedsem.registry import Options
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan


class TrainingAttack(Options):
    """An attack of some of the receivers while the link is trained; the others do not know.

    Attributes:
        fraction: share of all receivers that are malicious, rounded, at least one. Which ones is drawn by the run's
            seed, and stays so for the whole training; of two attacks the larger share holds the smaller.
        first_round: the round in which they begin, from 1.
        last_round: the last round in which they attack; afterwards they train as the others do. None: to the end.
    """

    accomplices: ClassVar[bool] = True
    """Whether its receivers work for the adversary; of those that are its victims, their own decoders count."""
    budgeted: ClassVar[bool] = False
    """Whether a grid that names it must list PSRs: an attack in training has its own power, if any."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    first_round: PositiveInt = 1
    last_round: PositiveInt | None = None

    @model_validator(mode="after")
    def _some_round(self) -> TrainingAttack:
        if self.last_round is not None and self.last_round < self.first_round:
            raise ValueError(f"'last_round' {self.last_round} comes before 'first_round' {self.first_round}")
        return self

    def malicious(self, receivers: int, seed: int) -> tuple[int, ...]:
        """Ids of the malicious receivers among so many, sorted."""
        order = Stream(seed).child("malicious").numpy().permutation(receivers)
        return tuple(sorted(int(receiver) for receiver in order[: self.count(receivers)]))

    def count(self, receivers: int) -> int:
        """How many receivers are malicious."""
        return max(1, round(self.fraction * receivers))

    def acts(self, round_number: int) -> bool:
        """Whether they attack in this round."""
        return self.first_round <= round_number and (self.last_round is None or round_number <= self.last_round)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: it acts, and nobody would be honest, or they begin after the last round.
        """
        if not any(self is attack for attack in plan.training_attacks):
            return
        receivers, rounds = len(plan.receivers), plan.scenario.federation.rounds
        if self.count(receivers) >= receivers:
            raise ScenarioError(
                f"In the scenario, '{path}.fraction': of {receivers} receivers none would be honest; lower it, or add "
                "receivers."
            )
        if self.first_round > rounds:
            raise ScenarioError(
                f"In the scenario, '{path}.first_round': {self.first_round} is after the last of {rounds} rounds."
            )
