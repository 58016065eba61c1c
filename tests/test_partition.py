"""Partitions: disjoint, seeded, and distributed as their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsem.data.partition import Dirichlet, Iid, PartitionOptions, Pathological, Shards
from fedsem.errors import ScenarioError

BALANCED = np.repeat(np.arange(10), 100)
EVERY_KIND = [Iid(), Dirichlet(alpha=0.5, min_size=1), Shards(), Pathological(classes_per_receiver=2)]
EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)


def class_counts(labels: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """(receivers, classes)"""
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


@pytest.mark.parametrize("partition", EVERY_KIND, ids=lambda p: p.kind)
@EXAMPLES
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array),
    parts=st.integers(1, 8),
    seed=st.integers(0, 2**63 - 1),
)
def test_parts_are_disjoint_sorted_and_not_empty_or_the_scenario_is_refused(
    partition: PartitionOptions, labels: np.ndarray, parts: int, seed: int
) -> None:
    refusal = None
    try:
        pieces = partition.split(labels, parts, seed)
    except ScenarioError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("data.partition")
        assert "\n" not in refusal
        assert partition.kind != "iid" or parts > len(labels)
        return
    assert len(pieces) == parts
    for piece in pieces:
        assert piece.dtype == np.int64
        assert len(piece) > 0
        assert (np.diff(piece) > 0).all()
    together = np.concatenate(pieces)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < len(labels)
    if partition.kind in ("iid", "dirichlet"):
        assert len(together) == len(labels)


@pytest.mark.parametrize("partition", EVERY_KIND, ids=lambda p: p.kind)
def test_the_seed_decides_and_nothing_else(partition: PartitionOptions) -> None:
    np.random.seed(1)  # noqa: NPY002 - a global generator must make no difference
    first = partition.split(BALANCED, 10, 7)
    np.random.seed(2)  # noqa: NPY002
    again = partition.split(BALANCED, 10, 7)
    other = partition.split(BALANCED, 10, 8)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_labels_may_be_mapped_read_only() -> None:
    labels = BALANCED.copy()
    labels.flags.writeable = False
    assert len(Iid().split(labels, 3, 0)) == 3


@EXAMPLES
@given(images=st.integers(1, 200), parts=st.integers(1, 20))
def test_iid_parts_have_equal_size(images: int, parts: int) -> None:
    if parts > images:
        return
    sizes = [len(piece) for piece in Iid().split(np.zeros(images, np.int64), parts, 0)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shares_follow_the_hypergeometric_distribution() -> None:
    # A fair draw of 100 out of 1,000 with 100 of each class: variance 100 * .1 * .9 * 900 / 999 = 8.11 per cell.
    counts = np.concatenate([class_counts(BALANCED, Iid().split(BALANCED, 10, seed)) for seed in range(40)])
    assert counts.mean() == 10
    assert counts.var() == pytest.approx(8.11, rel=0.15)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_dirichlet_shares_have_the_second_moment_of_the_distribution(alpha: float) -> None:
    # For proportions p ~ Dir(alpha, ..., alpha) over K parts, E sum p^2 = (alpha + 1) / (K alpha + 1).
    classes, each, parts = 400, 50, 5
    labels = np.repeat(np.arange(classes), each)
    share = class_counts(labels, Dirichlet(alpha=alpha).split(labels, parts, 3)) / each
    assert (share**2).sum(axis=0).mean() == pytest.approx((alpha + 1) / (parts * alpha + 1), rel=0.05)


def test_small_alpha_is_more_skewed_than_large() -> None:
    def largest_class(alpha: float) -> float:
        counts = class_counts(BALANCED, Dirichlet(alpha=alpha).split(BALANCED, 10, 0))
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    assert largest_class(0.1) > largest_class(1.0) > largest_class(100.0)


def test_dirichlet_keeps_the_minimum_size() -> None:
    for seed in range(5):
        assert min(len(piece) for piece in Dirichlet(alpha=0.3, min_size=15).split(BALANCED, 10, seed)) >= 15


def test_shards_give_few_classes_and_equal_sizes() -> None:
    # McMahan et al. 2017: with balanced classes and two shards each, most receivers see two digits only.
    pieces = Shards(shards_per_receiver=2).split(BALANCED, 10, 0)
    counts = class_counts(BALANCED, pieces)
    assert {len(piece) for piece in pieces} == {100}
    assert ((counts > 0).sum(axis=1) <= 2).all()


def test_shards_leave_over_less_than_one_image_per_shard() -> None:
    labels = np.sort(np.arange(1438) % 10)
    assert sum(len(piece) for piece in Shards().split(labels, 10, 0)) == 1438 // 20 * 20


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_pathological_gives_exactly_that_many_classes_and_leaves_none_out(classes: int) -> None:
    counts = class_counts(BALANCED, Pathological(classes_per_receiver=classes).split(BALANCED, 10, 0))
    assert ((counts > 0).sum(axis=1) == classes).all()
    assert (counts.sum(axis=0) == 100).all()


@pytest.mark.parametrize(
    ("partition", "images", "parts", "says"),
    [
        (Iid(), 5, 6, "data.partition: 6 receivers cannot share 5 images"),
        (Iid(), 0, 1, "data.partition: 1 receivers cannot share 0 images"),
        (Dirichlet(alpha=1.0, min_size=11), 100, 10, "data.partition.min_size: 10 receivers with 11 images"),
        (Dirichlet(alpha=0.001, min_size=4), 40, 10, "raise data.partition.alpha"),
        (Shards(shards_per_receiver=3), 20, 7, "data.partition.shards_per_receiver: 7 receivers with 3 shards"),
        (Pathological(classes_per_receiver=5), 40, 4, "data.partition.classes_per_receiver: 5 classes"),
        (Pathological(classes_per_receiver=4), 40, 39, "lower data.partition.classes_per_receiver"),
    ],
)
def test_the_impossible_is_refused_in_one_sentence(
    partition: PartitionOptions, images: int, parts: int, says: str
) -> None:
    with pytest.raises(ScenarioError) as caught:
        partition.split(np.arange(images) % 4, parts, 0)
    message = str(caught.value)
    assert message.startswith("data.partition")
    assert says in message
    assert message.count(". ") == 0


@pytest.mark.parametrize("options", [{"alpha": 0}, {"alpha": -1}, {"alpha": 1, "min_size": 0}, {}])
def test_dirichlet_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Dirichlet.model_validate(options)
