"""The federation: rounds without Flower, engines against each other, failures, and resuming."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byzfl
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import FederationError, FedsemError, OutputError
from fedsem.federation import history, rounds
from fedsem.federation.records import decode_replies, decode_tasks, encode_replies, encode_tasks
from fedsem.federation.state import FederationState, owner
from fedsem.federation.strategy import balanced
from fedsem.hooks.aggregate import Updates
from fedsem.plan import Plan, scenario_text
from fedsem.reporting.results import Results
from fedsem.scenario_file import load_scenario
from fedsem.store import Store
from fedsem.training import Reply, train
from fedsem.training import train_receiver as real_train_receiver


def small(**changes: Any) -> dict[str, Any]:
    """Five receivers in three groups on 150 digits: seconds."""
    scenario: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "seeds": [3],
        "compute": {"engine": "local", "workers": 2},
        "data": {"kind": "digits", "train_images": 150, "test_images": 40, "partition": {"kind": "iid"}},
        "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
        "channels": {"down": {"kind": "rayleigh"}, "radar": {"kind": "sensing"}},
        "tasks": {
            "label": {"kind": "classification"},
            "picture": {"kind": "reconstruction", "weight": 0.5},
            "target": {"kind": "sensing"},
        },
        "receivers": {
            "readers": {"count": 2, "tasks": ["label"], "channel": "down", "decoder": "group"},
            "viewers": {"count": 1, "tasks": ["label", "picture"], "channel": "down", "decoder": "local"},
            "watchers": {"count": 2, "tasks": ["target"], "channel": "radar", "decoder": "local"},
        },
        "train": {"batch": 32, "snr_db": {"uniform": [0, 20]}},
        "federation": {"rounds": 3},
        "attacks": {"fgsm": {"kind": "fgsm", "objective": {"label": 1}}},
        "evaluation": {
            "draws": {"attack": 2, "score": 3},
            "samples": 1,
            "grids": [{"attacks": ["none", "noise", "fgsm"], "snr_db": [0, 10], "psr_db": [-10]}],
        },
    }
    return scenario | changes


def comparable(results: Results) -> pd.DataFrame:
    """The table without what may differ between two runs of one scenario."""
    return results.table.drop(columns=["run_id"])


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(load_scenario(small()))


@pytest.fixture(scope="module")
def local_results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(small(), out=tmp_path_factory.mktemp("local"))


def replies_of(plan: Plan, state: FederationState, seed: int = 3) -> list[Reply]:
    work = rounds.tasks(plan, state, plan.partition(seed), seed, range(len(plan.receivers)))
    return train(plan, work)


# ------------------------------------------------------------------------------------------------------ one round


def test_sampling_is_a_function_of_seed_and_round_alone() -> None:
    plan = resolve(load_scenario(small(federation={"rounds": 3, "fraction": 0.4})))
    drawn = {(seed, number): rounds.sample(plan, seed, number) for seed in (0, 1) for number in range(1, 30)}
    assert all(len(set(chosen)) == 2 and chosen == sorted(chosen) for chosen in drawn.values())
    assert drawn == {key: rounds.sample(plan, *key) for key in reversed(list(drawn))}
    assert len({tuple(chosen) for chosen in drawn.values()}) > 5
    counts = np.bincount([receiver for chosen in drawn.values() for receiver in chosen], minlength=5)
    assert counts.min() > 0.4 * counts.mean()


def test_the_encoder_is_averaged_over_all_receivers_and_decoders_follow_their_policy(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    after = rounds.combine(plan, 3, state, range(5), replies)
    # n_i times the sum of the receiver's task weights: readers 1, the viewer 1.5, watchers 1.
    weights = np.array([reply.examples for reply in replies]) * np.array([1, 1, 1.5, 1, 1])
    for name, before in state.shared.items():
        deltas = np.stack([reply.delta[name].double().numpy() for reply in replies])
        expected = before.double().numpy() + np.tensordot(weights / weights.sum(), deltas, axes=1)
        np.testing.assert_allclose(after.shared[name].numpy(), expected, rtol=1e-6, atol=1e-7)
    key = "label@down"
    for name, before in state.decoders["group/label"].items():
        members = [(reply.examples, reply.decoders[key][name].double()) for reply in replies[:2]]
        mean = sum(n * value for n, value in members) / sum(n for n, _ in members)
        torch.testing.assert_close(after.decoders["group/label"][name].double(), mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(after.decoders["group/label"][name], before)
    for number in (2, 3, 4):
        receiver = plan.receivers[number]
        for branch in receiver.branches:
            kept = after.decoders[owner(plan, receiver, branch)]
            assert all(torch.equal(kept[name], value) for name, value in replies[number].decoders[branch.key].items())


def random_replies(plan: Plan, state: FederationState, number: int) -> list[Reply]:
    """Updates that no training made, of receivers with 30 to 34 images."""
    generator = torch.Generator().manual_seed(number)

    def near(parameters: dict[str, torch.Tensor], origin: float) -> dict[str, torch.Tensor]:
        return {k: origin * v + torch.randn(v.shape, generator=generator) for k, v in parameters.items()}

    return [
        Reply(
            receiver.id,
            30 + receiver.id,
            near(state.shared, 0),
            {branch.key: near(state.decoders[owner(plan, receiver, branch)], 1) for branch in receiver.branches},
            losses={branch.key: 1.0 for branch in receiver.branches},
        )
        for receiver in plan.receivers
    ]


def test_server_momentum_is_torchs_sgd_on_the_averaged_update(plan: Plan, tmp_path: Path) -> None:
    """FedAvgM, against torch.optim.SGD whose gradient is minus what plain averaging moves; over a checkpoint, too."""
    server = {"lr": 0.5, "momentum": 0.8}
    moved = resolve(load_scenario(small(federation={"rounds": 3, "server_optimizer": server})))
    state = FederationState.initial(plan, 3)
    scopes = {"encoder": state.shared, "decoder": state.decoders["group/label"]}
    peers = {scope: {k: v.double().requires_grad_() for k, v in values.items()} for scope, values in scopes.items()}
    sgd = torch.optim.SGD([v for values in peers.values() for v in values.values()], lr=0.5, momentum=0.8)
    for number in range(3):
        replies = random_replies(plan, state, number)
        plain = rounds.combine(plan, 3, state, range(5), replies)
        now = {"encoder": state.shared, "decoder": state.decoders["group/label"]}
        averaged = {"encoder": plain.shared, "decoder": plain.decoders["group/label"]}
        for scope, values in peers.items():
            for name, value in values.items():
                value.grad = now[scope][name].double() - averaged[scope][name].double()
        sgd.step()
        state = rounds.combine(moved, 3, state, range(5), replies)
        state.save(tmp_path)
        loaded = FederationState.load(tmp_path)
        assert loaded is not None
        assert {velocity.dtype for velocity in loaded.optimizer.values()} == {torch.float64}
        state = loaded
        after = {"encoder": state.shared, "decoder": state.decoders["group/label"]}
        for scope, values in peers.items():
            for name, value in values.items():
                torch.testing.assert_close(after[scope][name].double(), value.detach(), rtol=1e-5, atol=1e-5)
        # Decoders that stay on their receiver are not the server's to move.
        assert torch.equal(state.decoders["3/target@radar"]["0.weight"], plain.decoders["3/target@radar"]["0.weight"])


def test_a_server_step_of_one_without_momentum_is_plain_averaging(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    server = {"lr": 1.0, "momentum": 0.0}
    stepping = resolve(load_scenario(small(federation={"rounds": 3, "server_optimizer": server})))
    replies = random_replies(plan, state, 0)
    plain, stepped = (rounds.combine(one, 3, state, range(5), replies) for one in (plan, stepping))
    assert all(torch.equal(plain.shared[name], stepped.shared[name]) for name in plain.shared)


def test_plain_averaging_is_byzfls_average(plan: Plan) -> None:
    """A peer's mean of equally weighted updates."""
    rows = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
    ours = plan.scenario.federation.aggregator.aggregate(Updates(rows, np.full(7, 3.0), tuple(range(7)))).delta
    np.testing.assert_allclose(ours, byzfl.Average()(rows), rtol=1e-5, atol=1e-6)


def test_a_diverged_average_ends_the_run(plan: Plan) -> None:
    server = {"lr": 3e38, "momentum": 0.0}
    wild = resolve(load_scenario(small(federation={"rounds": 3, "server_optimizer": server})))
    state = FederationState.initial(wild, 3)
    with pytest.raises(FederationError, match=r"diverged in round 1: .* lower train.optimizer.lr or federation.server"):
        rounds.combine(wild, 3, state, range(5), random_replies(wild, state, 0))


def test_losses_of_one_task_over_two_channels_are_told_apart() -> None:
    two = small(
        channels={"down": {"kind": "rayleigh"}, "wire": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
        receivers={
            "far": {"count": 2, "tasks": ["label", "picture"], "channel": "down"},
            "near": {"count": 1, "tasks": ["label"], "channel": "wire"},
            "watchers": {"count": 1, "tasks": ["target"], "channel": "radar"},
        },
    )
    plan = resolve(load_scenario(two))
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    state = rounds.combine(plan, 3, state, range(4), replies)
    found = {
        (row["task"], row["channel"]): (row["value"], row["n"])
        for row in history.rows(plan, 3, state)
        if row["metric"] == "train_loss"
    }
    assert set(found) == {("label", "rayleigh"), ("picture", "rayleigh"), ("label", "awgn"), ("target", "sensing")}
    assert found["label", "awgn"] == (replies[2].losses["label@wire"], replies[2].examples)
    far = sum(reply.losses["label@down"] * reply.examples for reply in replies[:2])
    assert found["label", "rayleigh"][0] == pytest.approx(far / (replies[0].examples + replies[1].examples))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_an_update_with_non_finite_values_is_rejected_and_counted(plan: Plan, poison: float) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    clean = rounds.combine(plan, 3, state, [0, 2, 3, 4], [replies[i] for i in (0, 2, 3, 4)])
    replies[1].delta["features.0.bias"][0] = poison
    after = rounds.combine(plan, 3, state, range(5), replies)
    assert after.history[-1].rejected == {1: "NaN or infinite values"}
    assert all(torch.equal(after.shared[name], clean.shared[name]) for name in clean.shared)
    assert all(bool(value.isfinite().all()) for value in after.shared.values())


def test_a_poisoned_decoder_alone_is_rejected_too(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    next(iter(replies[3].decoders["target@radar"].values()))[0] = float("nan")
    after = rounds.combine(plan, 3, state, range(5), replies)
    assert list(after.history[-1].rejected) == [3]
    assert all(torch.equal(after.decoders["3/target@radar"][k], v) for k, v in state.decoders["3/target@radar"].items())


def test_a_loss_that_is_not_finite_is_rejected_too(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    replies[1].losses[next(iter(replies[1].losses))] = float("nan")
    record = rounds.combine(plan, 3, state, range(5), replies).history[-1]
    assert record.rejected == {1: "NaN or infinite values"}
    assert all(math.isfinite(loss) for loss in record.losses.values())


def test_a_reply_of_another_model_is_rejected_and_the_round_goes_on(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    replies[0].delta["features.0.bias"] = torch.zeros(3)
    del replies[1].delta["features.0.bias"]
    replies[2].decoders.clear()
    lax = dataclasses.replace(plan, scenario=load_scenario(small(federation={"rounds": 3, "min_receivers": 1})))
    after = rounds.combine(lax, 3, state, range(5), replies)
    shapes, decoders = "parameters of other names or shapes", "not the decoders and losses of its tasks"
    assert after.history[-1].rejected == {0: shapes, 1: shapes, 2: decoders}
    alone = rounds.combine(lax, 3, state, [3, 4], replies[3:])
    assert all(torch.equal(after.shared[name], alone.shared[name]) for name in alone.shared)


def test_receivers_that_fail_or_stay_silent_are_counted(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    replies[0] = Reply(0, error="RuntimeError: broken")
    after = rounds.combine(plan, 3, state, range(5), [reply for reply in replies if reply.receiver != 4])
    assert after.history[-1].failed == {0: "RuntimeError: broken", 4: "no reply"}


def test_too_few_valid_replies_end_the_run(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    broken = [Reply(number, error="RuntimeError: broken") for number in range(3)]
    with pytest.raises(FederationError, match=r"only 2 of 5 receivers .* needs 3 .*RuntimeError: broken"):
        rounds.combine(plan, 3, state, range(5), [*broken, *replies_of(plan, state)[3:]])


def test_order_of_replies_changes_nothing(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    one, other = (rounds.combine(plan, 3, state, range(5), order) for order in (replies, replies[::-1]))
    assert all(torch.equal(one.shared[name], other.shared[name]) for name in one.shared)


def test_tasks_and_replies_survive_flowers_records(plan: Plan) -> None:
    state = FederationState.initial(plan, 3)
    work = rounds.tasks(plan, state, plan.partition(3), 3, range(5))
    text, decoded = decode_tasks(encode_tasks(scenario_text(plan.scenario), work))
    assert text == scenario_text(plan.scenario)
    sent = replies_of(plan, state)
    sent[1] = Reply(1, error="ValueError: no")
    received = decode_replies(encode_replies(sent))
    for one, other in zip(work, decoded, strict=True):
        assert (one.receiver, one.seed, one.round, one.branches) == (
            other.receiver,
            other.seed,
            other.round,
            other.branches,
        )
        np.testing.assert_array_equal(one.indices, other.indices)
        assert all(torch.equal(one.shared[name], other.shared[name]) for name in one.shared)
        assert one.decoders.keys() == other.decoders.keys()
    for reply, back in zip(sent, received, strict=True):
        assert (reply.receiver, reply.examples, reply.losses, reply.error) == (
            back.receiver, back.examples, back.losses, back.error,
        )  # fmt: skip
        assert all(torch.equal(reply.delta[name], back.delta[name]) for name in reply.delta)


def test_work_is_spread_evenly_and_completely(plan: Plan) -> None:
    work = rounds.tasks(plan, FederationState.initial(plan, 3), plan.partition(3), 3, range(5))
    shares = balanced(work, 2)
    assert sorted(task.receiver for share in shares for task in share) == list(range(5))
    loads = [sum(len(task.indices) for task in share) for share in shares]
    assert max(loads) - min(loads) <= max(len(task.indices) for task in work)


def test_checkpoints_come_back_exactly_and_leave_no_debris(plan: Plan, tmp_path: Path) -> None:
    state = FederationState.initial(plan, 3)
    state.optimizer = {"0.exp_avg": torch.randn(3), "0.step": torch.tensor(4.0)}
    state.save(tmp_path)
    after = rounds.combine(plan, 3, state, range(5), replies_of(plan, state))
    after.save(tmp_path)
    loaded = FederationState.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 1
    assert loaded.history == after.history
    assert loaded.decoders.keys() == after.decoders.keys()
    assert all(torch.equal(loaded.shared[name], value) for name, value in after.shared.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00001.safetensors", "state.json"]


# -------------------------------------------------------------------------------------------------------- engines


def test_two_runs_of_one_seed_give_identical_tables(local_results: Results, tmp_path: Path) -> None:
    again = run(small(), out=tmp_path)
    pd.testing.assert_frame_equal(comparable(again), comparable(local_results), check_exact=True)
    other = run(small(), out=tmp_path, seed=4)
    assert not comparable(other).drop(columns="seed").equals(comparable(local_results).drop(columns="seed"))


def test_ray_gives_the_same_table_as_the_local_engine(local_results: Results, tmp_path: Path) -> None:
    on_ray = run(small(), ["compute.engine=ray"], out=tmp_path)
    pd.testing.assert_frame_equal(comparable(on_ray), comparable(local_results), check_exact=True)
    assert on_ray.manifest["status"] == "finished"
    assert not list((on_ray.folder / "checkpoints").glob("**/.*"))


def test_ray_gives_the_same_table_of_attacked_training(tmp_path: Path) -> None:
    """Poisons, local steps and forged updates reach the workers as they reach the local engine's nodes."""
    attacks = {
        "patch": {"kind": "patch", "fraction": 0.8, "targets": {"label": 0}},
        "toxin": {"kind": "neurotoxin", "fraction": 0.8},
        "worst": {"kind": "tailored", "fraction": 0.2},
    }
    grids = [{"attacks": ["none", "patch"], "snr_db": [10]}]
    evaluation = {"draws": {"attack": 1, "score": 3}, "samples": 1, "grids": grids}
    attacked = small(attacks=attacks, use={"attacks": list(attacks)}, evaluation=evaluation)
    local = run(attacked, out=tmp_path / "local")
    on_ray = run(attacked, ["compute.engine=ray"], out=tmp_path / "ray")
    pd.testing.assert_frame_equal(comparable(on_ray), comparable(local), check_exact=True)
    assert (local.table["stage"] == "twin").any()


def test_names_of_groups_change_no_number(tmp_path: Path) -> None:
    """Receivers are numbered in the order of their groups, in training and in evaluation alike, and after resuming."""
    groups = [
        {"count": 2, "tasks": ["label"], "channel": "down", "decoder": "local"},
        {"count": 1, "tasks": ["label", "picture"], "channel": "down", "decoder": "local"},
        {"count": 1, "tasks": ["picture"], "channel": "down", "decoder": "local"},
    ]
    tables = []
    for names in (["a", "b", "c"], ["zebras", "b_", "apes"]):
        tree = small(
            tasks={"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
            channels={"down": {"kind": "awgn"}},
            receivers=dict(zip(names, groups, strict=True)),
            federation={"rounds": 2},
            attacks={},
            evaluation={"draws": {"score": 1}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
        )
        results = run(tree, out=tmp_path / names[0])
        shutil.rmtree(next((results.folder / "stages").iterdir()))
        resumed = run(resume=results.folder)
        pd.testing.assert_frame_equal(comparable(resumed), comparable(results), check_exact=True)
        new = dict(zip(names, "abc", strict=True))
        table = comparable(results)
        tables.append(table.assign(receiver=table["receiver"].map(new)))
    assert set(tables[0]["receiver"].dropna()) == {"a", "b", "c"}
    first, second = tables
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_centralised_training_learns_and_needs_no_flower(tmp_path: Path) -> None:
    script = (
        "import json, sys; from fedsem import run; "
        "r = run(json.loads(sys.argv[1]), ['federation={kind: none, rounds: 8}', 'train.batch=16'], out=sys.argv[2]); "
        "print(json.dumps([m for m in ('flwr', 'ray') if m in sys.modules])); "
        "t = r.table; print(t[t.metric.eq('train_loss') & t.task.eq('label')].value.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(small()), str(tmp_path)], capture_output=True, text=True, check=True
    )
    imported, losses = done.stdout.strip().splitlines()
    assert json.loads(imported) == []
    first, *_, last = json.loads(losses)
    assert last < first


def test_a_receiver_that_raises_is_counted_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(plan: Plan, task: Any) -> Reply:
        if task.receiver == 1 and task.round == 2:
            raise RuntimeError("out of battery")
        reply = real_train_receiver(plan, task)
        if task.receiver == 4 and task.round == 3:
            reply.delta["features.0.bias"][0] = float("nan")
        return reply

    monkeypatch.setattr("fedsem.training.train_receiver", fragile)
    results = run(small(), out=tmp_path)
    table = results.table[results.table["stage"].eq("federate")]
    failed = table[table["metric"].eq("failed_receivers")].set_index("round")["value"]
    rejected = table[table["metric"].eq("rejected_updates")].set_index("round")["value"]
    assert failed.to_dict() == {1: 0, 2: 1, 3: 0}
    assert rejected.to_dict() == {1: 0, 2: 0, 3: 1}
    log = (results.folder / "run.log").read_text()
    assert "out of battery" in log
    assert "receiver 4 rejected" in log


def test_receivers_whose_decoders_were_never_trained_are_told(tmp_path: Path) -> None:
    """Of five receivers one is asked: the readers share a decoder, the viewer and the watchers have their own."""
    results = run(small(federation={"rounds": 1, "fraction": 0.2}), out=tmp_path)
    table = results.table[results.table["metric"].eq("untrained_receivers")]
    plan = resolve(load_scenario(small(federation={"rounds": 1, "fraction": 0.2})))
    (asked,) = rounds.sample(plan, 3, 1)
    untouched = 3 if asked < 2 else 4
    assert (table["value"].tolist(), table["n"].tolist()) == ([untouched], [5])
    (warning,) = results.warnings()
    assert warning.startswith(f"Receivers with a decoder that was never trained: {untouched};")


def test_losing_too_many_receivers_ends_the_run_without_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(plan: Plan, task: Any) -> Reply:
        raise RuntimeError("out of battery")

    monkeypatch.setattr("fedsem.training.train_receiver", dead)
    with pytest.raises(FederationError, match="out of battery"):
        run(small(), out=tmp_path)
    (folder,) = (tmp_path / "small").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    assert not (folder / "table.parquet").exists()
    assert not (folder / "report.html").exists()


# ------------------------------------------------------------------------------------------- killing and resuming


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(tmp_path: Path, scenario: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Path]:
    """Start `fedsem run` in a process group of its own and wait for its folder."""
    file = tmp_path / "scenario.yaml"
    file.write_text(json.dumps(scenario))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsem", "run", str(file), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
        preexec_fn=_listen_to_ctrl_c,
    )  # fmt: skip
    wait_for(lambda: any((tmp_path / "out").glob("*/*/manifest.json")), process)
    return process, next((tmp_path / "out").glob("*/*"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def round_done(folder: Path) -> int:
    files = list(folder.glob("checkpoints/*/state.json"))
    return json.loads(files[0].read_text())["round"] if files else 0


@pytest.mark.parametrize("moment", ["between rounds", "during evaluation"])
def test_a_killed_run_resumes_to_the_same_table(local_results: Results, tmp_path: Path, moment: str) -> None:
    process, folder = start(tmp_path, small())
    if moment == "between rounds":
        wait_for(lambda: round_done(folder) in (1, 2), process)
    else:
        wait_for(lambda: round_done(folder) == 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "table.parquet").exists()
    resumed = run(resume=folder)
    pd.testing.assert_frame_equal(comparable(resumed), comparable(local_results), check_exact=True)
    assert resumed.folder == folder


def test_a_run_resumed_from_within_its_folder_keeps_its_id(
    local_results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local_results.folder)
    assert set(run(resume=".").table["run_id"]) == {local_results.folder.name}


def test_resuming_a_finished_run_computes_nothing(local_results: Results) -> None:
    before = (local_results.folder / "table.csv").read_bytes()
    states = {path: path.stat().st_mtime_ns for path in local_results.folder.glob("checkpoints/*/*")}
    again = run(resume=local_results.folder)
    assert (again.folder / "table.csv").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in again.folder.glob("checkpoints/*/*")} == states


def test_identical_trainings_of_another_run_are_reused(local_results: Results, tmp_path: Path) -> None:
    other = small(name="other")
    other["evaluation"] = {"draws": {"attack": 1, "score": 2}, "grids": [{"snr_db": [5]}]}
    reused = run(other, out=tmp_path, reuse=local_results.folder)
    (taken,) = reused.manifest["reused"]
    assert (taken["run"], taken["stage"], taken["of"]) == (local_results.folder.name, "training", "cell0-seed3")
    fresh = run(other, out=tmp_path)
    columns = ["scenario", "run_id"]
    pd.testing.assert_frame_equal(reused.table.drop(columns=columns), fresh.table.drop(columns=columns))
    changed = run(other, ["train.batch=16"], out=tmp_path, reuse=local_results.folder)
    assert changed.manifest["reused"] == []


def test_a_second_run_of_a_process_sees_what_has_changed_on_disk(tmp_path: Path) -> None:
    """Pictures are kept for later rounds, not for later runs."""
    found = []
    generator = np.random.default_rng(0)
    for _ in range(2):
        for split in ("train", "test"):
            for name in ("a", "b"):
                file = tmp_path / "pictures" / split / name / "0.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
        scenario = small(
            data={"kind": "image_folder", "path": str(tmp_path / "pictures")},
            receivers={"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
            tasks={"label": {"kind": "classification"}},
            channels={"down": {"kind": "awgn"}},
            evaluation={},
            attacks={},
        )
        table = run(scenario, out=tmp_path).table
        found.append(table[table["metric"].eq("train_loss")]["value"].tolist())
    assert found[0] != found[1]


def damage(folder: Path, pattern: str, content: bytes | None) -> Path:
    (file,) = folder.glob(pattern)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("pattern", "content"),
    [
        ("checkpoints/*/state.json", b"{}"),
        ("checkpoints/*/*.safetensors", b""),
        ("checkpoints/*/*.safetensors", None),
        ("checkpoints/*/code.json", b"[]"),
        ("stages/*/points.json", b"{}"),
        ("stages/*/tallies.safetensors", b"cut"),
        ("stages/*/samples.json", b"[{"),
    ],
)
def test_a_damaged_stage_is_one_sentence(
    local_results: Results, tmp_path: Path, pattern: str, content: bytes | None
) -> None:
    folder = tmp_path / "small" / "run"
    shutil.copytree(local_results.folder, folder)
    file = damage(folder, pattern, content)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="damaged") as caught:
        run(resume=folder)
    assert f"remove the folder '{file.parent}'" in str(caught.value)
    assert (folder / "manifest.json").read_bytes() == before
    with pytest.raises(OutputError, match="damaged"):
        run(small(), out=tmp_path / "new", reuse=folder)
    assert not list((tmp_path / "new").glob("*/*"))
    if file.name == "tallies.safetensors":
        shutil.rmtree(file.parent)
        pd.testing.assert_frame_equal(comparable(run(resume=folder)), comparable(local_results), check_exact=True)


def test_two_processes_do_not_run_in_one_folder(local_results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "small" / "run"
    shutil.copytree(local_results.folder, folder)
    with Store.open(folder).locked(), pytest.raises(OutputError, match="is still going on; wait for its end"):
        run(resume=folder)
    with Store.open(folder).locked():
        pass


def test_what_cannot_be_measured_is_no_number(tmp_path: Path) -> None:
    """Weights far beyond any use give infinite logits, whose largest entry must not count as a decision."""
    far = small(federation={"rounds": 1, "server_optimizer": {"lr": 1e30}}, attacks={})
    far["evaluation"] = {"grids": [{"snr_db": [10]}]}
    far["tasks"] = {"label": {"kind": "classification"}}
    far["receivers"] = {"all": {"count": 2, "tasks": ["label"], "channel": "down"}}
    with pytest.raises(FedsemError, match=r"'accuracy' \(task label.*is NaN or infinite: the link diverged"):
        run(far, out=tmp_path)
    assert not list(tmp_path.glob("small/*/table.*"))


@pytest.mark.parametrize(
    ("engine", "moment"),
    [("local", "training"), ("ray", "training"), ("local", "evaluation"), ("ray", "evaluation"), ("ray", "start")],
)
def test_ctrl_c_ends_within_three_seconds_and_leaves_no_process(tmp_path: Path, engine: str, moment: str) -> None:
    scenario = small(federation={"rounds": 1 if moment == "evaluation" else 500})
    scenario["compute"] = {"engine": engine, "workers": 2}
    scenario["attacks"] = {"pgd": {"kind": "pgd", "steps": 100_000}}
    scenario["evaluation"]["grids"] = [{"attacks": ["pgd"], "snr_db": [10], "psr_db": [-10]}]
    process, folder = start(tmp_path, scenario)
    if moment != "start":
        wait_for(lambda: round_done(folder) >= 1, process)
    if moment == "evaluation":
        time.sleep(1)
    below = psutil.Process(process.pid).children(recursive=True)
    if moment != "evaluation":  # by then Ray is shutting down, or gone
        assert (len(below) > 0) == (engine == "ray")
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - pressed < 3
    assert process.returncode == 130, said
    assert b"Interrupted" in said
    assert b"Traceback" not in said
    assert not [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"


def test_a_round_that_ray_does_not_answer_in_time_ends_the_run(tmp_path: Path) -> None:
    """Flower itself goes on without a word when every reply is missing."""
    late = small(federation={"rounds": 1, "round_timeout_s": 0.01}, compute={"engine": "ray", "workers": 2})
    with pytest.raises(FederationError, match=r"Round 1: only 0 of 5 receivers .* \(no reply\)"):
        run(late, out=tmp_path)
    (manifest,) = tmp_path.glob("small/*/manifest.json")
    assert json.loads(manifest.read_text())["status"] == "failed"
    assert not list(tmp_path.glob("small/*/table.*"))


@pytest.mark.slow
def test_a_killed_run_on_ray_leaves_no_process_and_resumes_to_the_same_table(
    local_results: Results, tmp_path: Path
) -> None:
    process, folder = start(tmp_path, small(compute={"engine": "ray", "workers": 2}))
    wait_for(lambda: round_done(folder) in (1, 2), process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(below, timeout=10)
    assert len(gone) > 2
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    resumed = run(resume=folder)
    pd.testing.assert_frame_equal(comparable(resumed), comparable(local_results), check_exact=True)


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_changes_nothing(local_results: Results, tmp_path: Path) -> None:
    process, folder = start(tmp_path, small(federation={"rounds": 3}, compute={"engine": "ray", "workers": 2}))

    def actors() -> list[psutil.Process]:
        below = psutil.Process(process.pid).children(recursive=True)
        return [one for one in below if "ClientAppActor" in " ".join(one.cmdline())]

    wait_for(lambda: round_done(folder) >= 1 and len(actors()) > 0, process)
    actors()[0].kill()
    assert process.wait(timeout=120) == 0
    pd.testing.assert_frame_equal(comparable(Results(folder)), comparable(local_results), check_exact=True)
