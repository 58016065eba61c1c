"""What defenses cost: measured for every one that comes with fedsem, and told beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.costs import Case, Size, cases, costs
from fedsem import catalogue
from fedsem.catalogue import COSTS, DEFENSES, measured, ours, page

SHIPPED = {(group, kind) for group in DEFENSES for kind in ours(group)}


def test_every_defense_is_measured() -> None:
    assert {(case.group, case.kind) for case in cases()} == SHIPPED


@pytest.mark.parametrize(("group", "kind"), sorted(SHIPPED))
def test_every_defense_has_a_row_in_the_reference(group: str, kind: str) -> None:
    rows = measured().get((group, kind))
    assert rows, f"run: python -m benchmarks costs, and commit {COSTS.name}"
    wanted = [case.columns for case in cases() if (case.group, case.kind) == (group, kind)]
    for row in rows:
        assert row["hook"] == wanted[0]["hook"]
        assert float(row["time_ratio"]) == pytest.approx(float(row["cpu_s"]) / float(row["undefended_cpu_s"]), rel=1e-3)
        assert float(row["ci_low"]) <= float(row["change"]) <= float(row["ci_high"])
    if kind != "fedavg":
        assert sorted(row["options"] for row in rows) == sorted(one["options"] for one in wanted)


def test_the_page_tells_the_costs_of_every_defense() -> None:
    text = page("defenses.md")
    for kind in (kind for _, kind in SHIPPED):
        entry = text.partition(f"### `{kind}`\n")[2].partition("\n#")[0]
        assert "\n[Costs](#what-they-cost)" in entry, kind
        assert "not measured" not in entry
        assert f"\n| `{kind}` | " in text


def test_without_the_file_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed copy, which has no results."""
    monkeypatch.setattr(catalogue, "COSTS", tmp_path / "none.csv")
    text = page("defenses.md")
    assert text.count("\nCosts: not measured.\n") == len(SHIPPED)
    assert "What they cost" not in text


def test_what_was_measured_stands_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the row by hand."""
    head = (
        "group,kind,options,hook,timed,cpu_s,undefended_cpu_s,time_ratio,size,load,combining_ratio,metric,undefended,"
    )
    head += "change,ci_low,ci_high,n,flagged,machine\n"
    rows = (
        'aggregator,krum,f: 2,aggregate,a round,2.04,2.0,1.02,small,1.5,12.4,accuracy,91.25,-3.14,-4.0,-2.2,9,,"A, B"\n'
    )
    rows += "defense,strip,,detector,an image,9,3,3.0,small,2.5,,accuracy,91.25,0.0,0.0,0.0,9,4.96,X\n"
    (tmp_path / "costs.csv").write_text(head + rows)
    monkeypatch.setattr(catalogue, "COSTS", tmp_path / "costs.csv")
    text = page("defenses.md")
    krum = (
        "1.0 times the CPU time of a round (the server's part: 12 times FedAvg's); accuracy -3.1 points "
        "[-4.0, -2.2] from 91.2 %."
    )
    assert f"\n[Costs](#what-they-cost) (f: 2): {krum}\n" in text
    strip = "accuracy as it is, 5.0 % of clean receptions flagged"
    assert f"\n[Costs](#what-they-cost): 3.0 times the CPU time of an image; {strip}.\n" in text
    assert "Machine: A, B; load average 1.5 to 2.5, " in text
    assert "- small; undefended: accuracy 91.2 %" in text
    assert f"| `strip` |  | an image | 3.0 |  | {strip} |" in text
    assert "Costs" not in page("attacks.md")


def test_costs_are_measured_against_the_same_link_without() -> None:
    """A rule that is FedAvg by its options and a detector leave every decision as it is."""
    wanted = [
        Case("aggregator", "fedprox", {"mu": 0.0}),
        Case("defense", "label_smoothing", {}),
        Case("defense", "energy_detector", {}),
        Case("defense", "fine_pruning", {"epochs": 0}),
        Case("defense", "median_smoothing", {"n": 20}),
    ]
    table: Any = costs(wanted, Size(rounds=2, noisy_epochs=2, test_images=30, draws=2, repeats=1)).set_index("kind")
    assert set(table.index) == {case.kind for case in wanted}
    for kind in ("fedprox", "energy_detector"):
        assert tuple(table.loc[kind, ["change", "ci_low", "ci_high"]]) == (0, 0, 0)
    assert (table["cpu_s"] > 0).all()
    assert (table["metric"] == "psnr_db").to_dict() == {kind: kind == "median_smoothing" for kind in table.index}
    assert table["flagged"].notna().to_dict() == {kind: kind == "energy_detector" for kind in table.index}
    assert table["combining_ratio"].notna().to_dict() == {kind: kind == "fedprox" for kind in table.index}
    timed = table["timed"].to_dict()
    assert timed["fine_pruning"] == "the whole training"
    assert timed["label_smoothing"] == timed["fedprox"] == "a round of training"
    assert timed["median_smoothing"] == timed["energy_detector"] == "sending and decoding an image"
