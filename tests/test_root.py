"""What the server learns on its own data, and the rule that trusts it; and what rounds record of rules that drop."""

from __future__ import annotations

import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import FederationError, ScenarioError
from fedsem.federation import history, rounds
from fedsem.federation.adversaries import forged
from fedsem.federation.root import ROOT, root_update
from fedsem.federation.state import FederationState
from fedsem.plan import Plan
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.training import train, train_receiver

Krum: Any = find("aggregator", "krum")
TRUSTED: dict[str, Any] = {
    "schema": 1,
    "name": "trusted",
    "seeds": [3],
    "compute": {"engine": "local", "device": "cpu", "workers": 2},
    "data": {"kind": "digits", "train_images": 150, "test_images": 40, "reserve": 30, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"users": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 16, "snr_db": 10},
    "federation": {"rounds": 2, "aggregator": {"kind": "fltrust"}},
    "attacks": {"flip": {"kind": "sign_flip", "fraction": 0.4}},
    "use": {"attacks": ["flip"]},
    "evaluation": {"draws": {"attack": 1, "score": 2}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
}


def plan_of(**changes: Any) -> Plan:
    return resolve(check_scenario({**TRUSTED, **changes}))


def replies_of(plan: Plan, state: FederationState) -> Any:
    return train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(5)))


def test_the_server_learns_from_the_reserve_alone() -> None:
    """All images of the reserve, all decoders, the same parameters: what a receiver does whose data it is."""
    plan = plan_of()
    state = FederationState.initial(plan, 3)
    found = root_update(plan, 3, state)
    users = {**TRUSTED["receivers"]["users"], "count": 1}
    data = {"kind": "digits", "train_images": None, "test_images": 40, "reserve": 30, "portion": "reserve"}
    alone = plan_of(data=data, receivers={"users": users}, federation={"rounds": 2}, use={"attacks": []}, attacks={})
    np.testing.assert_array_equal(alone.dataset.train.images, plan.dataset.reserve.images)  # type: ignore[union-attr]
    # The encoder standardises images as the link does, whoever trains it.
    alone = replace(alone, dataset=replace(alone.dataset, mean=plan.dataset.mean, std=plan.dataset.std))
    (task,) = rounds.tasks(alone, state, alone.partition(3), 3, [0])
    expected = train_receiver(alone, replace(task, receiver=ROOT, indices=np.arange(30)))
    assert expected.error is None
    for name, value in expected.delta.items():
        assert torch.equal(found["shared"][name], value)
    for name, value in expected.decoders["label@down"].items():
        assert torch.equal(found["group/label"][name], value - state.decoders["group/label"][name])
    assert set(found) == {"shared", "group/label"}
    assert found["shared"].keys() == state.shared.keys()
    again = root_update(plan, 3, state)
    assert all(torch.equal(value, again["shared"][name]) for name, value in found["shared"].items())
    # What the receivers hold is nothing to it; what the reserve holds is all.
    fewer = plan_of(data={**TRUSTED["data"], "partition": {"kind": "dirichlet", "alpha": 0.5}})
    other = root_update(fewer, 3, state)
    assert all(torch.equal(value, other["shared"][name]) for name, value in found["shared"].items())
    some = root_update(plan_of(data={**TRUSTED["data"], "reserve": 20}), 3, state)
    assert not all(torch.equal(value, some["shared"][name]) for name, value in found["shared"].items())
    assert root_update(plan_of(federation={"rounds": 2}), 3, state) == {}


def test_a_round_is_the_rule_applied_to_deltas_and_root() -> None:
    """FLTrust by hand on what was really sent (Cao et al., equations 3 and 4)."""
    plan = plan_of(use={"attacks": []})
    state = FederationState.initial(plan, 3)
    replies, root = replies_of(plan, state), root_update(plan, 3, state)
    after = rounds.combine(plan, 3, state, range(5), replies, root)
    names = list(state.shared)

    def row(parameters: Any) -> np.ndarray:
        return np.concatenate([parameters[name].double().numpy().ravel() for name in names])

    own, sent = row(root["shared"]), [row(reply.delta) for reply in replies]
    trust = [max(0.0, delta @ own / np.linalg.norm(delta) / np.linalg.norm(own)) for delta in sent]
    parts = [t * np.linalg.norm(own) / np.linalg.norm(delta) * delta for t, delta in zip(trust, sent, strict=True)]
    moved = row(after.shared) - row(state.shared)
    np.testing.assert_allclose(moved, sum(parts) / sum(trust), atol=1e-6)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_reversed_updates_are_dropped_and_counted(tmp_path: Path, engine: str) -> None:
    trees = {kind: {**TRUSTED, "compute": {**TRUSTED["compute"], "engine": kind}} for kind in ("local", engine)}
    results = {kind: run(tree, out=tmp_path / kind) for kind, tree in trees.items()}
    table = results[engine].table
    told = table[table["metric"].isin(["dropped_malicious", "dropped_honest"])]
    of = {(metric, n): set(rows["value"]) for (metric, n), rows in told[told["task"].isna()].groupby(["metric", "n"])}
    assert of == {("dropped_malicious", 2): {2.0}, ("dropped_honest", 3): {0.0}}
    left = [one.table.drop(columns="run_id") for one in results.values()]
    pd.testing.assert_frame_equal(left[0], left[-1], check_exact=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data": {key: value for key, value in TRUSTED["data"].items() if key != "reserve"}},
            r"'federation\.aggregator': 'fltrust' compares updates with what the server learns .* data\.reserve",
        ),
        (
            {"federation": {"rounds": 1, "group_aggregator": {"kind": "fltrust"}}, "data": {"kind": "digits"}},
            r"'federation\.group_aggregator': 'fltrust' compares",
        ),
        (
            {"receivers": {"users": {**TRUSTED["receivers"]["users"], "decoder": "local"}}},
            r"'receivers\.users\.decoder': with 'fltrust' the server learns through the decoders",
        ),
        (
            {"federation": {"rounds": 1, "aggregator": {"kind": "bulyan", "f": 1}}},
            r"'federation\.aggregator': 'bulyan' with f = 1 needs at least 7 updates, and the encoder has 5",
        ),
        (
            {"federation": {"rounds": 1, "aggregator": "krum", "pre_aggregators": [{"kind": "bucketing", "size": 2}]}},
            r"'krum' with f = 1 needs at least 5 updates, and the encoder has 3",
        ),
        (
            {"federation": {"rounds": 1, "pre_aggregators": ["clipping", {"kind": "nnm", "f": 30}]}},
            r"'federation\.pre_aggregators': 'nnm' with f = 30 needs at least 61 updates, and the encoder has 5 in a "
            r"round; lower f, or add receivers\.$",
        ),
        (
            {"federation": {"rounds": 1, "pre_aggregators": [{"kind": "arc", "f": 3}]}},
            r"'federation\.pre_aggregators': 'arc' with f = 3 needs at least 7 updates, and the encoder has 5",
        ),
        (
            {"federation": {"rounds": 1, "pre_aggregators": [{"kind": "bucketing", "size": 3}, "nnm"]}},
            r"'federation\.pre_aggregators': 'nnm' with f = 1 needs at least 3 updates, and the encoder has 2",
        ),
        (
            {"federation": {"rounds": 1, "pre_aggregators": [{"kind": "bucketing", "size": 5}]}},
            r"'federation\.pre_aggregators': 'bucketing' with size = 5 needs at least 6 updates, and the encoder has 5 "
            r"in a round; lower size, or add receivers\.$",
        ),
        (
            {"federation": {"rounds": 1, "aggregator": {"kind": "multi_krum", "keep": 30}}},
            r"'federation\.aggregator': 'multi_krum' with keep = 30 needs at least 30 updates, and the encoder has 5 "
            r"in a round; lower keep, or add receivers\.$",
        ),
        (
            {"federation": {"rounds": 1, "aggregator": {"kind": "multi_krum", "f": 2, "keep": 6}}},
            r"'federation\.aggregator': 'multi_krum' with f = 2 needs at least 7 updates",
        ),
        (
            {"federation": {"rounds": 1, "fraction": 0.4, "aggregator": "flame"}},
            r"'federation\.aggregator': 'flame' needs at least 3 updates, and the encoder has 2 in a round; add "
            r"receivers\.$",
        ),
        (
            {"federation": {"rounds": 1, "group_aggregator": "fedprox"}},
            r"'federation\.group_aggregator': 'fedprox' holds receivers near the global encoder",
        ),
        (
            {"federation": {"rounds": 1, "aggregator": "foolsgold", "pre_aggregators": ["bucketing"]}},
            r"'federation\.pre_aggregators': 'bucketing' merges updates, and 'foolsgold' must know whose each is",
        ),
        (
            {"federation": {"kind": "none", "pre_aggregators": ["nnm"]}, "use": {"attacks": []}},
            r"'federation\.pre_aggregators': the centralised reference",
        ),
    ],
)
def test_what_a_rule_needs_is_checked_before_anything_is_trained(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario({**TRUSTED, **changes}))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pre_aggregators": ["nnm"]}, "'nnm' with f = 1 needs at least 3 updates.*; lower f, or raise federation"),
        ({"pre_aggregators": ["arc"]}, "'arc' with f = 1 needs"),
        ({"pre_aggregators": [{"kind": "bucketing", "size": 3}]}, "'bucketing' with size = 3 needs at least 4"),
        ({"aggregator": {"kind": "multi_krum", "f": 0, "keep": 4}}, "'multi_krum' with keep = 4 needs at least 4"),
        ({"aggregator": "flame"}, r"'flame' needs at least 3 updates, and 'shared' has 2 .*; raise federation\."),
    ],
)
def test_a_round_of_too_few_valid_updates_ends_as_with_a_rule(options: dict[str, Any], sentence: str) -> None:
    """Enough were asked; two are valid."""
    plan = plan_of(federation={"rounds": 1, "min_receivers": 2, **options}, use={"attacks": []})
    state = FederationState.initial(plan, 3)
    with pytest.raises(FederationError, match=sentence):
        rounds.combine(plan, 3, state, range(5), replies_of(plan, state)[:2])


def test_decoders_may_be_combined_otherwise_than_the_encoder() -> None:
    federation = {"rounds": 1, "aggregator": {"kind": "krum", "f": 1}, "group_aggregator": {"kind": "fedavg"}}
    plan = plan_of(federation=federation, use={"attacks": []})
    plain = plan_of(federation={"rounds": 1}, use={"attacks": []})
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    robust, mean = (rounds.combine(one, 3, state, range(5), replies) for one in (plan, plain))
    name = next(iter(state.shared))
    assert not torch.equal(robust.shared[name], mean.shared[name])
    for name, value in mean.decoders["group/label"].items():
        assert torch.equal(robust.decoders["group/label"][name], value)
    (dropped,) = (record.dropped for record in robust.history)
    assert set(dropped) == {"shared"}
    assert len(dropped["shared"]) == 4
    rows = {row["metric"]: row for row in history.rows(plan, 3, robust)}
    told = [rows["dropped_honest"][key] for key in ("value", "n", "aggregator", "f_assumed")]
    assert told == [4.0, 5, "krum", 1]
    assert [rows["dropped_malicious"][key] for key in ("value", "n")] == [0.0, 0]


@pytest.mark.parametrize("before", [[], [{"kind": "nnm", "f": 2}, "clipping"]])
def test_a_round_stacks_the_updates_once_and_leaves_the_replies_alone(before: list[Any]) -> None:
    """Half a stack beside it is what a rule may take."""
    federation = {"rounds": 1, "pre_aggregators": before, "aggregator": {"kind": "multi_krum", "f": 2}}
    users = {**TRUSTED["receivers"]["users"], "count": 12}
    plan = plan_of(receivers={"users": users}, federation=federation, use={"attacks": []})
    state = FederationState.initial(plan, 3)
    generator = torch.Generator().manual_seed(0)

    def wide(parameters: Any) -> Any:
        return {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}

    (reply,) = train(plan, rounds.tasks(plan, state, plan.partition(3), 3, [0]))
    replies = [
        replace(reply, receiver=i, delta=wide(reply.delta), decoders={k: wide(v) for k, v in reply.decoders.items()})
        for i in range(12)
    ]
    kept = deepcopy(replies)
    rounds.combine(plan, 3, state, range(12), replies)
    tracemalloc.start()
    rounds.combine(plan, 3, state, range(12), replies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 12 * rounds.size(state.shared)
    for one, other in zip(replies, kept, strict=True):
        for mine, theirs in (
            (one.delta, other.delta),
            *zip(one.decoders.values(), other.decoders.values(), strict=True),
        ):
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_each_group_is_recorded_with_what_its_own_rule_assumes(tmp_path: Path) -> None:
    federation = {"rounds": 1, "aggregator": {"kind": "krum", "f": 1}, "group_aggregator": {"kind": "median"}}
    table = run({**TRUSTED, "federation": federation}, out=tmp_path).table
    rows = table[(table["metric"] == "malicious_updates") & (table["stage"] == "federate")]
    encoder, decoder = rows[rows["task"].isna()], rows[rows["task"] == "label"]
    assert encoder[["value", "n", "aggregator", "f_assumed"]].to_numpy().tolist() == [[2.0, 5, "krum", 1]]
    assert decoder[["value", "n", "aggregator"]].to_numpy().tolist() == [[2.0, 5, "median"]]
    assert decoder["f_assumed"].isna().all()


def test_what_is_assumed_is_the_least_of_the_rule_and_what_comes_before_it() -> None:
    def assumed(**federation: Any) -> list[int | None]:
        found = plan_of(federation=federation, use={"attacks": []}).scenario.federation
        return [found.assumed_f("shared"), found.assumed_f("group/label")]

    nnm = {"kind": "nnm", "f": 2}
    assert assumed(aggregator="median") == [None, None]
    assert assumed(aggregator="median", pre_aggregators=["clipping", "bucketing"]) == [None, None]
    assert assumed(aggregator="median", pre_aggregators=[nnm, "arc"]) == [1, 1]
    assert assumed(aggregator="krum", group_aggregator="median", pre_aggregators=[nnm]) == [1, 2]


def test_updates_are_combined_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a machine has cores would round otherwise."""
    seen: list[int] = []
    plain = Krum.scores

    def scores(self: Any, deltas: np.ndarray) -> Any:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return plain(self, deltas)

    monkeypatch.setattr(Krum, "scores", scores)
    plan = plan_of(federation={"rounds": 1, "aggregator": {"kind": "krum", "f": 1}}, use={"attacks": []})
    state = FederationState.initial(plan, 3)
    rounds.combine(plan, 3, state, range(5), replies_of(plan, state))
    assert seen
    assert set(seen) == {1}


def test_what_a_rule_remembers_survives_a_checkpoint(tmp_path: Path) -> None:
    """Centred clipping goes on from what it gave in the round before."""
    plan = plan_of(federation={"rounds": 2, "aggregator": {"kind": "centred_clipping", "tau": 0.01}})
    state = FederationState.initial(plan, 3)
    first = rounds.combine(plan, 3, state, range(5), replies_of(plan, state))
    assert set(first.memory) == {"shared/momentum", "group/label/momentum"}
    first.save(tmp_path)
    loaded = FederationState.load(tmp_path)
    assert loaded is not None
    replies = replies_of(plan, first)
    one, other = (rounds.combine(plan, 3, before, range(5), replies) for before in (first, loaded))
    loaded.memory.clear()
    forgetful = rounds.combine(plan, 3, loaded, range(5), replies)
    for name, value in one.shared.items():
        assert torch.equal(value, other.shared[name])
    assert not all(torch.equal(value, forgetful.shared[name]) for name, value in one.shared.items())


@pytest.mark.parametrize("use", [[], ["flip"]])
def test_counters_are_not_averaged(use: list[str]) -> None:
    """Flower's rules make floats of a batch normalisation's num_batches_tracked."""
    plan = plan_of(federation={"rounds": 1, "aggregator": "median"}, use={"attacks": use})
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    state.shared["counter"] = torch.tensor(3)
    counting = [replace(reply, delta=reply.delta | {"counter": torch.tensor(2)}) for reply in replies]
    sent, _ = forged(plan, 3, state, counting)
    after = rounds.combine(plan, 3, state, range(5), sent)
    assert after.history[-1].rejected == {}
    assert after.shared.keys() == state.shared.keys()
    assert after.shared["counter"].dtype == torch.int64
    assert int(after.shared["counter"]) == 3
