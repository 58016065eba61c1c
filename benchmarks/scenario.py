"""The scenario that the benchmarks time: the [S3] model, ten receivers of 500 images, one classification task."""

from __future__ import annotations

from typing import Any

from fedsem.checks import resolve
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.state import owner
from fedsem.scenario import check_scenario
from fedsem.training import initial_parameters


def scenario(data: dict[str, str], engine: str, rounds: int, precision: str = "float32") -> dict[str, Any]:
    """As a mapping for `fedsem.run`."""
    return {
        "schema": 1,
        "name": "benchmark",
        "compute": {"engine": engine, "precision": precision, "device": "cpu", "workers": 2},
        "data": data,
        "link": {"encoder": {"kind": "cnn", "channel_uses": 20}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"users": {"count": 10, "tasks": ["label"], "channel": "down", "decoder": "group"}},
        "train": {"epochs": 1, "batch": 64, "snr_db": 10},
        "federation": {"rounds": rounds},
        "evaluation": {"grids": [], "samples": 0, "baselines": False},
    }


def untrained_link(scenario: dict[str, Any]) -> TrainedLink:
    """The scenario's link with its first parameters: as costly as a trained one."""
    plan = resolve(check_scenario(scenario))
    shared, decoders = initial_parameters(plan, 0)
    owned = {(r.id, b): (owner(plan, r, b), decoders[b.key]) for r in plan.receivers for b in r.branches}
    return TrainedLink.build(plan, 0, shared, owned)
