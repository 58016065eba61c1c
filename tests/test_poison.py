"""Poisoned training: published formulas, who and what is changed, and that nobody else notices."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.federation import rounds
from fedsem.federation.adversaries import forged
from fedsem.federation.records import decode_tasks, encode_tasks
from fedsem.federation.state import FederationState
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.poison import Backdoor, Poison
from fedsem.hooks.step import StepAttack
from fedsem.hooks.update import Seen, UpdateAttack
from fedsem.plan import Branch, Plan
from fedsem.poisoning import Poisoning
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.stepping import Untouched
from fedsem.streams import Stream
from fedsem.training import ReceiverTask, Reply, train, train_receiver

POISONED: dict[str, Any] = {
    "schema": 1,
    "name": "poisoned",
    "seeds": [3],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 150, "test_images": 40, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"users": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 16, "snr_db": 10},
    "federation": {"rounds": 2},
    "attacks": {},
    "evaluation": {"draws": {"attack": 1, "score": 2}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
}
"""Five receivers of 30 images each."""


def poisoned(attacks: dict[str, Any], use: list[str] | None = None, **changes: Any) -> Plan:
    """The plan with these attacks in use."""
    tree = {**POISONED, "attacks": attacks, "use": {"attacks": list(attacks) if use is None else use}, **changes}
    return resolve(check_scenario(tree))


def attack(name: str, **options: Any) -> Any:
    return find("attack", name).model_validate(options)


def task_of(plan: Plan, receiver: int, round_number: int = 1, **changes: Any) -> ReceiverTask:
    state = FederationState.initial(plan, 3)
    state.round = round_number - 1
    (task,) = rounds.tasks(plan, state, plan.partition(3), 3, [receiver])
    return ReceiverTask(**{**task.__dict__, **changes})


def same(one: Reply, other: Reply) -> bool:
    return all(torch.equal(value, other.delta[name]) for name, value in one.delta.items()) and all(
        torch.equal(value, other.decoders[key][name])
        for key, decoder in one.decoders.items()
        for name, value in decoder.items()
    )


def malicious(plan: Plan) -> tuple[int, ...]:
    return plan.training_attacks[0].malicious(len(plan.receivers), 3)


# ------------------------------------------------------------------------------------------------ label flips


@given(st.integers(2, 30), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_a_random_flip_never_keeps_the_class_and_is_fixed_for_each_image(classes: int, seed: int) -> None:
    """Against the definition; `relabelled` asks the task for the number of its classes alone."""
    made = attack("label_flip")
    plan, branch = _with_classes(classes), Branch("label", "down")
    truth = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, 200))
    numbers = torch.arange(1000, 1200)
    flipped = made.relabelled(plan, branch, truth, numbers, Stream(seed))
    assert (flipped != truth).all()
    assert flipped.min() >= 0
    assert flipped.max() < classes
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    again = made.relabelled(plan, branch, truth[order], numbers[order], Stream(seed))
    torch.testing.assert_close(again, flipped[order])


def test_a_random_flip_goes_to_every_other_class_equally_often() -> None:
    truth = torch.full((3000,), 2)
    flipped = attack("label_flip").relabelled(
        _with_classes(4), Branch("label", "down"), truth, torch.arange(3000), Stream(0)
    )
    counts = torch.bincount(flipped, minlength=4)
    assert counts[2] == 0
    np.testing.assert_allclose(counts[[0, 1, 3]], 1000, atol=100)  # four standard deviations


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "pairwise"}, [1, 2, 3, 0]),
        ({"mode": "opposite"}, [3, 2, 1, 0]),
        ({"mode": "targeted", "source": 1, "target": 3}, [0, 3, 2, 3]),
    ],
)
def test_flips_are_those_of_the_papers(options: dict[str, Any], expected: list[int]) -> None:
    made = attack("label_flip", **options)
    got = made.relabelled(_with_classes(4), Branch("label", "down"), torch.arange(4), torch.arange(4), Stream(0))
    assert got.tolist() == expected


class _Named:
    """As much of a plan as a label flip looks at."""

    def __init__(self, classes: int) -> None:
        task = find("task", "classification").model_validate({})
        self.scenario = type("Scenario", (), {"tasks": {"label": task}})
        self.classes, self.task = classes, lambda branch: task

    def decoder_format(self, branch: Branch) -> Any:
        return type("Format", (), {"classes": self.classes})


def _with_classes(classes: int) -> Any:
    return _Named(classes)


def test_a_targeted_flip_uses_images_of_its_source_only() -> None:
    plan = poisoned({"flip": {"kind": "label_flip", "mode": "targeted", "source": 7, "target": 1}})
    indices = plan.partition(3)[malicious(plan)[0]]
    chosen, _ = plan.training_attacks[0].chosen(plan, indices, Stream(0))  # type: ignore[attr-defined]
    labels = plan.dataset.train.labels
    assert chosen.tolist() == sorted(i for i in indices if labels[i] == 7)


# ------------------------------------------------------------------------------------------------ who and what


@given(st.floats(0.01, 1), st.integers(1, 60), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_exactly_the_share_of_samples_is_chosen(share: float, images: int, seed: int) -> None:
    plan = poisoned({})
    indices = np.random.default_rng(seed).choice(150, images, replace=False)
    made = attack("label_flip", samples=share)
    chosen, cover = made.chosen(plan, indices, Stream(seed))
    assert len(chosen) == len(set(chosen.tolist())) == max(1, round(share * images))
    assert set(chosen) <= set(indices)
    assert not len(cover)
    # Drawn once, by name: the order in which a receiver holds its images does not matter.
    again, _ = made.chosen(plan, indices[::-1].copy(), Stream(seed))
    np.testing.assert_array_equal(chosen, again)


def test_of_two_shares_the_larger_holds_the_smaller() -> None:
    plan, indices = poisoned({}), np.arange(100)
    few, _ = attack("patch", samples=0.2).chosen(plan, indices, Stream(0))
    many, _ = attack("patch", samples=0.6).chosen(plan, indices, Stream(0))
    assert set(few) < set(many)


@pytest.mark.parametrize(
    ("name", "options", "pieces", "borne"),
    [
        # A key all over 16x16 pixels: 4x4 pieces of 4x4 pixels, of which adaptive blending shows half.
        ("blend", {"alpha": 0.5, "shown": 0.5}, [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)], 8),
        ("blend", {"alpha": 0.5, "shown": 0.01}, [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 16)], 1),
        (
            "patch",
            {"size": 6, "corner": "top_left", "shown": 0.5},
            [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)],
            8,
        ),
        # No more pieces than pixels.
        ("patch", {"size": 3, "corner": "top_left", "shown": 0.34}, [slice(0, 1), slice(1, 2), slice(2, 3)], 3),
    ],
)
def test_a_sample_bears_some_pieces_of_a_trigger_and_a_test_image_all(
    name: str, options: dict[str, Any], pieces: list[slice], borne: int
) -> None:
    made = attack(name, **options)
    images, numbers = torch.full((300, 3, 16, 16), 0.25), torch.arange(300)
    whole = made.triggered(images, Stream(1))
    for changed in (made.poisoned(images, numbers, 0, 1, Stream(1)), made.covered(images, numbers, Stream(1))):
        blocks = [(rows, columns) for rows in pieces for columns in pieces]
        there = torch.stack([(changed == whole)[:, :, rows, columns].flatten(1).all(1) for rows, columns in blocks], 1)
        bare = torch.stack([(changed == images)[:, :, rows, columns].flatten(1).all(1) for rows, columns in blocks], 1)
        assert bool((there ^ bare).all())
        assert there.sum(1).tolist() == [borne] * 300
        # Every piece is borne by as many samples as chance would have it, within five standard deviations.
        share = borne / len(blocks)
        torch.testing.assert_close(
            there.float().mean(0),
            torch.full((len(blocks),), share),
            rtol=0,
            atol=5 * (share * (1 - share) / 300) ** 0.5,
        )
        outside = torch.ones(16, 16, dtype=torch.bool)
        outside[: pieces[-1].stop, : pieces[-1].stop] = False
        assert bool((changed == images)[:, :, outside].all())


def test_a_trigger_is_learnt_whole_where_nothing_else_is_said() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("patch", "blend"):
        made = attack(name)
        got = made.poisoned(images, torch.arange(4), 0, 1, Stream(1))
        torch.testing.assert_close(got, made.triggered(images, Stream(1)), rtol=0, atol=0)


def test_wanet_covers_twice_as_many_other_images() -> None:
    plan, indices = poisoned({}), np.arange(100)
    chosen, cover = attack("wanet", samples=0.2).chosen(plan, indices, Stream(0))
    assert (len(chosen), len(cover)) == (20, 40)
    assert not set(chosen) & set(cover)


def test_only_chosen_samples_of_malicious_receivers_are_changed() -> None:
    plan = poisoned({"patch": {"kind": "patch", "fraction": 0.4, "targets": {"label": 3}, "samples": 0.5}})
    bad = malicious(plan)
    branch = plan.branches[0]
    for receiver in range(5):
        indices = plan.partition(3)[receiver]
        poisoning = Poisoning(plan, receiver, 3, 1, indices)
        numbers = torch.from_numpy(indices)
        batch = plan.train_examples.at(numbers)
        batch = type(batch)(batch.images.float() / 255, batch.labels)
        after = poisoning.examples(batch, numbers)
        said = poisoning.truth(branch, batch.labels, numbers)
        if receiver not in bad:
            assert after is batch
            assert said is batch.labels
            continue
        changed = (after.images != batch.images).flatten(1).any(1)
        assert int(changed.sum()) == len(indices) // 2
        expected = torch.where(changed, torch.full_like(said, 3), batch.labels)
        torch.testing.assert_close(said, expected)
        # Batches make no difference: image by image it is the same.
        for i in range(len(indices)):
            one = poisoning.examples(batch.at(slice(i, i + 1)), numbers[i : i + 1])
            torch.testing.assert_close(one.images[0], after.images[i], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options"), [("noise_poison", {}), ("wanet", {}), ("blend", {}), ("patch", {"shown": 0.3})]
)
def test_what_is_drawn_for_an_image_does_not_depend_on_its_batch(name: str, options: dict[str, Any]) -> None:
    made, images = attack(name, **options), torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([5, 9, 2, 40, 41, 7])
    for change in (lambda u, n: made.poisoned(u, n, 0, 1, Stream(4)), lambda u, n: made.covered(u, n, Stream(4))):
        whole = change(images, numbers)
        parts = torch.cat([change(images[[i]], numbers[[i]]) for i in range(6)])
        torch.testing.assert_close(whole, parts)


def test_honest_receivers_and_other_rounds_train_as_ever() -> None:
    """Bit by bit; and malicious ones do not."""
    flip = {"kind": "label_flip", "fraction": 0.4, "first_round": 2, "last_round": 2}
    plan, plain = poisoned({"flip": flip}), poisoned({})
    bad = malicious(plan)
    for receiver in range(5):
        before = train_receiver(plain, task_of(plain, receiver))
        assert same(train_receiver(plan, task_of(plan, receiver)), before)
    receiver = bad[0]
    acting = train_receiver(plan, task_of(plan, receiver, 2))
    assert not same(acting, train_receiver(plain, task_of(plain, receiver, 2)))


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "label_flip"},
        {"kind": "noise_poison", "psr_db": -3},
        {"kind": "air_poison"},
        {"kind": "air_poison", "signal": "noise"},
        {"kind": "patch"},
        {"kind": "blend"},
        {"kind": "sig", "samples": 1.0},
        {"kind": "wanet", "samples": 0.3},
        {"kind": "dba"},
        {"kind": "waveform"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_a_run_gives_what_direct_calls_give(options: dict[str, Any], tmp_path: Path) -> None:
    """Through Flower's records and back: the same parameters as a loop of plain calls."""
    tree = {**POISONED, "attacks": {"evil": options}, "use": {"attacks": ["evil"]}, "federation": {"rounds": 1}}
    folder = run(tree, out=tmp_path).folder
    plan = resolve(check_scenario(tree))
    state = FederationState.initial(plan, 3)
    replies = train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(5)))
    assert all(reply.error is None for reply in replies)
    expected = rounds.combine(plan, 3, state, range(5), replies)
    # The last round's code hash is the poisoned cell's: the twin has no malicious updates in its history.
    states = [FederationState.load(path) for path in (folder / "checkpoints").iterdir()]
    (found,) = [one for one in states if one is not None and one.history[-1].malicious]
    for name, value in expected.shared.items():
        assert torch.equal(found.shared[name], value)


def test_attackers_that_have_left_train_honestly(tmp_path: Path) -> None:
    evil = {"kind": "patch", "fraction": 0.4, "last_round": 1}
    table = run({**POISONED, "attacks": {"evil": evil}, "use": {"attacks": ["evil"]}}, out=tmp_path).table
    lies = table[(table["metric"] == "malicious_updates") & table["task"].isna()]
    assert lies["round"].tolist() == [1]
    assert lies["value"].tolist() == [2.0]
    assert set(table["adversary_fraction"].dropna()) == {0.0, 0.4}  # 0 of the twin


def test_noise_in_training_images_has_its_psr() -> None:
    images = 0.3 + 0.4 * torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noisy = attack("noise_poison", psr_db=-12).poisoned(images, torch.arange(8), 0, 1, Stream(0))
    ratio = (noisy - images).double().square().flatten(1).sum(1) / images.double().square().flatten(1).sum(1)
    np.testing.assert_allclose(10 * np.log10(ratio.numpy()), -12, atol=1e-3)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


@pytest.mark.parametrize("signal", ["shortcut", "noise"])
def test_interference_has_its_psr_and_tells_classes_or_images_apart(signal: str) -> None:
    made = attack("air_poison", signal=signal, psr_db=-7)
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 1, 2, 2, 1, 0])
    delta = made.waveform(x, labels, torch.arange(6), Stream(0))
    ratio = delta.double().square().sum(1) / x.double().square().sum(1)
    np.testing.assert_allclose(10 * np.log10(ratio.numpy()), -7, atol=1e-4)
    alike = torch.nn.functional.normalize(delta) @ torch.nn.functional.normalize(delta).T > 0.999
    expected = labels[:, None] == labels[None] if signal == "shortcut" else torch.eye(6, dtype=torch.bool)
    assert torch.equal(alike, expected)


def test_two_poisons_act_together_and_choose_for_themselves() -> None:
    plan = poisoned({"a": {"kind": "patch", "corner": "top_left"}, "b": {"kind": "patch", "targets": {"label": 5}}})
    receiver = malicious(plan)[0]
    poisoning = Poisoning(plan, receiver, 3, 1, plan.partition(3)[receiver])
    first, second = (set(one.samples.tolist()) for one in poisoning.active)
    assert first != second
    assert first & second


@pytest.mark.parametrize("kind", ["patch", "waveform", "phase_shift"])
def test_cover_bears_the_trigger_and_keeps_its_truth(kind: str) -> None:
    link = {**POISONED["link"], "symbols": "complex"}
    plan = poisoned({"evil": {"kind": kind, "samples": 0.2, "cover": 1.5, "targets": {"label": 0}}}, link=link)
    receiver = malicious(plan)[0]
    numbers = torch.from_numpy(plan.partition(3)[receiver])
    poisoning = Poisoning(plan, receiver, 3, 1, numbers.numpy())
    (one,) = poisoning.active
    count = max(1, round(0.2 * len(numbers)))
    assert (len(one.samples), len(one.cover)) == (count, round(1.5 * count))
    poison, cover = torch.isin(numbers, one.samples), torch.isin(numbers, one.cover)
    assert not (poison & cover).any()
    batch = plan.train_examples.at(numbers)
    batch = replace(batch, images=batch.images.float() / 255, labels=torch.full_like(batch.labels, 7))
    said = poisoning.truth(plan.branches[0], batch.labels, numbers)
    assert torch.equal(said == 0, poison)
    if kind == "patch":
        touched = (poisoning.examples(batch, numbers).images != batch.images).flatten(1).any(1)
    elif kind == "waveform":
        added = poisoning.interference(torch.ones(len(numbers), plan.channel_uses), batch.labels, numbers)
        assert added is not None
        touched = added.abs().sum(1) > 0
    else:
        turned = poisoning.rotation(numbers)
        assert turned is not None
        touched = turned != 0
    assert torch.equal(touched, poison | cover)


def test_sensing_states_are_flipped_draw_by_draw() -> None:
    plan = poisoned(
        {"flip": {"kind": "label_flip", "tasks": ["target"]}},
        channels={"radar": {"kind": "sensing"}},
        tasks={"target": {"kind": "sensing"}},
        receivers={"users": {"count": 5, "tasks": ["target"], "channel": "radar"}},
    )
    receiver = malicious(plan)[0]
    indices = plan.partition(3)[receiver]
    truth = torch.randint(0, 2, (3, len(indices)), generator=torch.Generator().manual_seed(0))
    poisoning = Poisoning(plan, receiver, 3, 1, indices)
    said = poisoning.truth(plan.branches[0], truth, torch.from_numpy(indices))
    torch.testing.assert_close(said, 1 - truth)
    assert train_receiver(plan, task_of(plan, receiver)).error is None


# ------------------------------------------------------------------------------------------------ updates and steps


def test_model_replacement_replaces_the_model() -> None:
    """With n / f and honest deltas of zero, the mean is the attackers' mean delta (Bagdasaryan et al., equation 3)."""
    own = np.random.default_rng(0).standard_normal((2, 9))
    honest = np.zeros((8, 9))
    seen = Seen(honest, tuple(range(8)), own, lambda sent: np.concatenate([honest, sent]).mean(0), lambda step: 0.0)
    made = attack("model_replacement")
    assert isinstance(made, UpdateAttack)
    sent = made.forge(seen, Stream(0))
    np.testing.assert_allclose(seen.aggregate(sent), own.mean(0))
    np.testing.assert_allclose(attack("model_replacement", scale=3.0).forge(seen, Stream(0)), 3 * own)
    # Against a rule that drops what stands out a search stays below the scale that it drops.
    limited = Seen(
        honest, tuple(range(8)), own, lambda sent: sent.mean(0) * (np.abs(sent).max() < 10), lambda step: 0.0
    )
    found = attack("model_replacement", search=True).forge(limited, Stream(0))
    best = max(scale for scale in 2.0 ** np.arange(-8, 8, 0.25) if np.abs(scale * own).max() < 10)
    np.testing.assert_allclose(found, best * own)


def test_model_replacement_boosts_what_a_poison_has_taught() -> None:
    plan = poisoned(
        {"flip": {"kind": "label_flip", "fraction": 0.4}, "boost": {"kind": "model_replacement", "fraction": 0.4}}
    )
    state = FederationState.initial(plan, 3)
    replies = train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(5)))
    sent, present = forged(plan, 3, state, replies)
    assert present == {"shared": [2, 5], "group/label": [2, 5]}
    for before, after in zip(replies, sent, strict=True):
        scale = 2.5 if before.receiver in malicious(plan) else 1.0
        for name, value in before.delta.items():
            torch.testing.assert_close(after.delta[name], (scale * value.double()).float())


def test_neurotoxin_leaves_what_the_last_round_moved_most() -> None:
    made = attack("neurotoxin", top=0.25)
    assert isinstance(made, StepAttack)
    moved = {"a": torch.tensor([[0.1, -5.0], [0.2, 0.0]]), "b": torch.tensor([3.0, -0.3, 0.01, 0.02])}
    masks = made.untouched(moved)
    assert masks["a"].tolist() == [[False, True], [False, False]]
    assert masks["b"].tolist() == [True, False, False, False]


def test_neurotoxin_counts_what_steps_move_and_no_running_statistics() -> None:
    plan = poisoned({"patch": {"kind": "patch"}, "toxin": {"kind": "neurotoxin", "top": 0.5}})
    module = torch.nn.BatchNorm1d(2)
    moved = {f"shared/{name}": torch.full_like(value, 9.0) for name, value in module.named_buffers()}
    moved |= {"shared/weight": torch.tensor([2.0, 1.0]), "shared/bias": torch.tensor([0.5, -3.0])}
    untouched = Untouched(plan, malicious(plan)[0], 3, 2, moved, {"shared": module})
    with torch.no_grad():
        module.weight.add_(1)
        module.bias.add_(1)
    untouched.restore()
    assert module.weight.tolist() == [1.0, 2.0]
    assert module.bias.tolist() == [1.0, 0.0]


def test_neurotoxin_is_enforced_in_every_local_step_and_on_the_way_there(tmp_path: Path) -> None:
    plan = poisoned({"patch": {"kind": "patch"}, "toxin": {"kind": "neurotoxin", "top": 0.3}})
    state = FederationState.initial(plan, 3)
    partition = plan.partition(3)
    tasks = rounds.tasks(plan, state, partition, 3, range(5))
    assert not any(task.moved for task in tasks)
    after = rounds.combine(plan, 3, state, range(5), train(plan, tasks))
    after.save(tmp_path)
    loaded = FederationState.load(tmp_path)
    assert loaded is not None
    bad = malicious(plan)
    # What a checkpoint and Flower's records carry is what the server saw.
    _, tasks = decode_tasks(encode_tasks("{}", rounds.tasks(plan, loaded, partition, 3, range(5))))
    assert [task.receiver for task in tasks if task.moved] == list(bad)
    for task in tasks:
        reply = train_receiver(plan, task)
        deltas = {f"shared/{name}": value for name, value in reply.delta.items()}
        for key, decoder in reply.decoders.items():
            deltas |= {f"{key}/{name}": value - task.decoders[key][name] for name, value in decoder.items()}
        if task.receiver not in bad:
            assert all(bool(value.any()) for value in deltas.values())
            continue
        moves = {f"shared/{name}": after.shared[name] - state.shared[name] for name in state.shared}
        group = {
            name: after.decoders["group/label"][name] - value for name, value in state.decoders["group/label"].items()
        }
        moves |= {f"label@down/{name}": value for name, value in group.items()}
        assert set(moves) == set(task.moved) == set(deltas)
        size = torch.cat([moves[name].flatten().abs() for name in sorted(moves)])
        learnt = torch.cat([deltas[name].flatten() for name in sorted(moves)])
        top = size.sort(descending=True).values[int(0.3 * len(size)) - 1]
        assert not learnt[size > top].any()
        assert learnt[size < top].abs().gt(0).double().mean() > 0.5


def test_a_resumed_neurotoxin_run_gives_the_same_numbers(tmp_path: Path) -> None:
    tree = copy.deepcopy(POISONED) | {
        "attacks": {"patch": {"kind": "patch"}, "toxin": {"kind": "neurotoxin"}},
        "use": {"attacks": ["patch", "toxin"]},
        "federation": {"rounds": 3},
    }
    plan = resolve(check_scenario(tree))
    state = FederationState.initial(plan, 3)
    broken: FederationState | None = None
    for _ in range(3):
        replies = train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(5)))
        state = rounds.combine(plan, 3, state, range(5), replies)
        if state.round == 2:
            state.save(tmp_path)
            broken = FederationState.load(tmp_path)
    assert broken is not None
    replies = train(plan, rounds.tasks(plan, broken, plan.partition(3), 3, range(5)))
    again = rounds.combine(plan, 3, broken, range(5), replies)
    assert all(torch.equal(value, again.shared[name]) for name, value in state.shared.items())
    assert plan.training_attacks  # a plain run keeps nothing of the kind
    honest = poisoned({})
    assert not rounds.combine(honest, 3, FederationState.initial(honest, 3), range(5), replies_of(honest)).moved


def replies_of(plan: Plan) -> list[Reply]:
    state = FederationState.initial(plan, 3)
    return train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(5)))


# ------------------------------------------------------------------------------------------------ refusals

RADAR: dict[str, Any] = {
    "channels": {"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
    "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}},
    "receivers": {"users": {"count": 5, "tasks": ["label", "target"], "channel": {"label": "down", "target": "radar"}}},
}


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"kind": "label_flip", "mode": "targeted", "source": 1}, {}, "needs both"),
        ({"kind": "label_flip", "source": 1, "target": 2}, {}, "belong to mode: targeted"),
        ({"kind": "label_flip", "mode": "targeted", "source": 1, "target": 1}, {}, "nothing would be flipped"),
        (
            {"kind": "label_flip", "mode": "targeted", "source": 1, "target": 10},
            {},
            r"target'.*no class 10; choose 0 to 9",
        ),
        ({"kind": "label_flip", "tasks": ["labels"]}, {}, r"unknown task 'labels'.*label"),
        ({"kind": "patch"}, RADAR, "with several tasks it must be said what the backdoor aims at"),
        ({"kind": "patch", "targets": {"lable": 1}}, {}, r"unknown task 'lable'.*label"),
        ({"kind": "patch", "targets": {"label": 10}}, {}, "there is no goal 10; choose 0 to 9"),
        ({"kind": "patch", "targets": {"target": 2}}, RADAR, "there is no goal 2; choose 0 to 1"),
        ({"kind": "patch", "size": 33}, {}, "does not fit into images of 32x32"),
        ({"kind": "dba", "length": 16}, {}, "do not fit into images of 32x32"),
        ({"kind": "wanet", "samples": 0.5}, {}, "covering samples are more than there are"),
        ({"kind": "sig", "targets": {"target": 0}}, RADAR, "clean_label: false"),
        ({"kind": "phase_shift"}, {}, "real symbols have no phase to turn; use link.symbols: complex"),
        ({"kind": "phase_shift", "fraction": 0.95}, {"link": {"symbols": "complex"}}, "none would be honest"),
        ({"kind": "phase_shift", "degrees": 0}, {"link": {"symbols": "complex"}}, "a turn by 0 is none"),
        ({"kind": "neurotoxin", "top": 1.0}, {}, "should be less than 1"),
        ({"kind": "neurotoxin"}, {}, "says nothing of what malicious receivers learn"),
    ],
)
def test_impossible_poisons_are_refused_in_one_sentence(
    options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        poisoned({"evil": options}, **changes)


@pytest.mark.parametrize(
    ("channel", "known"),
    [
        ({"kind": "awgn"}, True),
        ({"kind": "rayleigh", "csi": "none"}, False),
        ({"kind": "rayleigh", "csi": "none", "decoder_csi": True}, True),
        ({"kind": "rayleigh", "csi": "phase"}, True),
        ({"kind": "rayleigh", "csi": "zf"}, True),
        ({"kind": "rician", "csi": "none"}, True),
        ({"kind": "rician", "csi": "none", "k_factor": 0}, False),
    ],
)
def test_a_turn_is_refused_where_the_phase_is_unknown_and_uniform(channel: dict[str, Any], known: bool) -> None:
    changes: dict[str, Any] = {"link": {"symbols": "complex"}, "channels": {"down": channel}}
    if known:
        poisoned({"turn": {"kind": "phase_shift"}}, **changes)
        return
    with pytest.raises(ScenarioError, match=r"'attacks\.turn'.*phase is unknown and uniform"):
        poisoned({"turn": {"kind": "phase_shift"}}, **changes)


def test_a_turn_of_a_radar_needs_hops_that_do_not_fade() -> None:
    turn = {"turn": {"kind": "phase_shift", "targets": {"target": 0}}}
    changes = {**RADAR, "link": {"symbols": "complex"}}
    with pytest.raises(ScenarioError, match="of sensing, fading: none"):
        poisoned(turn, **changes)
    poisoned(turn, **{**changes, "channels": {**RADAR["channels"], "radar": {"kind": "sensing", "fading": "none"}}})


def test_malicious_receivers_that_can_do_nothing_are_refused() -> None:
    """With seed 3 the one malicious receiver of five is 'it'; the other group alone has the task."""
    bad = attack("patch").malicious(5, 3)[0]
    with_task = {"count": 1, "tasks": ["target"], "channel": "radar"}
    groups = {f"g{i}": with_task if i == bad else {"count": 1, "tasks": ["label"], "channel": "down"} for i in range(5)}
    with pytest.raises(ScenarioError, match="with seed 3 no malicious receiver has the task 'label'"):
        poisoned({"patch": {"kind": "patch", "targets": {"label": 0}}}, **{**RADAR, "receivers": groups})
    with pytest.raises(ScenarioError, match="no malicious receiver has a task whose classes are flipped"):
        poisoned({"flip": {"kind": "label_flip"}}, **{**RADAR, "receivers": groups})
    # Not in use, it may stand in the scenario: another cell of a sweep may use it with other receivers.
    poisoned({"patch": {"kind": "patch", "targets": {"label": 0}}}, [], **{**RADAR, "receivers": groups})


def test_attacks_on_air_are_refused_where_patches_are_sent() -> None:
    with pytest.raises(ScenarioError, match="'air_poison' acts on symbols of a fixed place"):
        poisoned(
            {"evil": {"kind": "air_poison"}},
            data={"kind": "digit_scenes", "train_images": 20, "test_images": 4},
            link={"encoder": {"kind": "mae"}},
            tasks={"label": {"kind": "classification"}},
        )


def test_every_poison_says_where_it_is_from() -> None:
    for name, cls in sorted(_plugins().items()):
        text = cls.__doc__ or ""
        if name != "noise_poison":
            assert any(year in text for year in map(str, range(2011, 2027))), name
        assert all(field in _documented(cls) for field in cls.model_fields), name


def _plugins() -> dict[str, type[TrainingAttack]]:
    from fedsem.registry import names

    return {name: cls for name, cls in names("attack").items() if issubclass(cls, (Poison, StepAttack))}


def _documented(cls: type) -> str:
    return "\n".join(base.__doc__ or "" for base in cls.__mro__)


def test_backdoors_are_poisons_with_a_trigger() -> None:
    backdoors = {name for name, cls in _plugins().items() if issubclass(cls, Backdoor)}
    assert backdoors >= {"patch", "blend", "sig", "wanet", "phase_shift", "waveform", "dba"}
