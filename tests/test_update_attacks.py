"""Byzantine updates: closed forms, published examples, and the limits that they promise to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import byzfl
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assemble
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.federation import adversaries, rounds
from fedsem.federation.adversaries import forged as forged_replies
from fedsem.federation.state import FederationState, owner
from fedsem.hooks.update import Seen, UpdateAttack
from fedsem.plan import Plan
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.streams import Stream
from fedsem.training import Reply, train

H = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])


def attack(name: str, **options: Any) -> UpdateAttack:
    made = find("attack", name).model_validate(options)
    assert isinstance(made, UpdateAttack)
    return made


def bowl(centre: np.ndarray) -> Callable[[np.ndarray], float]:
    """The loss of a network that has learnt all there is to learn after this step."""
    return lambda made: float(np.linalg.norm(made - centre))


def seen(honest: np.ndarray, malicious: int, receivers: tuple[int, ...] | None = None) -> Seen:
    """As the server's mean makes of it."""
    own = np.ones((malicious, honest.shape[1]))
    everyone = receivers or tuple(range(len(honest)))
    return Seen(honest, everyone, own, lambda sent: np.concatenate([honest, sent]).mean(0), bowl(honest.mean(0)))


def forged(made: UpdateAttack, honest: np.ndarray, malicious: int = 2) -> np.ndarray:
    before = honest.copy()
    sent = made.forge(seen(honest, malicious), Stream(0))
    assert np.array_equal(before, honest)
    assert sent.shape == (malicious, honest.shape[1])
    assert (sent == sent[0]).all()
    first: np.ndarray = sent[0]
    return first


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("alie", {"z": 1.5, "upwards": True}, (8.5, 9.5, 10.5)),
        ("alie", {"z": 1.5}, (-0.5, 0.5, 1.5)),
        ("ipm", {"epsilon": 2.0}, (-8, -10, -12)),
        ("sign_flip", {}, (-4, -5, -6)),
    ],
)
def test_examples_that_byzfl_publishes(name: str, options: dict[str, Any], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(forged(attack(name, **options), H), expected)


@pytest.mark.parametrize(("receivers", "malicious", "z"), [(10, 2, 0.0), (50, 24, 1.426077)])
def test_the_papers_own_z(receivers: int, malicious: int, z: float) -> None:
    """Algorithm 3 of Baruch et al.; their n = 50, f = 24."""
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((receivers - malicious, 7))
    sent = forged(attack("alie"), honest, malicious)
    np.testing.assert_allclose(sent, honest.mean(0) - z * honest.std(0, ddof=1), atol=1e-6)


@given(st.integers(2, 12), st.integers(1, 30), st.sampled_from(["std", "unit", "sign"]), st.integers(0, 2**31))
@settings(deadline=None)
def test_min_max_and_min_sum_go_as_far_as_they_may(m: int, d: int, direction: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    honest = rng.standard_normal((m, d)) * rng.uniform(0.01, 10) + rng.standard_normal(d)
    apart = ((honest[:, None] - honest[None]) ** 2).sum(-1)
    for name, limit, reach in (
        ("min_max", apart.max(), np.max),
        ("min_sum", apart.sum(1).max(), np.sum),
    ):
        sent = forged(attack(name, direction=direction), honest)
        reached = reach(((honest - sent) ** 2).sum(1))
        assert reached == pytest.approx(limit, rel=1e-6)


def test_mimics_copy_the_same_receiver() -> None:
    np.testing.assert_array_equal(attack("mimic").forge(seen(H, 2, (7, 3, 5)), Stream(0)), H[[1, 1]])


def test_a_searching_mimic_copies_whoever_moves_the_rule_furthest() -> None:
    honest = np.array([[0.0, 1.0], [0.0, 1.2], [9.0, 0.0], [0.0, 0.8]])
    sent = attack("mimic", search=True).forge(seen(honest, 2), Stream(0))
    np.testing.assert_array_equal(sent, honest[[2, 2]])


def test_noise_and_constants_are_in_units_of_an_honest_update() -> None:
    rng = np.random.default_rng(0)
    honest = 0.01 * rng.standard_normal((6, 20_000))
    view = seen(honest, 3)
    norm = np.linalg.norm(honest, axis=1).mean()
    noise = attack("gaussian_update", scale=5).forge(view, Stream(0))
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 5 * norm, rtol=0.02)
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.03
    np.testing.assert_array_equal(noise, attack("gaussian_update", scale=5).forge(view, Stream(0)))
    constant = attack("constant_update", value=-2).forge(view, Stream(0))
    assert len(np.unique(constant)) == 1
    np.testing.assert_allclose(np.linalg.norm(constant, axis=1), 2 * norm, rtol=0.02)
    assert np.isnan(attack("constant_update", value="nan").forge(view, Stream(0))).all()
    assert np.isposinf(attack("constant_update", value="inf").forge(view, Stream(0))).all()
    assert not attack("constant_update", value=0).forge(view, Stream(0)).any()


@pytest.mark.parametrize("name", ["alie", "ipm", "sign_flip"])
def test_malicious_updates_are_byzfls(name: str) -> None:
    rng = np.random.default_rng(1)
    honest = rng.standard_normal((8, 50))
    theirs = {
        "alie": lambda: byzfl.ALittleIsEnough(tau=0.7)(honest),
        "ipm": lambda: byzfl.InnerProductManipulation(tau=0.7)(honest),
        "sign_flip": lambda: byzfl.SignFlipping()(honest),
    }[name]()
    options = {"alie": {"z": 0.7, "upwards": True}, "ipm": {"epsilon": 0.7}, "sign_flip": {}}[name]
    np.testing.assert_allclose(forged(attack(name, **options), honest), theirs, rtol=1e-10)


@pytest.mark.parametrize(("name", "options"), [("alie", {}), ("ipm", {}), ("min_max", {}), ("min_sum", {})])
def test_a_search_finds_the_scale_that_moves_the_rule_furthest(name: str, options: dict[str, Any]) -> None:
    """Against a mean the largest scale; against a median, whose movement is bounded, none better than the found one."""
    rng = np.random.default_rng(2)
    honest = rng.standard_normal((7, 40)) + 0.5
    made = attack(name, search=True, **options)
    start, direction = made.line(seen(honest, 3))  # type: ignore[attr-defined]
    sent = made.forge(seen(honest, 3), Stream(0))
    np.testing.assert_allclose(sent[0], start + 2**8 * direction)
    median = Seen(
        honest,
        tuple(range(7)),
        np.zeros((3, 40)),
        lambda rows: np.median(np.concatenate([honest, rows]), axis=0),
        bowl(honest.mean(0)),
    )
    found = np.linalg.norm(median.aggregate(made.forge(median, Stream(0))) - honest.mean(0))
    for scale in (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 50.0):
        other = np.linalg.norm(median.aggregate(np.repeat((start + scale * direction)[None], 3, 0)) - honest.mean(0))
        assert found >= other * 0.97
    plain = np.linalg.norm(median.aggregate(attack(name, **options).forge(median, Stream(0))) - honest.mean(0))
    assert found >= plain * 0.97


def test_each_flips_its_own() -> None:
    own = np.array([[1.0, 2.0, 0.0], [-3.0, 0.5, 1.0]])
    made = attack("sign_flip", of="own", scale=2).forge(
        Seen(H, (0, 1, 2), own, lambda rows: rows.mean(0), bowl(H[0])), Stream(0)
    )
    np.testing.assert_array_equal(made, -2 * own)


def test_a_search_goes_where_the_loss_grows_and_not_where_training_goes_faster() -> None:
    """A server that takes what it is sent, up to three times the honest step forward and a little back."""
    mean = H.mean(0)
    view = Seen(
        H,
        tuple(range(len(H))),
        np.zeros((2, H.shape[1])),
        lambda rows: np.clip(-3 * rows[0], -0.5 * mean, 3 * mean),
        bowl(2 * mean),
    )
    sent = attack("ipm", search=True).forge(view, Stream(0))
    np.testing.assert_allclose(view.aggregate(sent), -0.5 * mean)
    # What is boosted is to go as far as it can, whatever becomes of the loss.
    boosted = attack("model_replacement", search=True).forge(replace(view, own=-H[:2]), Stream(0))
    np.testing.assert_allclose(view.aggregate(boosted), 3 * mean)


@pytest.mark.parametrize("direction", ["mean", "spread"])
def test_what_is_tailored_to_a_rule_goes_by_the_loss_and_not_by_the_way(direction: str) -> None:
    """The honest agree about one coordinate and not about another; a step along either of them is the only harm."""
    honest = np.array([[1.0, -30.0], [1.0, 30.0], [1.0, 0.0]])
    harmful = ["mean", "spread"].index(direction)
    view = Seen(
        honest,
        (0, 1, 2),
        np.zeros((2, 2)),
        lambda rows: np.clip(np.concatenate([honest, rows]).mean(0), -5, 5),
        lambda made: float(abs(made[harmful] - honest.mean(0)[harmful])),
    )
    sent = attack("tailored").forge(view, Stream(0))
    assert view.aggregate(sent)[harmful] == -5
    np.testing.assert_allclose(sent[:, 1 - harmful], honest.mean(0)[1 - harmful], atol=1e-9)


# ------------------------------------------------------------------------------------------------ in the federation

FEDERATED: dict[str, Any] = {
    "schema": 1,
    "name": "byzantine",
    "seeds": [3],
    "compute": {"engine": "local", "workers": 2},
    "data": {"kind": "digits", "train_images": 150, "test_images": 40, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {
        "together": {"count": 3, "tasks": ["label"], "channel": "down", "decoder": "group"},
        "alone": {"count": 2, "tasks": ["label"], "channel": "down", "decoder": "local"},
    },
    "train": {"batch": 32, "snr_db": 10},
    "federation": {"rounds": 2},
    "attacks": {"flip": {"kind": "sign_flip", "fraction": 0.4, "scale": 3}},
    "use": {"attacks": ["flip"]},
    "evaluation": {"draws": {"attack": 1, "score": 2}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
}


def replies_of(plan: Plan, state: FederationState) -> list[Reply]:
    return train(plan, rounds.tasks(plan, state, plan.partition(3), 3, range(len(plan.receivers))))


def test_malicious_receivers_send_what_the_attack_makes_of_the_honest_ones() -> None:
    plan = resolve(check_scenario(FEDERATED))
    state = FederationState.initial(plan, 3)
    replies = replies_of(plan, state)
    bad = plan.scenario.attacks["flip"].malicious(5, 3)
    sent, realised = forged_replies(plan, 3, state, replies)
    assert [reply.receiver for reply in sent] == [reply.receiver for reply in replies]
    honest = [reply for reply in replies if reply.receiver not in bad]
    for before, after in zip(replies, sent, strict=True):
        if before.receiver not in bad:
            assert after is before
            continue
        for name, value in after.delta.items():
            mean = torch.stack([reply.delta[name].double() for reply in honest]).mean(0)
            torch.testing.assert_close(value, (-3 * mean).float(), rtol=1e-5, atol=1e-9)
        if plan.receivers[before.receiver].decoder == "local":
            assert after.decoders is before.decoders
    together = [number for number in bad if number < 3]
    assert realised == {"shared": [2, 5]} | ({"group/label": [len(together), 3]} if together else {})
    # With as many as m / f turned threefold the mean is (3 - 2 * 3) / 5 of the honest one.
    combined = rounds.combine(plan, 3, state, range(5), sent)
    weights = {reply.receiver: reply.examples for reply in replies}
    for name, value in combined.shared.items():
        total = sum(weights[reply.receiver] * reply.delta[name].double() for reply in sent) / sum(weights.values())
        torch.testing.assert_close(value.double(), state.shared[name].double() + total, rtol=1e-5, atol=1e-7)


def asked(plan: Plan, state: FederationState, replies: list[Reply], patch: pytest.MonkeyPatch) -> list[Seen]:
    """What the malicious receivers of a round see, of each aggregation group."""
    found: list[Seen] = []

    def forge(self: UpdateAttack, view: Seen, stream: Stream) -> np.ndarray:
        found.append(view)
        return view.own

    (made,) = plan.training_attacks
    patch.setattr(type(made), "forge", forge)
    forged_replies(plan, 3, state, replies)
    return found


@pytest.mark.parametrize("server", [None, {"lr": 0.5, "momentum": 0.9}])
def test_malicious_receivers_learn_what_a_step_of_the_server_does_to_their_own_images(
    server: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy of the networks, called one after the other on the malicious receivers' images, where the channels
    add next to nothing: before the round, and after steps of the encoder and of the decoder that some share."""
    receivers = FEDERATED["receivers"] | {
        "elsewhere": {"count": 2, "tasks": ["label"], "channel": "fade", "decoder": "group"}
    }
    tree = FEDERATED | {
        "train": {**FEDERATED["train"], "snr_db": 80},
        "channels": {"down": {"kind": "awgn"}, "fade": {"kind": "rician", "k_factor": 1e12}},
        "receivers": receivers,
        "federation": {"rounds": 2, "server_optimizer": server},
        "attacks": {"flip": {"kind": "sign_flip", "fraction": 0.6}},
    }
    plan = resolve(check_scenario(tree))
    state = FederationState.initial(plan, 3)
    bad = plan.scenario.attacks["flip"].malicious(7, 3)
    assert {(plan.receivers[n].decoder, plan.trained_branches(plan.receivers[n])[0].channel) for n in bad} >= {
        ("group", "down"),
        ("local", "down"),
        ("group", "fade"),
    }
    partition = plan.partition(3)
    replies = train(plan, rounds.tasks(plan, state, partition, 3, range(7)))

    def loss(shared: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor] | None = None) -> float:
        """Of all of them, or of those who share a decoder, with another one."""
        total, count = 0.0, 0
        encoder = plan.transmitter_with(shared).encoder.eval()
        for number in bad:
            receiver, numbers = plan.receivers[number], torch.from_numpy(partition[number])
            (branch,) = plan.trained_branches(receiver)
            if decoder is not None and receiver.decoder == "local":
                continue
            own = state.decoders[owner(plan, receiver, branch)] if decoder is None else decoder
            examples = plan.train_examples.at(numbers)
            with torch.no_grad():
                symbols = encoder(examples.images.float() / 255)
                symbols = symbols / symbols.square().mean(1, keepdim=True).sqrt()
                said = plan.decoder_with(branch, own).eval()(symbols)
            total += float(torch.nn.functional.cross_entropy(said, examples.labels, reduction="sum"))
            count += len(numbers)
        return total / count

    # Whoever shares a decoder is judged on the channel that it has.
    trials = adversaries._trials(plan, "group/label", adversaries._asked(plan, 3, state, bad))
    held = {"down": 0, "fade": 0}
    for number in bad:
        if plan.receivers[number].decoder == "group":
            held[plan.trained_branches(plan.receivers[number])[0].channel] += len(partition[number])
    assert {branch.channel: trial.images for trial, work in trials for branch in work.branches} == held
    shared, group = asked(plan, state, replies, monkeypatch)
    lr = 1.0 if server is None else server["lr"]
    names = rounds.averaged(state.shared)
    before = torch.get_rng_state()
    assert shared.loss(np.zeros(shared.honest.shape[1])) == pytest.approx(loss(state.shared), rel=1e-4)
    step = {name: replies[0].delta[name] * 30 for name in names}
    moved = {name: value + lr * step.get(name, 0) for name, value in state.shared.items()}
    assert loss(moved) != pytest.approx(loss(state.shared), rel=1e-3)
    assert shared.loss(rounds.flat(step, names)) == pytest.approx(loss(moved), rel=1e-4)
    own = state.decoders["group/label"]
    trained = next(iter(replies[0].decoders.values()))
    delta = {name: 30 * (value - own[name]) for name, value in trained.items()}
    after = {name: value + lr * delta[name] for name, value in own.items()}
    said = group.loss(rounds.flat(delta, rounds.averaged(own)))
    assert said == pytest.approx(loss(state.shared, after), rel=1e-4)
    assert said != pytest.approx(loss(state.shared, own), rel=1e-3)
    assert torch.equal(before, torch.get_rng_state())
    # A network that is no more says nothing: no attack may take that for little.
    assert shared.loss(np.full(shared.honest.shape[1], np.nan)) == np.inf


def test_whatever_is_tried_is_heard_alike_where_patches_are_chosen_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FEDERATED | {
        "data": {"kind": "digit_scenes", "train_scenes": 12, "test_scenes": 4},
        "link": {"encoder": {"kind": "mae", "scorer": "small"}},
        "receivers": {"all": {"count": 3, "tasks": ["label"], "channel": "down", "decoder": "group"}},
        "train": {"batch": 6, "snr_db": 10},
    }
    plan = resolve(check_scenario(tree))
    state = FederationState.initial(plan, 3)
    views = asked(plan, state, replies_of(plan, state), monkeypatch)
    before = torch.get_rng_state()
    for view in views:
        nothing = np.zeros(view.honest.shape[1])
        first = view.loss(nothing)
        assert view.loss(view.own[0]) != first
        assert view.loss(nothing) == first
    assert torch.equal(before, torch.get_rng_state())


def test_the_malicious_are_drawn_by_seed_and_not_the_first() -> None:
    made = attack("sign_flip", fraction=0.2)
    drawn = {seed: made.malicious(10, seed) for seed in range(200)}
    assert all(len(set(chosen)) == 2 for chosen in drawn.values())
    assert drawn[0] == made.malicious(10, 0)
    counts = np.bincount([number for chosen in drawn.values() for number in chosen], minlength=10)
    assert counts.min() > 20
    assert attack("sign_flip", fraction=0.01).malicious(10, 0)
    for seed in range(20):
        assert set(drawn[seed]) <= set(attack("ipm", fraction=0.4).malicious(10, seed))


def test_a_run_records_who_lied_and_suffers_from_it(tmp_path: Path) -> None:
    harmed = run(FEDERATED, out=tmp_path).table
    clean = run({**FEDERATED, "use": {"attacks": []}}, out=tmp_path).table
    assert set(harmed[harmed["stage"] != "twin"]["adversary_fraction"]) == {0.4}
    assert set(clean["adversary_fraction"]) == {0.0}
    lies = harmed[harmed["metric"] == "malicious_updates"]
    assert lies[lies["task"].isna()]["value"].tolist() == [2.0, 2.0]
    assert lies[lies["task"].isna()]["n"].tolist() == [5, 5]

    def loss(table: pd.DataFrame) -> float:
        return float(table[(table["metric"] == "train_loss") & (table["round"] == 2)]["value"].iloc[0])

    assert loss(harmed) > loss(clean)
    assert (harmed["metric"] == "accuracy_vs_twin").any()
    assert not (clean["metric"] == "malicious_updates").any()


def test_the_malicious_leave_after_their_last_round(tmp_path: Path) -> None:
    attacks = {"flip": {**FEDERATED["attacks"]["flip"], "last_round": 1}}
    table = run({**FEDERATED, "attacks": attacks}, out=tmp_path).table
    lies = table[(table["metric"] == "malicious_updates") & table["task"].isna()]
    assert lies["round"].tolist() == [1]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_broken_updates_are_rejected(value: str) -> None:
    tree = {**FEDERATED, "attacks": {"flip": {"kind": "constant_update", "value": value, "fraction": 0.4}}}
    plan = resolve(check_scenario(tree))
    state = FederationState.initial(plan, 3)
    sent, present = forged_replies(plan, 3, state, replies_of(plan, state))
    after = rounds.combine(plan, 3, state, range(5), sent)
    assert sorted(after.history[-1].rejected) == list(plan.scenario.attacks["flip"].malicious(5, 3))
    assert not present


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federation": {"kind": "none", "rounds": 1}}, "the centralised reference has none"),
        ({"attacks": {"flip": {"kind": "sign_flip", "fraction": 0.95}}}, "none would be honest"),
        ({"attacks": {"flip": {"kind": "sign_flip", "first_round": 3}}}, "after the last of 2 rounds"),
        ({"attacks": {"flip": {"kind": "ipm", "first_round": 2, "last_round": 1}}}, "comes before 'first_round'"),
        ({"attacks": {"flip": {"kind": "fgsm"}}}, "does not act in training"),
        (
            {"attacks": {"flip": {"kind": "ipm"}, "other": {"kind": "alie"}}, "use": {"attacks": ["flip", "other"]}},
            "would both replace updates",
        ),
        (
            {"evaluation": {"grids": [{"attacks": ["flip"], "snr_db": [10]}]}},
            "acts in training; name it in 'use.attacks'",
        ),
    ],
)
def test_attacks_in_the_wrong_place_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        resolve(check_scenario({**FEDERATED, **changes}))


def test_decoders_of_accomplices_are_nobodys_loss() -> None:
    """Of five local decoders two belong to accomplices; victims of an attack on air are no accomplices."""
    alone = {"alone": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "local"}}
    for made, kept in (({"kind": "sign_flip"}, 3), ({"kind": "air_poison"}, 5)):
        attacks = {"flip": {**made, "fraction": 0.4}}
        plan = resolve(check_scenario({**FEDERATED, "receivers": alone, "attacks": attacks}))
        link = assemble(plan, 3, FederationState.initial(plan, 3))
        assert len(link.listeners) == 5
        honest = {0, 1, 2, 3, 4} - (set(plan.scenario.attacks["flip"].malicious(5, 3)) if kept == 3 else set())
        left = link.without(plan.accomplices(3)).listeners
        assert {number for one in left for number in one.receivers} == honest
    together = {"all": {**alone["alone"], "decoder": "group"}}
    plan = resolve(check_scenario({**FEDERATED, "receivers": together}))
    link = assemble(plan, 3, FederationState.initial(plan, 3))
    assert link.without(plan.accomplices(3)).listeners == link.listeners
