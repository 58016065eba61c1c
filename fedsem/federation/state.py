"""The state of a federation between two rounds: everything that a resumed run needs.

A checkpoint is one safetensors file and one JSON file. Each is written under another name and renamed, and the JSON
names its safetensors file: whatever moment a run is killed at, the pair that is read belongs together.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from fedsem.files import read_json, reading, replace_file
from fedsem.plan import Branch, Plan, Receiver
from fedsem.training import Parameters, initial_parameters


@dataclass
class RoundRecord:
    """What happened in one round.

    Attributes:
        round: its number, from 1.
        asked: receivers that were asked to train.
        failed: receivers that raised or did not answer, and why.
        rejected: receivers whose update was refused, and why.
        losses: training loss over the last local epoch, by branch key: mean over receivers, weighted by images.
        examples: images behind each of `losses`.
        kept, dropped: by aggregation group receivers whose updates its rule took and left out; a rule that chooses none
            has no entry.
        removed: samples that receivers left out before training, summed over valid replies, as
            `fedsem.sanitising.Sanitised.removed`; empty where no filter acts.
        monitored: drift and score of each monitor, by its name.
        malicious: by aggregation group (`shared`, or a decoder's owner) valid updates of malicious receivers, and all.
        clipped: receivers whose update a defense has shortened to its limit.
        bytes_up: parameters sent by receivers, in bytes.
        bytes_down: parameters sent to receivers, in bytes.
    """

    round: int
    asked: list[int]
    failed: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    malicious: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    clipped: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    monitored: dict[str, list[float]] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class FederationState:
    """Parameters after `round` rounds, and the record of those rounds.

    Attributes:
        round: rounds that are done.
        shared: parameters of the encoder.
        decoders: parameters of each decoder, by its owner (see `owner`).
        optimizer: what the next round needs of the optimiser: of the centralised reference its state, of the server
            the velocity of all that it averages, in float64.
        history: one record for each round.
        moved: how far the last round moved what the server averages, by `shared/NAME` or `OWNER/NAME`; kept where an
            attack of some receivers looks at it.
        memory: what the aggregation rules remember, by `GROUP/NAME`.
    """

    round: int
    shared: Parameters
    decoders: dict[str, Parameters]
    optimizer: Parameters = field(default_factory=dict)
    history: list[RoundRecord] = field(default_factory=list)
    moved: Parameters = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def initial(cls, plan: Plan, seed: int) -> FederationState:
        """The state before the first round."""
        shared, decoders = initial_parameters(plan, seed)
        # Every owner has tensors of its own: safetensors refuses shared memory.
        owners = {
            owner(plan, receiver, branch): {name: value.clone() for name, value in decoders[branch.key].items()}
            for receiver in plan.receivers
            for branch in receiver.branches
        }
        return cls(0, shared, owners)

    def save(self, folder: Path, keep: int = 1) -> None:
        """Write a checkpoint; when it is complete, all but the newest `keep` are removed.

        Raises:
            OutputError: the folder cannot be written.
        """
        tensors = {f"shared/{name}": value for name, value in self.shared.items()}
        for who, parameters in self.decoders.items():
            tensors |= {f"decoder/{who}/{name}": value for name, value in parameters.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.items()}
        tensors |= {f"moved/{name}": value for name, value in self.moved.items()}
        tensors |= {f"memory/{name}": value for name, value in self.memory.items()}
        target = folder / f"state-{self.round:05d}.safetensors"
        replace_file(target, save(tensors))
        index = {
            "round": self.round,
            "tensors": target.name,
            "decoders": sorted(self.decoders),  # those without parameters are in no tensor's name
            "history": [asdict(record) for record in self.history],
        }
        replace_file(folder / "state.json", json.dumps(index).encode())
        for old in sorted(folder.glob("state-*.safetensors"))[:-keep]:
            old.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, after: int | None = None) -> FederationState | None:
        """The last complete checkpoint in a folder, or the one after that round, or None.

        Raises:
            OutputError: it is damaged, or that round's was not kept.
        """
        index = folder / "state.json"
        if not index.is_file():
            return None
        content = read_json(index, dict)
        with reading(index):
            state = cls(content["round"], {}, {who: {} for who in content.get("decoders", [])})
            for record in content["history"]:
                for key in ("failed", "rejected"):
                    record[key] = {int(receiver): why for receiver, why in record[key].items()}
                state.history.append(RoundRecord(**record))
            tensors = folder / content["tensors"]
        if after is not None and after != state.round:
            state.round, state.history = after, state.history[:after]
            tensors = folder / f"state-{after:05d}.safetensors"
        with reading(tensors):
            loaded = load_file(tensors)
        for path, value in loaded.items():
            scope, _, name = path.partition("/")
            if scope == "shared":
                state.shared[name] = value
            elif scope == "optimizer":
                state.optimizer[name] = value
            elif scope == "moved":
                state.moved[name] = value
            elif scope == "memory":
                state.memory[name] = value
            else:
                who, _, parameter = name.rpartition("/")
                state.decoders.setdefault(who, {})[parameter] = value
        return state


def owner(plan: Plan, receiver: Receiver, branch: Branch) -> str:
    """Whose decoder a receiver uses for a branch: its own, that of all receivers with the task, or the central one."""
    if plan.scenario.federation.kind == "none":
        return f"central/{branch.key}"
    if receiver.decoder == "group":
        return f"group/{branch.task}"
    return f"{receiver.id}/{branch.key}"
