"""Differential privacy of receivers: epsilons against a peer and by hand, what is clipped, what noise is added."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem import run
from fedsem.checks import resolve
from fedsem.defenses import differential_privacy as privacy
from fedsem.errors import ScenarioError
from fedsem.federation import rounds
from fedsem.federation.adversaries import forged
from fedsem.federation.state import FederationState
from fedsem.plan import Plan
from fedsem.scenario import check_scenario
from fedsem.training import Parameters, Reply

DP = {"kind": "differential_privacy", "clip": 0.5, "noise": 1.0}


def tree(dp: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Five receivers: three share a classifier, the decoders of the other two never leave them."""
    defenses = {"dp": DP if dp is None else dp}
    return {
        "schema": 1,
        "name": "private",
        "seeds": [3],
        "compute": {"engine": "local", "device": "cpu"},
        "data": {"kind": "digits", "train_images": 150, "test_images": 20, "partition": {"kind": "iid"}},
        "link": {"encoder": {"kind": "dense", "channel_uses": 8, "hidden": [12]}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
        "receivers": {
            "readers": {"count": 3, "tasks": ["label"], "channel": "down", "decoder": "group"},
            "viewers": {"count": 2, "tasks": ["picture"], "channel": "down", "decoder": "local"},
        },
        "train": {"batch": 32, "snr_db": 10},
        "federation": {"rounds": 3},
        "defenses": defenses,
        "use": {"defenses": ["dp"]},
        "evaluation": {"draws": {"score": 1}, "samples": 0, "baselines": False},
        **changes,
    }


def planned(dp: dict[str, Any] | None = None, **changes: Any) -> Plan:
    return resolve(check_scenario(tree(dp, **changes)))


def some_replies(plan: Plan, state: FederationState, scale: float, seed: int = 0) -> list[Reply]:
    """Updates of every receiver that no training made, each of 30 images."""
    generator = torch.Generator().manual_seed(seed)

    def moved(parameters: Parameters, origin: float) -> Parameters:
        return {k: origin * v + scale * torch.randn(v.shape, generator=generator) for k, v in parameters.items()}

    made = []
    for receiver in plan.receivers:
        decoders = {
            branch.key: moved(state.decoders[rounds.owner(plan, receiver, branch)], 1.0)
            for branch in plan.trained_branches(receiver)
        }
        made.append(Reply(receiver.id, 30, moved(state.shared, 0.0), decoders, {}, dict.fromkeys(decoders, 1.0)))
    return made


def sent(plan: Plan, state: FederationState, reply: Reply) -> torch.Tensor:
    """All that leaves a receiver, as one vector."""
    parts = [value.double().flatten() for value in reply.delta.values()]
    if plan.receivers[reply.receiver].decoder == "group":
        before = state.decoders["group/label"]
        parts += [
            (value.double() - before[name].double()).flatten() for name, value in reply.decoders["label@down"].items()
        ]
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------------------- epsilon


@pytest.mark.parametrize(("noise", "count"), [(2.0, 1), (5.0, 4), (20.0, 12)])
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_without_sampling_epsilon_is_that_of_googles_privacy_loss_distribution(
    noise: float, count: int, delta: float
) -> None:
    """Its accountant discretises the loss; ours is a formula. Its REPLACE_ONE moves a sum by twice the norm, too."""
    peer = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    peer.compose(GaussianDpEvent(noise), count)
    ours = privacy.epsilons(noise, delta, count, 10, 10)
    assert len(ours) == count
    assert ours[-1] == pytest.approx(peer.get_epsilon(delta), rel=1e-4)


@given(st.floats(0.01, 30), st.floats(1e-9, 0.3))
@settings(deadline=None)
def test_the_gaussian_epsilon_solves_the_equation_of_balle_and_wang(mu: float, delta: float) -> None:
    """Checked in another form: the loss is N(mu^2/2, mu^2), delta = E[max(0, 1 - exp(eps - loss))], by quadrature."""
    epsilon = privacy.gaussian_epsilon(mu, delta)
    z = np.linspace(-12, 12, 200_001)
    loss = mu * mu / 2 + mu * z
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    excess = np.trapezoid(weight * -np.expm1(np.minimum(epsilon - loss, 0)), z)
    if epsilon > 0:
        assert excess == pytest.approx(delta, rel=1e-4, abs=1e-11)
    else:
        assert excess <= delta * (1 + 1e-6)


def test_with_sampling_epsilon_is_the_bound_of_wang_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theorem 27 at order 2, and its conversion (Canonne, Kamath and Steinke 2020) at that order alone."""
    monkeypatch.setattr(privacy, "ORDERS", (2,))
    noise, delta, asked, receivers = 6.0, 1e-2, 20, 1000
    own = 1 / (noise / 2) ** 2  # Renyi divergence of order 2: replacing a receiver moves the sum by 2 C
    q = asked / receivers
    order2 = math.log1p(q * q * min(4 * math.expm1(own), 2 * math.exp(own)))
    by_hand = [n * order2 + math.log(1 / 2) - math.log(2 * delta) for n in (1, 5, 40)]
    found = privacy.epsilons(noise, delta, 40, asked, receivers)
    exact = [privacy.gaussian_epsilon(2 * math.sqrt(n) / noise, delta) for n in (1, 5, 40)]
    for ours, bound, unsampled in zip((found[0], found[4], found[39]), by_hand, exact, strict=True):
        assert ours == pytest.approx(min(bound, unsampled), rel=1e-6)
    assert by_hand[2] < exact[2]


def test_sampling_costs_less_and_rounds_cost_more() -> None:
    few, all_of_them = privacy.epsilons(4.0, 1e-5, 5, 10, 200), privacy.epsilons(4.0, 1e-5, 5, 200, 200)
    assert all(one < other for one, other in zip(few, all_of_them, strict=True))
    assert list(few) == sorted(few)
    assert privacy.epsilons(4.0, 1e-5, 5, 199, 200) == all_of_them  # a bound that would be looser is not taken


# -------------------------------------------------------------------------------------------------- clip and noise


@given(st.floats(1e-4, 3.0), st.floats(0.05, 5.0), st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_no_receiver_sends_more_than_the_limit(scale: float, clip: float, seed: int) -> None:
    plan = planned({**DP, "clip": clip})
    state = FederationState.initial(plan, 3)
    before = some_replies(plan, state, scale, seed)
    after, clipped = rounds.limited(plan, state, before)
    for old, new in zip(before, after, strict=True):
        norm, vector = float(sent(plan, state, old).norm()), sent(plan, state, new)
        if norm <= clip:
            assert new is old
            assert old.receiver not in clipped
        else:
            assert old.receiver in clipped
            assert float(vector.norm()) == pytest.approx(clip, rel=1e-4)
            torch.testing.assert_close(vector, sent(plan, state, old) * clip / norm, rtol=1e-3, atol=1e-6)
        if plan.receivers[old.receiver].decoder == "local":  # it stays at home: its length costs nothing
            assert new.decoders is old.decoders or new.decoders == old.decoders


def test_without_noise_and_limit_it_is_fedavg_bit_for_bit() -> None:
    """Where all receivers hold as many images."""
    plain, private = planned(use={"defenses": []}), planned({**DP, "clip": 1e30, "noise": 0.0})
    state = FederationState.initial(plain, 3)
    replies = some_replies(plain, state, 0.1)
    one = rounds.combine(plain, 3, state, range(5), replies)
    other = rounds.combine(private, 3, state, range(5), replies)
    assert all(torch.equal(value, other.shared[name]) for name, value in one.shared.items())
    for who, parameters in one.decoders.items():
        assert all(torch.equal(value, other.decoders[who][name]) for name, value in parameters.items())
    assert other.history[-1].clipped == []


def test_the_noise_has_the_variance_that_epsilon_is_computed_for() -> None:
    """z C / m in each coordinate: m = 5 for the encoder, 3 of 5 receivers share the decoder; new in every round."""
    plan = planned({**DP, "clip": 2.0, "noise": 0.7}, link={"encoder": {"kind": "dense", "channel_uses": 64}})
    state = FederationState.initial(plan, 3)
    drawn = []
    for _ in range(2):
        after = rounds.combine(plan, 3, state, range(5), some_replies(plan, state, 0.0))
        pairs = [("shared", after.shared, state.shared, 5)]
        pairs.append(("label", after.decoders["group/label"], state.decoders["group/label"], 3))
        for _, new, old, members in pairs:
            noise = torch.cat([(new[name].double() - old[name].double()).flatten() for name in old])
            sigma = 0.7 * 2.0 / members
            assert float(noise.std()) == pytest.approx(sigma, rel=5 / math.sqrt(2 * len(noise)))
            assert abs(float(noise.mean())) < 5 * sigma / math.sqrt(len(noise))
            drawn.append(noise)
        state = after
    assert not torch.equal(drawn[0], drawn[2])
    assert abs(float(torch.corrcoef(torch.stack([drawn[0], drawn[2]]))[0, 1])) < 0.05


def test_who_is_not_asked_has_no_influence_and_a_missing_reply_counts_as_zero() -> None:
    plan = planned({**DP, "clip": 1e30, "noise": 0.0}, federation={"rounds": 3, "fraction": 0.8})
    state = FederationState.initial(plan, 3)
    replies, others = some_replies(plan, state, 0.1), some_replies(plan, state, 0.1, seed=1)
    asked = [0, 1, 3, 4]
    one = rounds.combine(plan, 3, state, asked, [replies[n] for n in asked])
    same = rounds.combine(plan, 3, state, asked, [*(replies[n] for n in asked), others[2]])
    assert all(torch.equal(value, same.shared[name]) for name, value in one.shared.items())
    missing = rounds.combine(plan, 3, state, asked, [replies[n] for n in (0, 1, 3)])
    for name, before in state.shared.items():
        total = sum(replies[n].delta[name].double() for n in (0, 1, 3))
        torch.testing.assert_close(missing.shared[name].double(), before.double() + total / 4, rtol=1e-5, atol=1e-7)
    # A group's decoder: the sum of the two that were asked, over 4 * 3 / 5 that a round expects.
    for name, before in state.decoders["group/label"].items():
        total = sum(replies[n].decoders["label@down"][name].double() - before.double() for n in (0, 1))
        after = one.decoders["group/label"][name].double()
        torch.testing.assert_close(after, before.double() + total / 2.4, rtol=1e-5, atol=1e-6)


def test_a_shared_decoder_gets_noise_when_none_of_its_holders_is_asked() -> None:
    """Otherwise its standing still would say who was asked."""
    plan = planned(federation={"rounds": 3, "fraction": 0.4})
    state = FederationState.initial(plan, 3)
    after = rounds.combine(plan, 3, state, [3, 4], some_replies(plan, state, 0.01)[3:])
    assert any(not torch.equal(v, state.decoders["group/label"][k]) for k, v in after.decoders["group/label"].items())


def test_replacing_a_receiver_moves_the_sum_by_at_most_twice_the_limit() -> None:
    plan = planned({**DP, "clip": 0.3, "noise": 0.0})
    state = FederationState.initial(plan, 3)
    replies, others = some_replies(plan, state, 0.1), some_replies(plan, state, 50.0, seed=1)
    one = rounds.combine(plan, 3, state, range(5), replies)
    other = rounds.combine(plan, 3, state, range(5), [others[0], *replies[1:]])
    parts = [5 * (one.shared[name].double() - other.shared[name].double()).flatten() for name in one.shared]
    mine, theirs = one.decoders["group/label"], other.decoders["group/label"]
    parts += [3 * (mine[name].double() - theirs[name].double()).flatten() for name in mine]
    assert 0.3 < float(torch.cat(parts).norm()) <= 0.6 * (1 + 1e-4)


def test_a_malicious_receiver_counts_no_more_than_the_limit() -> None:
    flip = {"kind": "sign_flip", "fraction": 0.2, "scale": 1000.0}
    plan = planned({**DP, "noise": 0.0}, attacks={"flip": flip}, use={"attacks": ["flip"], "defenses": ["dp"]})
    state = FederationState.initial(plan, 3)
    replies = some_replies(plan, state, 0.1)
    lies, _ = forged(plan, 3, state, replies)
    assert any(float(sent(plan, state, lie).norm()) > 100 for lie in lies)
    after = rounds.combine(plan, 3, state, range(5), lies)
    move = torch.cat([(after.shared[name] - state.shared[name]).flatten() for name in state.shared])
    assert float(move.norm()) <= 0.5 * (1 + 1e-4)


# -------------------------------------------------------------------------------------------------------- scenarios


def test_the_table_has_the_epsilon_of_each_round_beside_other_defenses(tmp_path: Path) -> None:
    """Together with a defense that acts at another hook; what is not in use leaves no rows."""
    content = tree(
        federation={"rounds": 3, "fraction": 0.8},
        defenses={"dp": DP, "noisy": {"kind": "noise_augmentation", "psr_db": -20}},
        use={},
        sweep={"use.defenses": [[], ["dp", "noisy"]]},
    )
    table = run(content, out=tmp_path).table
    assert set(table["defense"]) == {"none", "dp+noisy"}
    rows = table[table["metric"].isin(["epsilon", "delta", "clipped_updates"])]
    assert set(rows["defense"]) == {"dp+noisy"}
    epsilon = rows[rows["metric"] == "epsilon"].sort_values("round")
    np.testing.assert_allclose(epsilon["value"].astype(float), privacy.epsilons(1.0, 1e-5, 3, 4, 5))
    assert list(epsilon["n"]) == [5, 5, 5]
    assert set(rows.loc[rows["metric"] == "delta", "value"]) == {1e-5}
    assert len(rows[rows["metric"] == "clipped_updates"]) == 3


FLOWER_HAS_NONE = r"'federation\.secure_aggregation': Flower's message API.*does not have it"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"federation": {"aggregator": {"kind": "median"}}}, r"'federation\.aggregator': the noise .*'median'"),
        ({"federation": {"group_aggregator": "median"}}, r"'federation\.group_aggregator': the noise .*'median'"),
        ({"federation": {"pre_aggregators": [{"kind": "nnm"}]}}, r"'federation\.pre_aggregators': 'nnm' would mix"),
        ({"federation": {"kind": "none"}}, r"'defenses\.dp': 'differential_privacy' protects receivers"),
        ({"defenses": {"dp": {"kind": "differential_privacy", "clip": 1.0}}}, r"defenses\.dp.*noise"),
        (
            {"defenses": {"dp": DP, "too": DP}, "use": {"defenses": ["dp", "too"]}},
            r"'dp' and 'too' would both limit what receivers send",
        ),
        ({"federation": {"secure_aggregation": True}}, r"secure_aggregation': it would hide .* 'dp' must see them"),
        (
            {"federation": {"secure_aggregation": True, "aggregator": {"kind": "krum"}}, "use": {}},
            r"secure_aggregation': it would hide each update from the server, and 'krum' must see them",
        ),
        ({"federation": {"secure_aggregation": True}, "use": {}}, FLOWER_HAS_NONE),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence) as raised:
        planned(**changes)
    assert "\n" not in str(raised.value)


def test_a_rule_without_a_mean_is_refused_only_where_the_defense_is_in_use() -> None:
    planned(federation={"aggregator": {"kind": "median"}}, use={})


def test_flowers_secure_aggregation_is_still_that_of_its_older_api() -> None:
    """When this fails Flower has moved it, and the sentence that refuses it is to be thought over."""
    from flwr.clientapp import mod
    from flwr.serverapp import strategy

    names = [name.lower() for name in (*mod.__all__, *strategy.__all__)]
    assert names
    assert not any("secagg" in name or "secure" in name for name in names)
