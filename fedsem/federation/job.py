"""A training to be done: one cell of the sweep with one seed, and the folder of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsem.errors import OutputError
from fedsem.federation.state import FederationState
from fedsem.plan import Plan, plan_of_text


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        text: the cell's scenario as JSON.
        seed: the run's seed.
        folder: where its checkpoints lie.
    """

    text: str
    seed: int
    folder: Path

    @property
    def plan(self) -> Plan:
        return plan_of_text(self.text)

    def state(self) -> FederationState:
        """Where to go on: the last checkpoint, or the state before the first round."""
        return FederationState.load(self.folder) or FederationState.initial(self.plan, self.seed)

    def state_after(self, round_number: int) -> FederationState:
        """What a round has made, of those that `evaluation.rounds` keeps.

        Raises:
            OutputError: it is not there, or damaged.
        """
        state = FederationState.load(self.folder, round_number)
        if state is None:
            raise OutputError(f"'{self.folder}' holds no checkpoint; start a new run.")
        return state

    def dump(self) -> str:
        """As JSON, for another process."""
        return json.dumps({"text": self.text, "seed": self.seed, "folder": str(self.folder)})

    @classmethod
    def parse(cls, text: str) -> Job:
        """The inverse of `dump`."""
        content = json.loads(text)
        return cls(content["text"], content["seed"], Path(content["folder"]))


Report = Callable[[Job, FederationState], None]
"""Called after every round, when its checkpoint is complete."""
