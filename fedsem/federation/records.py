"""Tasks and replies as Flower records, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsem.plan import Branch
from fedsem.training import Parameters, ReceiverTask, Reply


def encode_tasks(text: str, tasks: Sequence[ReceiverTask]) -> RecordDict:
    """Everything that a node needs to train these receivers in one round; the encoder is sent once."""
    config = [
        {
            "receiver": task.receiver,
            "seed": task.seed,
            "round": task.round,
            "branches": [[branch.task, branch.channel, weight] for branch, weight in task.branches.items()],
            "proximal_mu": task.proximal_mu,
        }
        for task in tasks
    ]
    decoders = {f"{task.receiver}/{key}": value for task in tasks for key, value in task.decoders.items()}
    return RecordDict(
        {
            "shared": _arrays({"": tasks[0].shared}),
            "decoders": _arrays(decoders),
            "moved": _arrays({str(task.receiver): task.moved for task in tasks}),
            "indices": ArrayRecord({str(task.receiver): Array(task.indices) for task in tasks}),
            "config": ConfigRecord({"scenario": text, "tasks": json.dumps(config)}),
        }
    )


def decode_tasks(record: RecordDict) -> tuple[str, list[ReceiverTask]]:
    """The inverse of `encode_tasks`."""
    config = record.config_records["config"]
    shared = _parameters(record.array_records["shared"])[""]
    decoders = _parameters(record.array_records["decoders"])
    moved = _parameters(record.array_records["moved"])
    indices = record.array_records["indices"]
    tasks = [
        ReceiverTask(
            receiver=entry["receiver"],
            seed=entry["seed"],
            round=entry["round"],
            branches={Branch(task, channel): weight for task, channel, weight in entry["branches"]},
            indices=indices[str(entry["receiver"])].numpy(),
            shared=shared,
            decoders={
                # A decoder without parameters is in no array's name.
                Branch(task, channel).key: decoders.get(f"{entry['receiver']}/{Branch(task, channel).key}", {})
                for task, channel, _ in entry["branches"]
            },
            proximal_mu=entry["proximal_mu"],
            moved=moved.get(str(entry["receiver"]), {}),
        )
        for entry in json.loads(str(config["tasks"]))
    ]
    return str(config["scenario"]), tasks


def encode_replies(replies: Sequence[Reply]) -> RecordDict:
    """The replies of a node's receivers."""
    good = [reply for reply in replies if reply.error is None]
    decoders = {f"{reply.receiver}/{key}": value for reply in good for key, value in reply.decoders.items()}
    config = [
        {
            "receiver": reply.receiver,
            "examples": reply.examples,
            "losses": reply.losses,
            "decoders": sorted(reply.decoders),
            "removed": reply.removed,
            "error": reply.error,
        }
        for reply in replies
    ]
    return RecordDict(
        {
            "deltas": _arrays({str(reply.receiver): reply.delta for reply in good}),
            "decoders": _arrays(decoders),
            "config": ConfigRecord({"replies": json.dumps(config)}),
        }
    )


def decode_replies(record: RecordDict) -> list[Reply]:
    """The inverse of `encode_replies`."""
    deltas = _parameters(record.array_records["deltas"])
    decoders: dict[str, dict[str, Parameters]] = {}
    for who, parameters in _parameters(record.array_records["decoders"]).items():
        receiver, _, key = who.partition("/")
        decoders.setdefault(receiver, {})[key] = parameters
    return [
        Reply(
            receiver=entry["receiver"],
            examples=entry["examples"],
            delta=deltas.get(str(entry["receiver"]), {}),
            decoders={key: {} for key in entry["decoders"]} | decoders.get(str(entry["receiver"]), {}),
            losses=entry["losses"],
            removed=None if entry["removed"] is None else tuple(entry["removed"]),
            error=entry["error"],
        )
        for entry in json.loads(str(record.config_records["config"]["replies"]))
    ]


def _arrays(parameters: Mapping[str, Parameters]) -> ArrayRecord:
    # '|' parts owner and parameter: neither holds one.
    return ArrayRecord(
        {f"{who}|{name}": Array(value.numpy()) for who, group in parameters.items() for name, value in group.items()}
    )


def _parameters(record: ArrayRecord) -> dict[str, Parameters]:
    found: dict[str, Parameters] = {}
    for key, array in record.items():
        who, _, name = key.partition("|")
        found.setdefault(who, {})[name] = torch.from_numpy(np.ascontiguousarray(array.numpy()))
    return found
