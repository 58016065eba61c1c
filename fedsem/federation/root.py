"""What the server itself learns in a round, on data that no receiver holds: the root that some rules trust."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsem.errors import FederationError
from fedsem.federation.state import FederationState, owner
from fedsem.plan import Plan
from fedsem.training import Parameters, ReceiverTask, train_receiver

ROOT = -1
"""The server's number where receivers have theirs: its draws are its own."""


def needs_root(plan: Plan) -> bool:
    """Whether a rule of the federation compares updates with the server's own."""
    return any(rule.needs_root for rule in plan.scenario.federation.rules.values())


def root_update(plan: Plan, seed: int, state: FederationState) -> dict[str, Parameters]:
    """Deltas of one local training on `data.reserve`, by aggregation group; empty where no rule asks for them.

    The server does what receivers do, with all decoders of policy `group`, from the same parameters.

    Raises:
        FederationError: what it learnt is NaN or infinite.
    """
    if not needs_root(plan):
        return {}
    assert plan.dataset.reserve is not None, "checked with the scenario"
    holders = {
        owner(plan, receiver, branch): (receiver, branch)
        for receiver in plan.receivers
        if receiver.decoder == "group"
        for branch in plan.trained_branches(receiver)
    }
    branches = {branch: plan.task(branch).weight for _, branch in holders.values()}
    task = ReceiverTask(
        receiver=ROOT,
        seed=seed,
        round=state.round + 1,
        branches=branches,
        indices=np.arange(len(plan.dataset.reserve)),
        shared=state.shared,
        decoders={branch.key: state.decoders[group] for group, (_, branch) in holders.items()},
    )
    own = replace(plan, dataset=replace(plan.dataset, train=plan.dataset.reserve))
    reply = train_receiver(own, task)
    found = {"shared": reply.delta}
    for group, (_, branch) in holders.items():
        before = state.decoders[group]
        found[group] = {name: value - before[name] for name, value in reply.decoders[branch.key].items()}
    if not all(bool(value.isfinite().all()) for parameters in found.values() for value in parameters.values()):
        raise FederationError(
            f"Round {state.round + 1}: what the server learnt on data.reserve is NaN or infinite; lower "
            "train.optimizer.lr."
        )
    return found
