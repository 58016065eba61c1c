"""What happened in training, as rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsem.federation.state import FederationState, owner
from fedsem.plan import Plan, asked_per_round, describe


def rows(plan: Plan, seed: int, state: FederationState) -> Iterator[dict[str, Any]]:
    """For each round: training loss by task, the receivers that failed and whose updates were rejected; of malicious
    receivers, and of rules that leave updates out, for each aggregation group how many; how many poisoned and clean
    samples filters left out, of so many that the answering receivers hold; what monitors say of so many images; how
    many receivers have a decoder that no valid update has reached yet, so that it is as it was initialised; and how
    many updates a defense has shortened, with what it says of itself after each round, such as an epsilon."""
    branches = {branch.key: branch for branch in plan.branches}
    decoders = [{owner(plan, receiver, branch) for branch in receiver.branches} for receiver in plan.receivers]
    trained: set[str] = set()
    defense, rounds = plan.update_defense, plan.scenario.federation.rounds
    spent = {} if defense is None else defense.spent(rounds, asked_per_round(plan), len(plan.receivers))
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
            yield {**common, **_of(plan, group), "metric": "malicious_updates", "value": float(count), "n": members}
        acting = [attack for attack in plan.training_attacks if attack.acts(record.round)]
        bad = {number for attack in acting for number in attack.malicious(len(plan.receivers), seed)}
        for group, dropped in sorted(record.dropped.items()):
            everyone = {*dropped, *record.kept[group]}
            for metric, some in (("dropped_malicious", everyone & bad), ("dropped_honest", everyone - bad)):
                value = float(len(some.intersection(dropped)))
                yield {**common, **_of(plan, group), "metric": metric, "value": value, "n": len(some)}
        if record.removed:
            bad_out, bad_all, good_out, good_all = record.removed
            for metric, out, count in (
                ("removed_poisoned", bad_out, bad_all),
                ("removed_clean", good_out, good_all),
            ):
                if count:
                    yield {**common, "metric": metric, "value": float(out), "n": count}
        watched = plan.dataset.reserve
        for name, (drift, score) in record.monitored.items():
            measured = (("feature_drift", drift), ("drift_score", score), ("drift_alarm", float(score > 1)))
            for metric, value in measured:
                yield {**common, "defense": name, "metric": metric, "value": value, "n": len(watched or ())}
        if plan.scenario.federation.kind == "flower":
            for number in {*record.asked} - {*record.failed} - {*record.rejected}:
                trained |= decoders[number]
            untrained = sum(not own <= trained for own in decoders)
            yield {**common, "metric": "untrained_receivers", "value": float(untrained), "n": len(decoders)}
        if defense is not None:
            clipped = float(len(record.clipped))
            yield {**common, "metric": "clipped_updates", "value": clipped, "n": len(record.asked)}
            for metric, values in spent.items():
                yield {**common, "metric": metric, "value": values[record.round - 1], "n": len(plan.receivers)}


def _of(plan: Plan, group: str) -> dict[str, Any]:
    """Columns of an aggregation group: its task, its rule, and what is assumed of it."""
    federation = plan.scenario.federation
    task = {} if group == "shared" else {"task": group.partition("/")[2]}
    return {**task, "aggregator": federation.rule(group).kind, "f_assumed": federation.assumed_f(group)}
