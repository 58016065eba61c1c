"""Krum against its published example, ByzFL and a plain loop; and which groups are too small for it."""

from __future__ import annotations

from typing import Any

import byzfl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_update_attacks import FEDERATED, attack

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.hooks.aggregate import Updates
from fedsem.hooks.update import Seen
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.streams import Stream

X = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.6, 0.2], [10, 10], [-9, 8]], dtype=np.float64)


def krum(**options: Any) -> Any:
    return find("aggregator", "krum").model_validate(options)


def updates(deltas: np.ndarray) -> Updates:
    return Updates(deltas, np.ones(len(deltas)), tuple(range(len(deltas))))


@pytest.mark.parametrize(("neighbours", "score"), [("n-f-2", 1.4), ("n-f-1", 2.4)])
def test_an_example_by_hand(neighbours: str, score: float) -> None:
    rule = krum(f=2, neighbours=neighbours)
    np.testing.assert_allclose(rule.aggregate(updates(X)).delta, (0.6, 0.2))
    assert rule.scores(X).min() == pytest.approx(score)


@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 20), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_scores_are_those_of_a_plain_loop_and_the_choice_is_byzfls(f: int, more: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    deltas = (rng.standard_normal((2 * f + 3 + more, d)) + 100).astype(np.float32)
    before = deltas.copy()
    for neighbours, less in (("n-f-2", 2), ("n-f-1", 1)):
        rule = krum(f=f, neighbours=neighbours)
        expected = []
        for i, one in enumerate(deltas):
            apart = sorted(
                float(((one - other).astype(np.float64) ** 2).sum()) for j, other in enumerate(deltas) if j != i
            )
            expected.append(sum(apart[: len(deltas) - f - less]))
        np.testing.assert_allclose(rule.scores(deltas), expected, rtol=1e-4, atol=1e-6)
    if f:
        theirs = byzfl.Krum(f=f)(deltas)
        np.testing.assert_array_equal(krum(f=f, neighbours="n-f-1").aggregate(updates(deltas)).delta, theirs)
    np.testing.assert_array_equal(deltas, before)


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({"federation": {"rounds": 1, "aggregator": {"kind": "krum", "f": 2}}}, "the encoder has 5"),
        ({"federation": {"rounds": 1, "aggregator": {"kind": "krum", "f": 1}}}, "the decoder of 'label' has 3"),
        (
            {"federation": {"rounds": 1, "fraction": 0.8, "aggregator": {"kind": "krum", "f": 1}}},
            "the encoder has 4",
        ),
    ],
)
def test_a_group_that_is_too_small_is_refused(changes: dict[str, Any], group: str) -> None:
    with pytest.raises(ScenarioError, match=rf"needs at least . updates, and {group} in a round"):
        resolve(check_scenario({**FEDERATED, **changes}))


def test_the_table_has_what_was_assumed_and_what_was_there(tmp_path: Any) -> None:
    receivers = {"alone": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "local"}}
    federation = {"rounds": 1, "aggregator": {"kind": "krum", "f": 1}}
    table = run({**FEDERATED, "receivers": receivers, "federation": federation}, out=tmp_path).table
    assert set(table["f_assumed"]) == {1}
    lies = table[table["metric"] == "malicious_updates"]
    assert lies[["value", "n", "f_assumed"]].to_numpy().tolist() == [[2.0, 5, 1]]


def test_a_search_gets_past_krum_where_the_published_scale_may_not() -> None:
    """With the attack's own direction the found scale moves Krum at least as far as any that is tried by hand."""
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((8, 30)) + 1
    rule = krum(f=3)

    def server(rows: Any) -> Any:
        return rule.aggregate(updates(np.concatenate([honest, rows]))).delta

    seen = Seen(
        honest, tuple(range(8)), np.zeros((3, 30)), server, lambda made: float(np.linalg.norm(made - honest.mean(0)))
    )
    made = attack("min_max", search=True)
    moved = np.linalg.norm(seen.aggregate(made.forge(seen, Stream(0))) - honest.mean(0))
    start, direction = made.line(seen)  # type: ignore[attr-defined]
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0):
        by_hand = seen.aggregate(np.repeat((start + scale * direction)[None], 3, 0))
        assert moved >= np.linalg.norm(by_hand - honest.mean(0)) - 1e-9
    assert moved > np.linalg.norm(rule.aggregate(updates(honest)).delta - honest.mean(0)) * 0.9
