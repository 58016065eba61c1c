"""Filters of training data: published formulas, the peer's results, planted poison, and that nobody else notices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.detector.poison import SpectralSignatureDefense
from art.defences.detector.poison.activation_defence import cluster_activations
from art.defences.detector.poison.clustering_analyzer import ClusteringAnalyzer
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem import run
from fedsem.checks import resolve
from fedsem.defenses.activation_clustering import ActivationClustering
from fedsem.defenses.data_validation import contradicted
from fedsem.defenses.outlier_removal import OutlierRemoval
from fedsem.defenses.spectral_signatures import signature
from fedsem.errors import ScenarioError
from fedsem.federation import rounds
from fedsem.federation.records import decode_replies, encode_replies
from fedsem.federation.state import FederationState
from fedsem.hooks.sanitise import DataFilter, Held
from fedsem.plan import Plan
from fedsem.poisoning import Poisoning
from fedsem.registry import find, names
from fedsem.sanitising import _View, sanitised
from fedsem.scenario import check_scenario
from fedsem.streams import Stream
from fedsem.training import Reply, train

FILTERS = sorted(name for name, cls in names("defense").items() if issubclass(cls, DataFilter))
SEEDS = st.integers(0, 2**31)


def a_filter(name: str, **options: Any) -> Any:
    return find("defense", name).model_validate(options)


def held(features: np.ndarray, labels: np.ndarray) -> Held:
    images = np.random.default_rng(0).random((len(labels), 6)).astype(np.float32)
    return Held(images, features, labels)


def planted(
    seed: int, classes: int = 3, clean: int = 80, bad: int = 8, dimension: int = 12, far: float = 8.0
) -> tuple[Held, np.ndarray]:
    """Gaussian classes, and beside class 0 a small cluster of its label: what a backdoor looks like in features."""
    rng = np.random.default_rng(seed)
    centres = 10 * rng.standard_normal((classes, dimension))
    labels = np.repeat(np.arange(classes), clean)
    features = centres[labels] + rng.standard_normal((len(labels), dimension))
    way = rng.standard_normal(dimension)
    features[:bad] = centres[0] + far * way / np.linalg.norm(way) + 0.3 * rng.standard_normal((bad, dimension))
    order = rng.permutation(len(labels))
    return held(features[order], labels[order]), order < bad


# ------------------------------------------------------------------------------------------------ the filters


@pytest.mark.parametrize("name", FILTERS)
@given(n=st.integers(1, 40), d=st.integers(1, 6), classes=st.integers(1, 5), same=st.booleans(), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_a_filter_is_pure_and_needs_nothing_of_its_data(
    name: str, n: int, d: int, classes: int, same: bool, seed: int
) -> None:
    """Classes of one sample, samples that are all alike, a single number as features."""
    rng = np.random.default_rng(seed)
    features = np.ones((n, d)) if same else rng.standard_normal((n, d))
    data = held(features, rng.integers(classes, size=n))
    before = [value.copy() for value in (data.images, data.features, data.labels)]
    out = a_filter(name).suspects(data, Stream(seed))
    assert out.shape == (n,)
    assert out.dtype == bool
    np.testing.assert_array_equal(out, a_filter(name).suspects(data, Stream(seed)))
    for value, kept in zip((data.images, data.features, data.labels), before, strict=True):
        np.testing.assert_array_equal(value, kept)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("outlier_removal", {"share": 0.11}),
        ("outlier_removal", {"share": 0.2, "method": "mahalanobis"}),
        ("outlier_removal", {"share": 0.2, "method": "isolation_forest"}),
        ("spectral_signatures", {"epsilon": 0.1}),
        ("activation_clustering", {"reduction": "pca"}),
        ("activation_clustering", {"reduction": "pca", "criterion": "relative_size"}),
        ("activation_clustering", {"reduction": "ica", "components": 3}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_cluster_is_left_out(name: str, options: dict[str, Any], seed: int) -> None:
    data, bad = planted(seed)
    out = a_filter(name, **options).suspects(data, Stream(seed))
    assert out[bad].mean() > 0.85
    # Those that always take a share take that of clean classes too, and no more.
    assert out[~bad].mean() < options.get("share", 0.15)


@pytest.mark.parametrize("seed", range(3))
def test_flipped_classes_contradict_their_neighbours(seed: int) -> None:
    data, _ = planted(seed, bad=0)
    bad = np.random.default_rng(seed).random(len(data.labels)) < 0.2
    labels = np.where(bad, (data.labels + 1) % 3, data.labels)
    out = a_filter("data_validation").suspects(replace(data, labels=labels), Stream(0))
    assert out[bad].mean() > 0.75
    assert out[~bad].mean() < 0.1


@given(n=st.integers(2, 30), k=st.integers(1, 10), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_neighbours_are_those_of_a_plain_loop(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, features, labels = min(k, n - 1), rng.standard_normal((n, 3)), rng.integers(3, size=n)
    expected = []
    for i in range(n):
        near = sorted((np.linalg.norm(features[i] - features[j]), j) for j in range(n) if j != i)[:k]
        votes = np.bincount([labels[j] for _, j in near], minlength=3)
        expected.append(votes[labels[i]] < votes.max())
    np.testing.assert_array_equal(contradicted(features, labels, k), expected)


def test_what_cannot_be_an_image_or_stands_there_twice_is_left_out() -> None:
    images = np.array([[0.1, 0.2], [0.1, 0.2], [0.3, 0.3], [0.3, 0.3], [1.5, 0], [np.nan, 0], [1, 0]], np.float32)
    labels = np.array([4, 4, 4, 5, 4, 5, 4])
    data = Held(images, images.astype(np.float64), labels)
    out = a_filter("data_validation", neighbours=0).suspects(data, Stream(0))
    # The first of two that agree stays; of two that do not, neither can be trusted.
    assert out.tolist() == [False, True, True, True, True, True, False]


@given(n=st.integers(12, 60), d=st.integers(2, 12), epsilon=st.floats(0.01, 0.4), seed=SEEDS)
@settings(deadline=None, max_examples=30)
def test_spectral_scores_are_the_peers(n: int, d: int, epsilon: float, seed: int) -> None:
    """The peer projects features that it does not centre; the paper centres them, so they are given centred."""
    features = np.random.default_rng(seed).standard_normal((n, d)) + 5
    theirs = SpectralSignatureDefense.spectral_signature_scores(features - features.mean(0))[:, 0]
    np.testing.assert_allclose(signature(features), theirs**2, rtol=1e-6, atol=1e-9)
    out = a_filter("spectral_signatures", epsilon=epsilon).suspects(held(features, np.zeros(n, int)), Stream(0))
    assert out.sum() == int(1.5 * epsilon * n)
    assert not out.any() or theirs[out].min() >= theirs[~out].max()


@pytest.mark.parametrize("seed", range(3))
def test_clusters_and_their_verdicts_are_the_peers(seed: int) -> None:
    data, bad = planted(seed)
    rows = next(data.by_class())  # the peer's analysis breaks down on classes that are clean
    clusters, _ = cluster_activations([data.features[rows]], nb_clusters=2, nb_dims=10, reduce="PCA")
    clean, _, _ = ClusteringAnalyzer().analyze_by_relative_size(clusters, size_threshold=0.35)
    out = a_filter("activation_clustering", reduction="pca", criterion="relative_size").suspects(data, Stream(0))
    np.testing.assert_array_equal(out[rows], np.asarray(clean[0]) == 0)
    np.testing.assert_array_equal(out[rows], bad[rows])


def test_a_class_of_one_cluster_is_left_as_it_is() -> None:
    features = np.random.default_rng(0).standard_normal((200, 12))
    made: ActivationClustering = a_filter("activation_clustering")
    assert not made.suspects(held(features, np.zeros(200, int)), Stream(0)).any()
    few, _ = planted(0, classes=1, clean=9, bad=2)
    assert not made.suspects(few, Stream(0)).any()


@given(n=st.integers(3, 60), d=st.integers(1, 8), seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_the_sphere_is_numpys(n: int, d: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((n, d))
    made: OutlierRemoval = a_filter("outlier_removal", share=0.3)
    out = made.suspects(held(features, np.zeros(n, int)), Stream(0))
    far = np.linalg.norm(features - features.mean(0), axis=1)
    assert out.sum() == int(0.3 * n)
    assert not out.any() or far[out].min() >= far[~out].max()


def test_mahalanobis_sees_what_the_sphere_does_not() -> None:
    """A short step along the narrow axis of the classes, shorter than many along the wide one."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 2)) * (10, 0.1)
    features[:8, 1] += 3
    data = held(features, np.arange(400) % 2)
    bad = np.arange(400) < 8
    assert a_filter("outlier_removal", share=0.03, method="mahalanobis").suspects(data, Stream(0))[bad].all()
    assert not a_filter("outlier_removal", share=0.03).suspects(data, Stream(0))[bad].all()


# ------------------------------------------------------------------------------------------------ the path

LINK: dict[str, Any] = {
    "schema": 1,
    "name": "filtered",
    "seeds": [3],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 150, "test_images": 40, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "dense", "channel_uses": 8, "hidden": [32]}},
    "channels": {"down": {"kind": "rayleigh"}, "radar": {"kind": "sensing"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"users": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 16, "snr_db": {"uniform": [5, 15]}},
    "federation": {"rounds": 2},
    "evaluation": {"draws": {"attack": 1, "score": 2}, "samples": 0, "baselines": False, "grids": [{"snr_db": [10]}]},
}
FLIP = {"flip": {"kind": "label_flip", "fraction": 0.4, "samples": 0.2}}
PATCH = {"patch": {"kind": "patch", "fraction": 0.4, "samples": 0.5, "targets": {"label": 3}}}


def tree(attacks: dict[str, Any] | None = None, filters: dict[str, Any] | None = None, **changes: Any) -> Any:
    attacks, filters = attacks or {}, filters or {}
    use = {"attacks": list(attacks), "defenses": list(filters)}
    return {**LINK, "attacks": attacks, "defenses": filters, "use": use, **changes}


def plan_of(*parts: Any, **changes: Any) -> Plan:
    return resolve(check_scenario(tree(*parts, **changes)))


def replies(plan: Plan, round_number: int = 1, receivers: Any = range(5)) -> list[Reply]:
    state = FederationState.initial(plan, 3)
    state.round = round_number - 1
    return train(plan, rounds.tasks(plan, state, plan.partition(3), 3, receivers))


def same(one: Reply, other: Reply) -> bool:
    return all(torch.equal(value, other.delta[name]) for name, value in one.delta.items())


def view(plan: Plan, receiver: int) -> tuple[_View, np.ndarray, Poisoning]:
    indices = np.sort(plan.partition(3)[receiver])
    poisoning = Poisoning(plan, receiver, 3, 1, indices)
    with Stream(0).fork():
        transmitter = plan.new_transmitter().train()
    return _View(plan, plan.trained_branches(plan.receivers[receiver]), transmitter, poisoning), indices, poisoning


def test_a_filter_sees_what_the_receiver_learns_from() -> None:
    plan = plan_of(PATCH)
    bad = plan.training_attacks[0].malicious(5, 3)
    for receiver in range(5):
        seen, indices, poisoning = view(plan, receiver)
        (found,) = seen.held(indices, "pixels", Stream(0))
        plain = plan.dataset.train.images[indices].reshape(len(indices), -1) / np.float32(255)
        changed = (found.images != plain).any(1)
        np.testing.assert_array_equal(found.features, found.images)
        np.testing.assert_array_equal(changed, np.isin(indices, poisoning.samples))
        assert changed.sum() == (len(indices) // 2 if receiver in bad else 0)
        np.testing.assert_array_equal(found.labels, np.where(changed, 3, plan.dataset.train.labels[indices]))


@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_what_is_received_holds_the_air_and_what_is_sent_does_not(symbols: str) -> None:
    plain = plan_of(link={**LINK["link"], "symbols": symbols})
    attack = {"air": {"kind": "air_poison", "fraction": 0.4, "psr_db": 0}}
    attacked = plan_of(attack, link={**LINK["link"], "symbols": symbols})
    victim = attacked.training_attacks[0].malicious(5, 3)[0]
    for features, alike in (("sent", True), ("received", False)):
        one, other = (
            next(seen.held(indices, features, Stream(0)))  # type: ignore[arg-type]
            for seen, indices, _ in (view(plan, victim) for plan in (plain, attacked))
        )
        assert np.array_equal(one.features, other.features) == alike
        assert one.features.shape == (30, 8)
        np.testing.assert_array_equal(one.images, other.images)
    # Without an adversary the noise is that of the training SNR.
    seen, indices, _ = view(plan_of(channels={**LINK["channels"], "down": {"kind": "awgn"}}), 0)
    sent, received = (next(seen.held(indices, what, Stream(0))).features for what in ("sent", "received"))
    assert 10**-1.5 < np.square(received - sent).mean() < 10**-0.5


def test_receivers_without_a_class_have_one_class_and_several_tasks_are_several_views() -> None:
    tasks = {"a": {"kind": "classification"}, "b": {"kind": "classification"}, "p": {"kind": "reconstruction"}}
    users = {
        "two": {"count": 2, "tasks": ["a", "b"], "channel": "down"},
        "one": {"count": 3, "tasks": ["p"], "channel": "down"},
    }
    flip = {"flip": {"kind": "label_flip", "fraction": 0.8, "tasks": ["b"]}}
    plan = plan_of(flip, tasks=tasks, receivers=users)
    receiver = min(plan.training_attacks[0].malicious(5, 3))
    assert plan.receivers[receiver].group == "two"
    seen, indices, _ = view(plan, receiver)
    first, second = seen.held(indices, "sent", Stream(0))
    np.testing.assert_array_equal(first.labels, plan.dataset.train.labels[indices])
    assert (second.labels != first.labels).all()
    seen, indices, _ = view(plan, 4)
    (only,) = seen.held(indices, "received", Stream(0))
    assert not only.labels.any()


def test_undefended_training_is_what_it_was() -> None:
    """A filter that has not begun yet changes no bit; one that finds nothing changes none either."""
    plain = replies(plan_of(PATCH))
    late = replies(plan_of(PATCH, {"s": {"kind": "spectral_signatures", "first_round": 2}}))
    none = replies(plan_of(PATCH, {"s": {"kind": "data_validation", "neighbours": 0}}))
    for one, other, third in zip(plain, late, none, strict=True):
        assert one.error is other.error is third.error is None
        assert same(one, other)
        assert same(one, third)
        assert one.removed is other.removed is None
        assert third.removed is not None
        assert third.removed[0] == third.removed[2] == 0


def test_who_works_for_the_adversary_may_not_filter() -> None:
    filters = {"s": {"kind": "outlier_removal", "run_by": "honest", "share": 0.5}}
    plan = plan_of(PATCH, filters)
    bad = plan.accomplices(3)
    plain, filtered = replies(plan_of(PATCH)), replies(plan)
    assert len(bad) == 2
    for one, other in zip(plain, filtered, strict=True):
        assert same(one, other) == (other.removed is None) == (one.receiver in bad)
        assert other.examples == (30 if one.receiver in bad else 30 - other.removed[2])  # type: ignore[index]
    air = {"air": {"kind": "air_poison", "fraction": 0.4}}
    assert all(reply.removed is not None for reply in replies(plan_of(air, filters)))


def test_filters_follow_one_another_and_count_what_they_took() -> None:
    one, two = {"kind": "outlier_removal", "share": 0.5}, {"kind": "outlier_removal", "share": 0.5}
    plan = plan_of(PATCH, {"one": one, "two": two})
    bad = plan.training_attacks[0].malicious(5, 3)
    for reply in replies(plan):
        assert reply.error is None
        assert reply.removed is not None
        bad_out, bad_all, good_out, good_all = reply.removed
        assert (bad_all, good_all) == ((15, 15) if reply.receiver in bad else (0, 30))
        assert reply.examples == 30 - bad_out - good_out
    alone = replies(plan_of(PATCH, {"one": one}))
    assert all(few.examples < some.examples for few, some in zip(replies(plan), alone, strict=True))


def test_a_filter_that_leaves_nothing_fails_its_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutlierRemoval, "suspects", lambda self, held, stream: np.ones(len(held.labels), bool))
    (reply,) = replies(plan_of({}, {"all": {"kind": "outlier_removal"}}), receivers=[2])
    assert reply.error is not None
    assert "'outlier_removal' leaves receiver 2 no sample to train on; make it milder." in reply.error


def test_counts_survive_flowers_records() -> None:
    for removed in (None, (1, 2, 3, 4)):
        (back,) = decode_replies(encode_replies([Reply(4, examples=3, removed=removed)]))
        assert back.removed == removed


@pytest.mark.parametrize("federation", [{"rounds": 2}, {"kind": "none", "rounds": 2}])
def test_the_table_tells_what_was_removed(federation: dict[str, Any], tmp_path: Path) -> None:
    attacks = FLIP if "kind" not in federation else {}
    table = run(tree(attacks, {"s": {"kind": "data_validation"}}, federation=federation), out=tmp_path).table
    rows = table[table["metric"].isin(["removed_poisoned", "removed_clean"])]
    assert set(rows["metric"]) == {"removed_clean", *(["removed_poisoned"] if attacks else [])}
    assert set(rows["round"]) == {1, 2}
    counts = rows.drop_duplicates("metric").set_index("metric")["n"].to_dict()
    assert sum(counts.values()) == 150
    assert counts.get("removed_poisoned", 12) == 12
    assert (rows["value"] <= rows["n"]).all()


def test_flipped_labels_of_digits_are_found() -> None:
    """Two of five receivers, a fifth of their images: far above chance, at the price of some clean images."""
    data = {**LINK["data"], "train_images": None}
    plan = plan_of(FLIP, {"s": {"kind": "data_validation"}}, data=data)
    partition = plan.partition(3)
    counts = np.zeros(4)
    for receiver in range(5):
        poisoning = Poisoning(plan, receiver, 3, 1, partition[receiver])
        branches = plan.trained_branches(plan.receivers[receiver])
        with Stream(0).fork():
            transmitter = plan.new_transmitter()
        made = sanitised(plan, receiver, 3, 1, branches, partition[receiver], transmitter, poisoning)
        counts += made.removed or ()
    recall, false = counts[0] / counts[1], counts[2] / counts[3]
    assert counts[1] == pytest.approx(0.2 * 2 / 5 * 1438, abs=3)
    assert recall > 0.9
    assert false < 0.1


@pytest.mark.parametrize(
    ("filters", "changes", "sentence"),
    [
        (
            {"s": {"kind": "spectral_signatures", "first_round": 3}},
            {},
            r"'defenses\.s\.first_round': 3 is after the last of 2 rounds",
        ),
        (
            {"s": {"kind": "outlier_removal"}},
            {
                "link": {"encoder": {"kind": "mae"}},
                "data": {"kind": "digit_scenes", "train_scenes": 16, "test_scenes": 4},
                "tasks": {"label": {"kind": "reconstruction"}},
            },
            r"'defenses\.s\.features': link.encoder 'mae' sends chosen patches.*use features: pixels",
        ),
    ],
)
def test_what_cannot_be_is_refused(filters: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        plan_of({}, filters, **changes)


def test_every_filter_says_where_it_is_from() -> None:
    assert len(FILTERS) >= 4
    for name in FILTERS:
        assert "20" in (names("defense")[name].__doc__ or "")
