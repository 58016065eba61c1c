"""Every aggregation rule: what all have in common, Flower's and ByzFL's results, and examples by hand."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import byzfl
import numpy as np
import pytest
from flwr.app import ArrayRecord, RecordDict
from flwr.server.strategy import aggregate as flower
from flwr.serverapp.strategy import bulyan as flower_bulyan
from flwr.serverapp.strategy import fedtrimmedavg
from flwr.serverapp.strategy import multikrum as flower_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsem.defenses.coordinates import mean_near_median
from fedsem.defenses.distances import distances, gram
from fedsem.errors import FederationError
from fedsem.hooks.aggregate import Updates
from fedsem.registry import find, names
from fedsem.streams import Stream

X = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.6, 0.2], [10, 10], [-9, 8]], dtype=np.float64)
RULES, BEFORE = sorted(names("aggregator")), sorted(names("pre_aggregator"))
SEEDS = st.integers(0, 2**31)
UNMOVED = {"fedavg", "fedprox", "krum", "multi_krum", "median", "trimmed_mean", "geometric_median", "bulyan", "meamed"}
"""Rules without a point of their own: moving all deltas moves the result alike."""
NOT_ALONE = {"fedavg", "fedprox", "foolsgold", "reputation"}
"""Rules that one malicious update may move anywhere."""


def rule(name: str, **options: Any) -> Any:
    return find("aggregator", name).model_validate(options)


def before(name: str, **options: Any) -> Any:
    return find("pre_aggregator", name).model_validate(options)


def updates(deltas: np.ndarray, seed: int = 0) -> Updates:
    root = np.median(deltas, axis=0).astype(np.float32)
    return Updates(deltas, np.ones(len(deltas)), tuple(range(len(deltas))), stream=Stream(seed), root=root)


def normal(n: int, d: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) + rng.standard_normal(d)).astype(dtype)


def permuted(given: Updates, order: np.ndarray) -> Updates:
    return replace(
        given,
        deltas=given.deltas[order],
        weights=given.weights[order],
        receivers=tuple(given.receivers[i] for i in order),
    )


@pytest.mark.parametrize("name", RULES)
@given(n=st.integers(7, 12), d=st.integers(2, 300), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_a_rule_is_pure_and_blind_to_order(name: str, n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sent = replace(updates(normal(n, d, seed)), weights=rng.integers(1, 9, n).astype(np.float64))
    sent = replace(sent, receivers=tuple(int(i) for i in np.sort(rng.choice(50, n, replace=False))))
    deltas, weights = sent.deltas.copy(), sent.weights.copy()
    made = rule(name).aggregate(sent)
    np.testing.assert_array_equal(sent.deltas, deltas)
    np.testing.assert_array_equal(sent.weights, weights)
    assert made.delta.shape == (d,)
    assert made.delta.dtype == np.float64
    order = rng.permutation(n)
    other = rule(name).aggregate(permuted(sent, order))
    np.testing.assert_allclose(other.delta, made.delta, rtol=1e-4, atol=1e-5)
    assert (made.kept is None) == (other.kept is None)
    if made.kept is not None and other.kept is not None:
        assert made.kept.any()
        np.testing.assert_array_equal(other.kept, made.kept[order])
    again = rule(name).aggregate(replace(sent, memory=made.memory))
    assert np.isfinite(again.delta).all()


@pytest.mark.parametrize("name", RULES)
@given(n=st.integers(6, 9), d=st.integers(1, 300), size=st.sampled_from([1e10, 1e19, 1e25, 3e38]), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_one_huge_update_stays_finite(name: str, n: int, d: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = normal(n, d, seed)
    deltas[rng.integers(n)] = size * rng.choice([-1.0, 1.0], d)
    made = rule(name).aggregate(updates(deltas))
    assert np.isfinite(made.delta).all()
    if name not in NOT_ALONE:
        assert np.abs(made.delta).max() < 1e3


@pytest.mark.parametrize("name", BEFORE)
@given(n=st.integers(5, 12), d=st.integers(1, 200), size=st.sampled_from([1.0, 1e19, 3e38]), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_what_comes_before_is_pure_and_blind_to_order(name: str, n: int, d: int, size: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = normal(n, d, seed)
    long = rng.integers(n)
    deltas[long] = size * (deltas[long].astype(np.float64) / np.abs(deltas[long]).max())
    sent, kept = updates(deltas), deltas.copy()
    made = before(name).prepare(sent)
    np.testing.assert_array_equal(sent.deltas, kept)
    assert made.deltas.dtype == np.float32
    assert np.isfinite(made.deltas).all()
    assert len(made.deltas) == len(made.weights) == before(name).left(n)
    assert made.weights.sum() == pytest.approx(n)
    order = rng.permutation(n)
    other = before(name).prepare(permuted(sent, order))
    expected = made.deltas[order] if made.receivers else made.deltas
    np.testing.assert_allclose(other.deltas, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(UNMOVED & set(RULES)))
@given(n=st.integers(7, 12), d=st.integers(2, 100), far=st.floats(-100, 100), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_a_shift_of_all_shifts_the_result(name: str, n: int, d: int, far: float, seed: int) -> None:
    deltas = normal(n, d, seed, np.float64)
    made = rule(name).aggregate(updates(deltas)).delta
    np.testing.assert_allclose(rule(name).aggregate(updates(deltas + far)).delta, made + far, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_are_their_own_aggregate(name: str) -> None:
    deltas = np.tile(normal(1, 40, 3), (9, 1))
    made = rule(name, **({"noise": 0.0} if name == "flame" else {})).aggregate(updates(deltas))
    # To FoolsGold equal updates are those of one adversary.
    np.testing.assert_allclose(made.delta, 0 * deltas[0] if name == "foolsgold" else deltas[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_the_smallest_group_and_updates_of_zero(name: str) -> None:
    least = rule(name).least_updates
    for f in (0, 2) if "f" in find("aggregator", name).model_fields else ():
        assert rule(name, f=f).assumed_f == f
    for deltas in (normal(least, 50, 0), np.zeros((least, 50), np.float32), np.zeros((9, 50), np.float32)):
        made = rule(name).aggregate(updates(deltas)).delta
        assert np.isfinite(made).all()
        assert deltas.any() or not made.any()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("krum", {"f": 2}, (0.6, 0.2)),
        ("multi_krum", {"f": 2}, (0.52, 0.44)),
        ("multi_krum", {"f": 2, "keep": 5}, (0.52, 0.44)),
        ("median", {}, (0.6, 1)),
        ("geometric_median", {}, (0.531011, 0.614808)),
        ("geometric_median", {"weighted": False}, (0.531011, 0.614808)),
        # By hand: the middle three of (-9, 0, 0, .6, 1, 1, 10) and of (0, 0, .2, 1, 1, 8, 10).
        ("trimmed_mean", {"f": 2}, (1.6 / 3, 2.2 / 3)),
        ("trimmed_mean", {"share": 0.3}, (1.6 / 3, 2.2 / 3)),
        ("centred_clipping", {"tau": 1e9}, (3.6 / 7, 20.2 / 7)),
        ("norm_clipping", {"limit": 1e9}, (3.6 / 7, 20.2 / 7)),
    ],
)
def test_the_example(name: str, options: dict[str, Any], expected: tuple[float, float]) -> None:
    np.testing.assert_allclose(rule(name, **options).aggregate(updates(X)).delta, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("median", {}, lambda f: byzfl.Median()),
        ("trimmed_mean", {}, lambda f: byzfl.TrMean(f=f)),
        ("krum", {"neighbours": "n-f-1"}, lambda f: byzfl.Krum(f=f)),
        ("multi_krum", {"neighbours": "n-f-1"}, lambda f: byzfl.MultiKrum(f=f)),
        ("geometric_median", {"steps": 3, "nu": 0.1}, lambda f: byzfl.GeometricMedian(nu=0.1, T=3)),
        ("geometric_median", {"steps": 1, "nu": 5.0}, lambda f: byzfl.GeometricMedian(nu=5.0, T=1)),
        ("centred_clipping", {"tau": 5.0}, lambda f: byzfl.CenteredClipping(L=1, tau=5.0)),
        ("centred_clipping", {"tau": 5.0, "steps": 5}, lambda f: byzfl.CenteredClipping(L=5, tau=5.0)),
        ("meamed", {}, lambda f: byzfl.Meamed(f=f)),
        ("monna", {"trusted": 2}, lambda f: byzfl.MoNNA(f=f, idx=2)),
    ],
)
@given(n=st.integers(9, 14), f=st.integers(1, 3), d=st.integers(3, 200), seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_rules_are_byzfls(name: str, options: dict[str, Any], theirs: Any, n: int, f: int, d: int, seed: int) -> None:
    deltas = normal(n, d, seed, np.float64)
    assumed = {"f": f} if "f" in find("aggregator", name).model_fields else {}
    ours = rule(name, **assumed, **options)
    np.testing.assert_allclose(ours.aggregate(updates(deltas)).delta, theirs(f)(deltas), rtol=1e-7, atol=1e-9)
    single = deltas.astype(np.float32)
    if name != "meamed":  # In single precision two values may be as near to the median as each other.
        np.testing.assert_allclose(ours.aggregate(updates(single)).delta, theirs(f)(single), rtol=1e-4, atol=1e-5)


@given(n=st.integers(9, 14), f=st.integers(0, 3), d=st.integers(3, 200), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_rules_are_flowers(n: int, f: int, d: int, seed: int) -> None:
    deltas = normal(n, d, seed, np.float64)
    weights = np.random.default_rng(seed).integers(1, 9, n)
    sent = replace(updates(deltas), weights=weights.astype(np.float64))

    def results() -> list[tuple[list[np.ndarray], int]]:
        return [
            ([delta[: d // 2], delta[d // 2 :]], int(weight)) for delta, weight in zip(deltas, weights, strict=True)
        ]

    for share in (0.0, 0.2, 0.34):
        made = rule("trimmed_mean", share=share).aggregate(sent).delta
        np.testing.assert_allclose(made, np.concatenate(flower.aggregate_trimmed_avg(results(), share)), atol=1e-12)
        np.testing.assert_allclose(made, fedtrimmedavg.trim_mean(deltas, share), atol=1e-12)
    np.testing.assert_allclose(
        rule("median").aggregate(sent).delta, np.concatenate(flower.aggregate_median(results())), atol=1e-12
    )
    np.testing.assert_allclose(
        rule("krum", f=f).aggregate(sent).delta, np.concatenate(flower.aggregate_krum(results(), f, 0)), atol=1e-12
    )
    for keep in (1, 4, n):
        np.testing.assert_allclose(
            rule("multi_krum", f=f, keep=keep, weighted=True).aggregate(sent).delta,
            np.concatenate(flower.aggregate_krum(results(), f, keep)),
            atol=1e-12,
        )


@given(f=st.integers(0, 2), more=st.integers(0, 4), d=st.integers(2, 100), seed=SEEDS)
@settings(deadline=None, max_examples=25)
def test_bulyan_is_flowers(f: int, more: int, d: int, seed: int) -> None:
    """Flower's older strategy selects one by one, its newer one at once."""
    n = 4 * f + 3 + more
    deltas = normal(n, d, seed, np.float64)
    old = flower.aggregate_bulyan([([delta], 1) for delta in deltas], f, flower.aggregate_krum, to_keep=0)
    made = rule("bulyan", f=f).aggregate(updates(deltas))
    np.testing.assert_allclose(made.delta, old[0], atol=1e-12)
    assert made.kept is not None
    assert made.kept.sum() == n - 2 * f
    contents = [RecordDict({"arrays": ArrayRecord([delta])}) for delta in deltas]
    chosen = flower_multikrum.select_multikrum(contents, f, n - 2 * f)
    rows = [content.array_records["arrays"].to_numpy_ndarrays() for content in chosen]
    new = flower_bulyan.aggregate_n_closest_weights([np.median(np.stack([r[0] for r in rows]), 0)], rows, n - 4 * f)
    np.testing.assert_allclose(
        rule("bulyan", f=f, selection="at_once").aggregate(updates(deltas)).delta, new[0], atol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("nnm", {}, lambda f: byzfl.NNM(f=f)),
        ("arc", {}, lambda f: byzfl.ARC(f=f)),
        ("clipping", {"limit": 4.0}, lambda f: byzfl.Clipping(c=4.0)),
    ],
)
@given(n=st.integers(5, 12), f=st.integers(0, 4), d=st.integers(2, 200), seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_pre_aggregators_are_byzfls(
    name: str, options: dict[str, Any], theirs: Any, n: int, f: int, d: int, seed: int
) -> None:
    deltas = normal(n, d, seed, np.float64)
    assumed = {"f": f} if "f" in find("pre_aggregator", name).model_fields else {}
    made = before(name, **assumed, **options).prepare(updates(deltas)).deltas
    np.testing.assert_allclose(made, theirs(f)(deltas.copy()), rtol=1e-9, atol=1e-12)


def test_bucketing_takes_means_of_a_shuffle() -> None:
    deltas = np.eye(7)
    sent = replace(updates(deltas), weights=np.arange(1.0, 8))
    made = before("bucketing", size=3).prepare(sent)
    assert sorted((made.deltas > 0).sum(1).tolist()) == [1, 3, 3]
    np.testing.assert_allclose(made.deltas.sum(1), 1)
    np.testing.assert_allclose(made.weights, (made.deltas > 0) @ sent.weights)
    assert made.receivers == ()
    other = before("bucketing", size=3).prepare(replace(sent, stream=Stream(1)))
    assert not np.array_equal(other.deltas, made.deltas)
    unchanged = before("bucketing", size=1).prepare(sent)
    np.testing.assert_array_equal(unchanged.deltas, sent.deltas)
    assert unchanged.receivers == sent.receivers


def test_fltrust_by_hand() -> None:
    sent = replace(updates(np.array([[2.0, 0], [1, 1], [-3, 0]])), root=np.array([1.0, 0]))
    made = rule("fltrust").aggregate(sent)
    np.testing.assert_allclose(made.delta, (0.878680, 0.292893), atol=1e-6)
    assert made.kept is not None
    assert made.kept.tolist() == [True, True, False]
    np.testing.assert_array_equal(rule("fltrust").aggregate(replace(sent, root=np.array([0.0, 0]))).delta, 0)
    for name in ("fltrust", "monna"):
        assert rule(name).needs_root
        with pytest.raises(ValueError, match="the server learnt"):
            rule(name).aggregate(replace(sent, root=None))
    assert not rule("monna", trusted=9).needs_root
    with pytest.raises(FederationError, match="MoNNA trusts receiver 9"):
        rule("monna", trusted=9).aggregate(sent)


def test_norm_clipping_by_hand() -> None:
    sent = updates(np.array([[3.0, 4], [0, 1], [0, 2]]))
    sent = replace(sent, weights=np.array([2.0, 1, 1]))
    np.testing.assert_allclose(rule("norm_clipping", limit=1.0).aggregate(sent).delta, (0.3, 0.9))
    np.testing.assert_allclose(rule("norm_clipping").aggregate(sent).delta, (0.6, (2 * 1.6 + 1 + 2) / 4))
    noisy = rule("norm_clipping", noise=2.0).aggregate(updates(np.zeros((3, 40_000)))).delta
    assert noisy.std() == pytest.approx(2, rel=0.02)


@given(n=st.integers(5, 12), f=st.integers(0, 2), d=st.integers(2, 100), seed=SEEDS)
@settings(deadline=None, max_examples=25)
def test_divide_and_conquer_is_a_plain_singular_value_decomposition(n: int, f: int, d: int, seed: int) -> None:
    deltas = normal(n, d, seed, np.float64)
    made = rule("dnc", f=f, draws=1).aggregate(updates(deltas))
    away = deltas - deltas.mean(0)
    score = (away @ np.linalg.svd(away)[2][0]) ** 2
    kept = np.sort(np.argsort(score)[: n - f])
    np.testing.assert_array_equal(np.flatnonzero(made.kept), kept)
    np.testing.assert_allclose(made.delta, deltas[kept].mean(0), atol=1e-12)


@given(n=st.integers(5, 12), f=st.integers(0, 2), d=st.integers(2, 60), seed=SEEDS)
@settings(deadline=None, max_examples=25)
def test_the_covariance_filter_is_a_plain_loop(n: int, f: int, d: int, seed: int) -> None:
    deltas = normal(n, d, seed, np.float64)
    left, smallest, best = np.ones(n), np.inf, deltas.mean(0)
    while left.sum() > n - 2 * f:
        middle = np.average(deltas, axis=0, weights=left)
        away = deltas - middle
        values, vectors = np.linalg.eigh((left[:, None] * away).T @ away / left.sum())
        if values[-1] < smallest:
            smallest, best = values[-1], middle
        out = np.where(left > 0, (away @ vectors[:, -1]) ** 2, 0)
        left = left * (1 - out / out.max())
    np.testing.assert_allclose(rule("caf", f=f).aggregate(updates(deltas)).delta, best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["flame", "signguard", "dnc", "caf", "multi_krum", "bulyan"])
def test_rules_that_choose_drop_what_stands_out(name: str) -> None:
    """Ten like one another, two flipped and five times as long; of 12, f = 2."""
    rng = np.random.default_rng(1)
    deltas = (np.abs(rng.standard_normal(3000)) + 0.3 * rng.standard_normal((12, 3000))).astype(np.float32)
    deltas[:2] *= -5
    made = rule(name, **({"f": 2} if "f" in find("aggregator", name).model_fields else {})).aggregate(updates(deltas))
    assert made.kept is not None
    assert not made.kept[:2].any()
    honest = deltas[2:].mean(0)
    assert np.linalg.norm(made.delta - honest) < 0.3 * np.linalg.norm(honest)


def test_flame_adds_noise_of_a_share_of_the_median_length() -> None:
    deltas = np.tile(normal(1, 40_000, 0), (5, 1))
    made = rule("flame", noise=0.01).aggregate(updates(deltas)).delta - deltas[0]
    assert made.std() == pytest.approx(0.01 * np.linalg.norm(deltas[0]), rel=0.02)


def test_foolsgold_remembers_who_was_like_whom() -> None:
    rng = np.random.default_rng(0)
    rule_ = rule("foolsgold")
    memory: dict[str, np.ndarray] = {}
    target = rng.standard_normal(500)
    # Two that send the same up to noise, three honest; receiver 4 is away in the second round, and comes back.
    for round_, present in enumerate([(0, 1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3, 4)]):
        rows = np.stack(
            [target + 0.5 * rng.standard_normal(500) if i < 2 else rng.standard_normal(500) for i in present]
        )
        sent = replace(updates(rows.astype(np.float32)), receivers=present, memory=memory)
        made = rule_.aggregate(sent)
        memory = dict(made.memory)
        assert made.kept is not None
        lying = np.array(present) < 2
        if round_ < 2:
            assert not made.kept[lying].any()
            np.testing.assert_allclose(made.delta, rows[~lying].mean(0), rtol=0.05, atol=0.05)
    np.testing.assert_array_equal(memory["receivers"], range(5))
    with pytest.raises(FederationError, match="whose update is which"):
        rule_.aggregate(before("bucketing").prepare(sent))


def adaptive_federated_averaging(rounds: list[np.ndarray], weights: np.ndarray) -> list[np.ndarray]:
    """Algorithm 1 of the paper as a plain loop, with the defaults: which updates are good in each round."""
    count, found = len(weights), []
    alpha, beta_, blocked = np.full(count, 3.0), np.full(count, 3.0), np.zeros(count, bool)
    for deltas in rounds:
        good, xi = [k for k in range(count) if not blocked[k]], 2.0
        while True:
            p = alpha / (alpha + beta_)
            mean = sum(p[k] * weights[k] * deltas[k] for k in good) / sum(p[k] * weights[k] for k in good)
            s = {k: mean @ deltas[k] / np.linalg.norm(mean) / np.linalg.norm(deltas[k]) for k in good}
            values = np.array(list(s.values()))
            if values.mean() < np.median(values):
                out = [k for k in good if s[k] < np.median(values) - xi * values.std()]
            else:
                out = [k for k in good if s[k] > np.median(values) + xi * values.std()]
            if not out:
                break
            good, xi = [k for k in good if k not in out], xi + 0.5
        for k in range(count):
            if not blocked[k]:
                alpha[k] += k in good
                beta_[k] += k not in good
        blocked |= stats.beta.cdf(0.5, alpha, beta_) > 0.95
        found.append(np.isin(np.arange(count), good))
    return found


@given(n=st.integers(4, 12), d=st.integers(5, 60), seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_reputation_is_that_of_a_plain_loop_over_rounds(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, bad = rng.integers(1, 9, n).astype(np.float64), rng.integers(n)
    rounds = [normal(n, d, seed + i, np.float64) for i in range(6)]
    for deltas in rounds:
        deltas[bad] *= -3
    memory: dict[str, np.ndarray] = {}
    for deltas, good in zip(rounds, adaptive_federated_averaging(rounds, weights), strict=True):
        sent = replace(updates(deltas), weights=weights, memory=memory)
        made = rule("reputation").aggregate(sent)
        assert made.kept is not None
        np.testing.assert_array_equal(made.kept, good)
        # What counts in a round is what was known before it.
        counts = memory.get("counts", np.zeros((n, 2)))
        share = weights * (counts[:, 0] + 3) / (counts.sum(1) + 6) * good
        np.testing.assert_allclose(made.delta, share @ deltas / share.sum(), rtol=1e-6, atol=1e-9)
        memory = dict(made.memory)


def test_a_bad_reputation_lasts() -> None:
    """A receiver that lies for six rounds is blocked, and stays so when it tells the truth; one that is away keeps its
    reputation; and whose was bad at first is forgiven where rounds are forgotten."""
    rng = np.random.default_rng(0)
    memory: dict[str, np.ndarray] = {}
    forgiving: dict[str, np.ndarray] = {}
    for round_ in range(12):
        present = tuple(i for i in range(8) if i != 7 or round_ < 3)
        deltas = (1 + 0.3 * rng.standard_normal((len(present), 400))).astype(np.float32)
        if round_ < 6:
            deltas[2] *= -1
        sent = replace(updates(deltas), receivers=present)
        made = rule("reputation").aggregate(replace(sent, memory=memory))
        other = rule("reputation", forgetting=0.5, block=1.0).aggregate(replace(sent, memory=forgiving))
        memory, forgiving = dict(made.memory), dict(other.memory)
        assert made.kept is not None
        assert other.kept is not None
        assert not made.kept[2]
        assert round_ >= 6 or not other.kept[2]
    # Beta(3, 3 + b): b = 6 is the first with a probability above 0.95 below one half.
    np.testing.assert_array_equal(memory["blocked"], np.arange(8) == 2)
    assert memory["counts"][2].tolist() == [0, 6]
    assert memory["counts"][7].sum() == 3
    assert stats.beta.cdf(0.5, 3, 8) < 0.95 < stats.beta.cdf(0.5, 3, 9)
    assert forgiving["counts"][2, 0] > forgiving["counts"][2, 1]
    with pytest.raises(FederationError, match="use no pre-aggregator that merges"):
        rule("reputation").aggregate(before("bucketing").prepare(sent))
    everybody = replace(sent, memory={**memory, "blocked": np.ones(8, np.int64)})
    kept = rule("reputation").aggregate(everybody).kept
    assert kept is not None
    assert kept.any()


def test_centred_clipping_goes_on_from_the_round_before() -> None:
    theirs = byzfl.CenteredClipping(L=2, tau=3.0)
    ours = rule("centred_clipping", tau=3.0, steps=2)
    memory: dict[str, np.ndarray] = {}
    for seed in range(3):
        deltas = normal(8, 30, seed, np.float64)
        made = ours.aggregate(replace(updates(deltas), memory=memory))
        memory = dict(made.memory)
        np.testing.assert_allclose(made.delta, theirs(deltas), rtol=1e-9)
    for start in ("zero", "median"):
        made = rule("centred_clipping", start=start).aggregate(replace(updates(deltas), memory=memory))
        assert not made.memory
        np.testing.assert_array_equal(
            made.delta, rule("centred_clipping", start=start).aggregate(updates(deltas)).delta
        )


def test_distances_beside_huge_updates_and_far_from_zero() -> None:
    """Seen from the mean, from zero or from the huge ones the distances between honest deltas would be lost."""
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((6, 40_000)).astype(np.float32) + np.float32(300)
    deltas = np.concatenate([np.full((2, 40_000), 3e38, np.float32), honest, -honest[:2]])
    exact = ((honest[:, None].astype(np.float64) - honest[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances(gram(deltas))[2:8, 2:8], exact, rtol=1e-5, atol=0.5)
    # Where the sampled columns show nothing.
    hidden = deltas.copy()
    hidden[:, ::4] = 300
    hidden[:, 1::4] = 300
    hidden[:2, ::9] = 300
    exact = ((hidden[2:8, None].astype(np.float64) - hidden[None, 2:8]) ** 2).sum(-1)
    np.testing.assert_allclose(distances(gram(hidden))[2:8, 2:8], exact, rtol=1e-5, atol=0.5)
    tiny = (honest - np.float32(300)) * np.float32(1e-25)
    exact = ((tiny[:, None].astype(np.float64) - tiny[None]) ** 2).sum(-1)
    np.testing.assert_allclose(distances(gram(tiny)), exact, rtol=1e-4, atol=1e-50)


@pytest.mark.parametrize("size", [1e5, 1e20, 3e38])
def test_steps_on_coefficients_keep_their_digits_beside_a_huge_update(size: float) -> None:
    """Against the same steps on the deltas themselves, in double precision."""
    rng = np.random.default_rng(0)
    deltas = rng.standard_normal((9, 20_000)).astype(np.float32) + np.float32(0.5)
    deltas[3] = size * rng.choice([-1.0, 1.0], 20_000)
    exact, median, clipped = deltas.astype(np.float64), np.zeros(20_000), np.zeros(20_000)
    for _ in range(20):
        pull = 1 / np.linalg.norm(exact - median, axis=1)
        median = pull @ exact / pull.sum()
    for _ in range(5):
        away = exact - clipped
        clipped = clipped + (away * np.minimum(1, 50 / np.linalg.norm(away, axis=1))[:, None]).mean(0)
    made = rule("geometric_median", steps=20, tolerance=0.0).aggregate(updates(deltas)).delta
    np.testing.assert_allclose(made, median, atol=1e-6)
    made = rule("centred_clipping", steps=5, tau=50.0).aggregate(updates(deltas)).delta
    np.testing.assert_allclose(made, clipped, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_peak_memory_is_half_a_stack(name: str) -> None:
    deltas = normal(20, 200_000, 0)
    sent = replace(updates(deltas), root=deltas[0])
    made = rule(name)
    # What it imports at its first use is no part of it.
    made.aggregate(updates(normal(20, 50, 0)))
    tracemalloc.start()
    made.aggregate(sent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # FoolsGold remembers an update of each receiver, and adds to a copy of what it remembers.
    assert peak < (1.5 if name == "foolsgold" else 0.5) * deltas.nbytes


@given(st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=200)
def test_the_mean_near_the_median_is_of_the_nearest_also_where_values_are_equal(n: int, data: st.DataObject) -> None:
    """By numpy's sort: no set of so many values has a smaller sum of distances than the one whose mean is taken."""
    values = np.sort(np.array(data.draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n)), np.float32))
    count = data.draw(st.integers(1, n))
    median = np.median(values)
    nearest = np.sort(np.abs(values - median))[:count].sum()
    found = mean_near_median(values[None], count)[0]
    windows = [values[i : i + count] for i in range(n - count + 1)]
    best = [one.mean() for one in windows if np.abs(one - median).sum() <= nearest + 1e-6]
    assert np.abs(found - np.array(best)).min() < 1e-5


def test_meamed_is_not_led_by_malicious_receivers_that_send_the_same() -> None:
    """Six of twenty send one update far out: of each coordinate the nearest 14 values to its median, by numpy."""
    deltas = np.random.default_rng(0).normal(size=(20, 500)).astype(np.float32)
    deltas[:6] = deltas[6:].mean(0) - 3 * deltas[6:].std(0, ddof=1)
    apart = np.abs(deltas.astype(np.float64) - np.median(deltas.astype(np.float64), axis=0))
    expected = np.take_along_axis(deltas.astype(np.float64), apart.argsort(0, kind="stable")[:14], 0).mean(0)
    made = rule("meamed", f=6).aggregate(updates(deltas))
    np.testing.assert_allclose(made.delta, expected, atol=1e-5)


@pytest.mark.parametrize("name", BEFORE)
def test_what_comes_before_needs_no_second_stack(name: str) -> None:
    """Written over what came in, as the server does, it is what it is without."""
    sent = updates(normal(20, 200_000, 0))
    expected = before(name).prepare(sent)
    tracemalloc.start()
    made = before(name).prepare(sent, out=sent.deltas)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * sent.deltas.nbytes
    assert np.shares_memory(made.deltas, sent.deltas)
    np.testing.assert_array_equal(made.deltas, expected.deltas)
    elsewhere = np.full_like(sent.deltas, np.nan)
    again = before(name).prepare(updates(normal(20, 200_000, 0)), out=elsewhere)
    np.testing.assert_array_equal(again.deltas, expected.deltas)
