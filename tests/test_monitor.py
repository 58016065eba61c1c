"""Drift of semantic features: distances against other roads, the published run length of the sum, and the path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from fedsem import run
from fedsem.checks import resolve
from fedsem.defenses.drift_monitor import frechet, squared_discrepancy
from fedsem.errors import ScenarioError
from fedsem.federation.monitoring import features, watch
from fedsem.federation.state import FederationState, RoundRecord
from fedsem.plan import Plan
from fedsem.registry import find
from fedsem.scenario import check_scenario

SEEDS = st.integers(0, 2**31)
WATCHED: dict[str, Any] = {
    "schema": 1,
    "name": "watched",
    "seeds": [3],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 200, "test_images": 20, "reserve": 40, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "dense", "channel_uses": 8, "hidden": [32]}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"users": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 16, "snr_db": 10, "optimizer": {"kind": "adam", "lr": 1e-4}},
    "federation": {"rounds": 9},
    "defenses": {"eye": {"kind": "drift_monitor"}, "other": {"kind": "drift_monitor", "statistic": "mmd"}},
    "use": {"defenses": ["eye", "other"]},
    "evaluation": {"draws": {"attack": 1, "score": 2}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
}


def monitor(**options: Any) -> Any:
    return find("defense", "drift_monitor").model_validate(options)


def plan_of(**changes: Any) -> Plan:
    return resolve(check_scenario({**WATCHED, **changes}))


@given(n=st.integers(3, 40), d=st.integers(1, 8), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_the_frechet_distance_is_that_of_scipys_matrix_root(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((n + d, d)), 2 * rng.standard_normal((n + d, d)) + 1
    first, second = np.atleast_2d(np.cov(one, rowvar=False)), np.atleast_2d(np.cov(other, rowvar=False))
    mean = np.square(one.mean(0) - other.mean(0)).sum()
    expected = mean + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet(one, other) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_of_normal_distributions_along_the_axes_it_is_known() -> None:
    """sum (m - m')^2 + (s - s')^2."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal((200_000, 2)) * (1, 3)
    other = rng.standard_normal((200_000, 2)) * (2, 3) + (0, 4)
    assert frechet(one, other) == pytest.approx(16 + 1, rel=0.02)


@given(n=st.integers(2, 20), m=st.integers(2, 20), d=st.integers(1, 6), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_the_discrepancy_is_that_of_plain_sums(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 2
    both = np.concatenate([one, other])
    pairs = [np.square(both[i] - both[j]).sum() for i in range(n + m) for j in range(i)]
    inside = [np.exp(-cdist(a, a, "sqeuclidean") / np.median(pairs)).mean() for a in (one, other)]
    cross = np.exp(-cdist(one, other, "sqeuclidean") / np.median(pairs)).mean()
    assert squared_discrepancy(one, other) == pytest.approx(sum(inside) - 2 * cross, abs=1e-9)


def test_the_sum_by_hand() -> None:
    """ln d = 0, 1, 2 of mean 1 and deviation 1; then 3, 3, 0: sums 1.5, 3, 1.5."""
    made = monitor(skip=0, calibration=3, slack=0.5, limit=2.0)
    drifts = np.exp([0.0, 1, 2, 3, 3, 0])
    scores = [made.score(drifts[: i + 1]) for i in range(6)]
    np.testing.assert_allclose(scores, [0, 0, 0, 0.75, 1.5, 0.75])
    # What moved before the calibration counts for nothing.
    assert monitor(skip=1, calibration=3, limit=2.0).score(np.exp([99.0, 0, 1, 2, 3])) == pytest.approx(0.75)


def test_a_shift_of_one_deviation_is_told_after_ten_rounds() -> None:
    """Montgomery, Introduction to Statistical Quality Control, table 9.3: the average run length with k = 1/2 and h = 5
    is 10.4."""
    rng = np.random.default_rng(0)
    made = monitor(skip=0, calibration=5000)
    known = np.exp(rng.standard_normal(5000))
    lengths = []
    for _ in range(300):
        drifts = np.concatenate([known, np.exp(1 + rng.standard_normal(60))])
        lengths.append(next(i for i in range(1, 61) if made.score(drifts[: 5000 + i]) > 1))
    assert np.mean(lengths) == pytest.approx(10.4, abs=1.0)


def test_features_are_what_the_encoder_sends_for_the_reserve() -> None:
    plan = plan_of()
    state = FederationState.initial(plan, 3)
    found = features(plan, state.shared)
    assert found.shape == (40, 8)
    np.testing.assert_allclose(np.square(found).mean(1), 1, rtol=1e-4)
    same = FederationState(1, state.shared, state.decoders, history=[RoundRecord(1, [0])])
    watch(plan, state, same)
    assert set(same.history[-1].monitored) == {"eye", "other"}
    for drift, score in same.history[-1].monitored.values():
        assert drift == pytest.approx(0, abs=1e-6)
        assert score == 0


def test_an_attack_that_begins_late_raises_an_alarm(tmp_path: Path) -> None:
    """Two of five send what they learnt, reversed and a hundredfold, from round 8 on."""
    attacks = {"flip": {"kind": "sign_flip", "fraction": 0.4, "scale": 100, "first_round": 8}}
    attacked = {**WATCHED, "attacks": attacks, "use": {**WATCHED["use"], "attacks": ["flip"]}}
    table = run(attacked, out=tmp_path / "attacked").table
    alarms = table[table["metric"] == "drift_alarm"].set_index(["defense", "round"])["value"].astype(int)
    for name in ("eye", "other"):
        # Each of seven honest rounds, whose threshold five set, is quiet.
        assert [alarms[name, number] for number in range(1, 10)] == [0] * 7 + [1, 1]
    drift = table[(table["metric"] == "feature_drift") & (table["defense"] == "eye")].set_index("round")["value"]
    assert drift[8] > 10 * drift[7]
    assert set(table.loc[table["metric"] == "drift_score", "n"]) == {40}


def test_who_only_watches_changes_nothing(tmp_path: Path) -> None:
    short = {**WATCHED, "federation": {"rounds": 2}}
    watched, alone = (run({**short, "use": use}, out=tmp_path / name) for name, use in
                      (("a", WATCHED["use"]), ("b", {})))  # fmt: skip
    states = [FederationState.load(next(results.folder.glob("checkpoints/*"))) for results in (watched, alone)]
    assert states[0] is not None
    assert states[1] is not None
    assert all(torch.equal(value, states[1].shared[name]) for name, value in states[0].shared.items())
    assert states[0].history[0].monitored
    assert not states[1].history[0].monitored


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"kind": "digits", "train_images": 50}}, r"'defenses\.eye': 'drift_monitor' watches images"),
        ({"federation": {"kind": "none"}}, r"'defenses\.eye': the centralised reference has no server"),
        (
            {
                "data": {"kind": "digit_scenes", "train_scenes": 16, "test_scenes": 4, "reserve": 4},
                "link": {"encoder": {"kind": "mae"}},
                "tasks": {"label": {"kind": "reconstruction"}},
            },
            r"'defenses\.eye': link.encoder 'mae' sends chosen patches",
        ),
    ],
)
def test_what_cannot_be_watched_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        plan_of(**changes)
