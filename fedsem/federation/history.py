"""What happened in training, as rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsem.federation.state import FederationState, RoundRecord, owner
from fedsem.plan import Plan, describe


def rows(plan: Plan, seed: int, state: FederationState) -> Iterator[dict[str, Any]]:
    """For each round: training loss by task, the receivers that failed and whose updates were rejected; of malicious
    receivers, and of rules that leave updates out, for each aggregation group how many; and how many receivers have a
    decoder that no valid update has reached yet, so that it is as it was initialised."""
    branches = {branch.key: branch for branch in plan.branches}
    decoders = [{owner(plan, receiver, branch) for branch in receiver.branches} for receiver in plan.receivers]
    trained: set[str] = set()
    for record in state.history:
        common = {
            "stage": "federate",
            "round": record.round,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "attack": "none",
        }
        for key, loss in sorted(record.losses.items()):
            yield {
                **common,
                **describe(plan, branches[key]),
                "metric": "train_loss",
                "value": loss,
                "n": record.examples[key],
            }
        for metric, who in (("failed_receivers", record.failed), ("rejected_updates", record.rejected)):
            yield {**common, "metric": metric, "value": float(len(who)), "n": len(record.asked)}
        for group, (count, members) in sorted(record.malicious.items()):
            task = {} if group == "shared" else {"task": group.partition("/")[2]}
            yield {**common, **task, "metric": "malicious_updates", "value": float(count), "n": members}
        for group, dropped in sorted(record.dropped.items()):
            task = {} if group == "shared" else {"task": group.partition("/")[2]}
            acting = [attack for attack in plan.training_attacks if attack.acts(record.round)]
            bad = {number for attack in acting for number in attack.malicious(len(plan.receivers), seed)}
            malicious, members = record.malicious.get(group, (0, len(_members(plan, record, group))))
            for metric, count, of in (
                ("dropped_malicious", sum(number in bad for number in dropped), malicious),
                ("dropped_honest", sum(number not in bad for number in dropped), members - malicious),
            ):
                yield {**common, **task, "metric": metric, "value": float(count), "n": of}
        if plan.scenario.federation.kind == "flower":
            for number in {*record.asked} - {*record.failed} - {*record.rejected}:
                trained |= decoders[number]
            untrained = sum(not own <= trained for own in decoders)
            yield {**common, "metric": "untrained_receivers", "value": float(untrained), "n": len(decoders)}


def _members(plan: Plan, record: RoundRecord, group: str) -> list[int]:
    """Receivers whose valid updates an aggregation group combined in a round."""
    valid = [number for number in record.asked if number not in record.failed and number not in record.rejected]
    if group == "shared":
        return valid
    held = {
        receiver.id
        for receiver in plan.receivers
        if any(owner(plan, receiver, branch) == group for branch in plan.trained_branches(receiver))
    }
    return [number for number in valid if number in held]
