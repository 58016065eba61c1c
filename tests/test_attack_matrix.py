"""The matrix of attacks and defenses, and its verdicts, on tables with known numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from fedsem.errors import FedsemError
from fedsem.reporting import attack_matrix, table
from fedsem.reporting.attack_matrix import panels_of, pooled_rows
from fedsem.reporting.figures import draw
from fedsem.reporting.sample_table import SAMPLE_COLUMNS
from fedsem.reporting.verdicts import described, verdicts, with_verdicts

PLACE = {
    "stage": "evaluate",
    "receiver": "all",
    "task": "label",
    "channel": "awgn",
    "snr_db": 10.0,
    "metric": "accuracy",
}
SAMPLES = pd.DataFrame(columns=list(SAMPLE_COLUMNS))
KNOWS = "weights: all, signal: exact, channel: statistics"


def row(cell: str, value: float, **columns: Any) -> list[dict[str, Any]]:
    """A figure of the only seed, and the same pooled."""
    content = {**PLACE, "cell": cell, "attack": "none", "value": value, "ci_low": value - 0.03, "ci_high": value + 0.02}
    return [{**content, "n": 359, "draws": 8, "seed": seed, **columns} for seed in (0, None)]


def evasion(cell: str, value: float, attack: str, adaptive: bool = False, **columns: Any) -> list[dict[str, Any]]:
    knowledge = f"{KNOWS}, defense: adaptive" if adaptive else KNOWS
    known = {"attack": attack, "psr_db": -15.0, "norm": "linf", "sites": "input", "knowledge": knowledge}
    return row(cell, value, **{**known, **columns})


def at_test_time() -> pd.DataFrame:
    """One ablation over training defenses; each link is also tested with and without a filter."""
    rows = []
    for cell, trained, clean, fgsm, worst, filtered in (
        ("defenses=none", "none", 0.98, 0.40, 0.05, 0.70),
        ("defenses=hard", "hard", 0.97, 0.90, 0.80, 0.85),
    ):
        known = trained == "hard"
        for defense in (trained, "filter" if trained == "none" else f"{trained}+filter"):
            behind = "filter" in defense
            rows += row(cell, clean, defense=defense)
            rows += evasion(cell, fgsm, "fgsm", defense=defense)
            rows += evasion(cell, filtered if behind else worst, "worst", known and not behind, defense=defense)
            if behind and known:
                rows += evasion(cell, 0.30, "adaptive_worst", True, defense=defense)
        rows += row(cell, 0.96, attack="noise", psr_db=-15.0, defense=trained)
    return table.frame(rows)


def byzantine() -> pd.DataFrame:
    """Rules against forged updates; nobody attacked the median while knowing it."""
    left = {
        "fedavg": {"none": 0.95, "ipm": 0.10, "alie": 0.20},
        "krum (f: 6)": {"none": 0.90, "ipm": 0.85, "alie": 0.30, "adaptive": 0.25},
        "median": {"none": 0.94, "ipm": 0.80, "alie": 0.60},
        "nnm": {"none": 0.93, "ipm": 0.88, "alie": 0.86, "adaptive": 0.84},
    }
    rows = []
    for rule, attacks in left.items():
        for attack, value in attacks.items():
            cell = f"federation.aggregator={rule}; attacks={attack}"
            share = 0.0 if attack == "none" else 0.3
            rule_name = rule.partition(" ")[0]
            rows += row(cell, value, aggregator=rule_name, defense="none", adversary_fraction=share)
    return table.frame(rows)


def panel(found: pd.DataFrame) -> attack_matrix.Panel:
    (only,) = panels_of(described(pooled_rows(found)))
    return only


def test_the_columns_and_lines_of_rules_against_forged_updates() -> None:
    one = panel(byzantine())
    assert one.links == ["fedavg", "krum", "median", "nnm"]
    assert one.columns == ["no attack", "ipm", "alie", "adaptive", "worst"]
    values = np.array([[entry.value for entry in line] for line in one.entries])
    # Averaging is no defense: the strongest attack stands where one that knows a defense would.
    assert np.allclose(values[0], [95, 10, 20, 10, 10])
    assert np.allclose(values[1], [90, 85, 30, 25, 25])
    assert np.allclose(values[2], [94, 80, 60, np.nan, 60], equal_nan=True)
    assert np.allclose(values[3], [93, 88, 86, 84, 84])


def test_a_rule_that_nobody_attacked_who_knows_it_supports_no_claim() -> None:
    claims = [[entry.claim for entry in line] for line in panel(byzantine()).entries]
    assert claims == [[True] * 5, [True] * 5, [True, False, False, False, False], [True] * 5]


def test_the_worst_line_and_attack() -> None:
    one = panel(byzantine())
    # Means over ipm and alie, which all rules have met: 15, 57.5, 70, 87. The adaptive column's mean is the lowest.
    assert one.links[one.worst_link or 0] == "fedavg"
    assert one.columns[one.worst_column] == "adaptive"


def test_a_defense_is_judged_by_the_worse_of_attacks_that_know_it_and_that_do_not() -> None:
    found = {(one.link, one.unsupported): one for one in verdicts(at_test_time())}
    assert set(found) == {("no defense", False), ("filter", True), ("hard", False), ("hard + filter", False)}
    assert found["hard", False].worst == "worst −15\u00a0dB"
    assert found["hard", False].value == "80.0\u00a0%"
    assert found["hard + filter", False].worst == "adaptive (worst) −15\u00a0dB"
    assert found["hard + filter", False].interval == "[27.0, 32.0]"
    assert found["no defense", False].value == "5.0\u00a0%"


def test_the_table_says_which_figure_judges() -> None:
    marked = with_verdicts(at_test_time())
    assert len(marked) == len(at_test_time())
    told = {
        (str(one.defense), str(one.attack)): str(one.verdict) for one in marked[marked["verdict"].notna()].itertuples()
    }
    assert told == {
        ("none", "worst"): "judged",
        ("hard", "worst"): "judged",
        ("hard+filter", "adaptive_worst"): "judged",
        ("filter", "fgsm"): "no claim",
        ("filter", "worst"): "no claim",
    }
    # Each seed, and all together.
    assert marked["verdict"].notna().sum() == 2 * len(told)


def test_what_a_detector_flags_has_not_failed() -> None:
    behind = {"defense": "alarm"}
    rows = row("", 0.98) + row("", 0.98, **behind) + evasion("", 0.05, "pgd") + evasion("", 0.05, "pgd", True, **behind)
    rows += evasion("", 0.20, "pgd", True, **behind, metric="undetected_error")
    rows += row("", 0.90, **behind, metric="passed_right")
    one = panel(table.frame(rows))
    # Without attack a false alarm is an error.
    assert [line[0].value for line in one.entries] == pytest.approx([98, 90])
    # The interval of the share that is wrong and passes, [17, 22] %, from the other end.
    found = one.entries[1][1]
    assert (found.value, found.low, found.high) == pytest.approx((80, 78, 83))
    assert (one.links, one.entries[0][1].value) == (["no defense", "alarm"], pytest.approx(5))


def test_a_budget_on_average_is_a_threat_of_its_own() -> None:
    rows = row("", 0.98) + row("", 0.97, defense="d")
    for defense in ("none", "d"):
        rows += evasion("", 0.5, "pgd", defense == "d", defense=defense, attack_params='{"kind": "pgd"}')
        rows += evasion("", 0.1, "universal", defense=defense, attack_params='{"kind": "universal"}')
    told = {(one.link, one.worst.split()[0], one.unsupported) for one in verdicts(table.frame(rows))}
    assert told == {("no defense", "PGD", False), ("no defense", "universal", False), ("d", "PGD", False),
                    ("d", "universal", True)}  # fmt: skip


def test_several_defenses_of_one_cell_are_lines_of_their_own() -> None:
    one = panel(at_test_time())
    assert one.links == ["no defense", "filter", "hard", "hard + filter"]
    assert one.columns == [
        "no attack",
        "FGSM −15\u00a0dB",
        "worst −15\u00a0dB",
        "adaptive (worst) −15\u00a0dB",
        "worst",
    ]
    adaptive = [line[3].value for line in one.entries]
    # Repeated where the attack knows the training already, or nothing defends; not there for the filter alone.
    assert np.allclose(adaptive, [5, np.nan, 80, 30], equal_nan=True)


def planted() -> pd.DataFrame:
    """One training without and one with a patch, one with a filter and a patch, and one with what knows the filter."""
    rows = []
    knows = "data: own, defense: adaptive"
    for cell, defense, clean, reached, knowledge in (
        ("defenses=none; attacks=none", "none", 0.98, None, ""),
        ("defenses=none; attacks=patch", "none", 0.97, 0.93, "data: own"),
        ("defenses=filter; attacks=none", "filter", 0.96, None, ""),
        ("defenses=filter; attacks=patch", "filter", 0.95, 0.05, "data: own"),
        ("defenses=filter; attacks=adaptive", "filter", 0.94, 0.80, knows),
    ):
        share = 0.2 if reached else 0.0
        rows += row(cell, clean, defense=defense, adversary_fraction=share)
        # What a trigger does to a link that nobody poisoned is no attack.
        name = "adaptive_patch" if "adaptive" in cell else "patch"
        under = {"attack": name, "targeted": True, "adversary_fraction": share, "knowledge": knowledge or "data: own"}
        rows += row(cell, reached or 0.01, defense=defense, metric="reached", **under)
        rows += row(cell, 0.3, defense=defense, **under)
    return table.frame(rows)


def test_a_planted_trigger_leaves_what_is_not_taken_for_its_goal() -> None:
    one = panel(planted())
    assert one.links == ["no defense", "filter"]
    assert one.columns == ["no attack", "patch", "patch, trigger", "adaptive", "adaptive, trigger", "worst"]
    values = np.array([[entry.value for entry in line] for line in one.entries])
    assert np.allclose(values, [[98, 97, 7, 97, 7, 7], [96, 95, 95, 94, 20, 20]])
    # The interval of the share that is taken for the goal, [90, 95] %, from the other end.
    assert (one.entries[0][2].low, one.entries[0][2].high) == pytest.approx((5, 10))
    assert all(entry.claim for line in one.entries for entry in line)


def test_nothing_is_claimed_of_a_filter_that_no_trigger_knows() -> None:
    found = planted()
    known = found["cell"].str.contains("adaptive")
    claims = [entry.claim for entry in panel(found[~known]).entries[1]]
    assert claims == [True, False, False, False]
    marked = with_verdicts(found[~known])
    told = marked[marked["metric"].eq("reached") & marked["verdict"].notna()]
    assert dict(zip(told["defense"], told["verdict"], strict=True)) == {"none": "judged", "filter": "no claim"}


def test_a_trigger_that_knows_a_filter_counts_beside_a_stronger_one_that_does_not() -> None:
    """One training plants both, as where a filter and a repair are known by different triggers."""
    found = planted()
    extra = found[found["cell"].str.contains("adaptive") & (found["metric"] == "reached")].copy()
    extra = extra[extra["defense"] == "filter"].assign(attack="adaptive_blend", knowledge=KNOWS, value=0.9)
    assert len(extra) == 2
    both = pd.concat([found, extra], ignore_index=True)
    one = panel(both)
    last = one.entries[1][one.columns.index("adaptive, trigger")]
    assert (round(last.value), last.claim) == (10, True)


def test_hatches_and_frames_are_drawn() -> None:
    axes = draw("attack_matrix", byzantine(), SAMPLES).axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    hatched = {(round(box.get_x() + 0.5), round(box.get_y() + 0.5)) for box in boxes if box.get_hatch()}
    assert hatched == {(column, 2) for column in (1, 2, 3, 4)}
    framed = {(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in boxes if not box.get_hatch()}
    assert framed == {(-0.5, -0.5, 5, 1), (2.5, -0.5, 1, 4)}
    shown = {text.get_text() for text in axes.texts}
    assert {"10.0", "[7, 12]", "–", "fedavg ◂", "adaptive\n▾"} <= shown


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (row("", 0.9), "nothing was attacked"),
        (row("", 0.9) + evasion("", 0.1, "pgd"), "there are no defenses to compare"),
        (
            row("defenses=none", 0.9) + evasion("defenses=none", 0.1, "pgd") + row("defenses=x", 0.9, defense="x")
            + evasion("defenses=x", 0.1, "pgd", defense="x") + evasion("defenses=x", 0.2, "pgd", defense="x", draws=1),
            "its links differ in more",
        ),
    ],
)  # fmt: skip
def test_what_there_is_no_matrix_of(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(FedsemError, match=said):
        draw("attack_matrix", table.frame(rows), SAMPLES)
