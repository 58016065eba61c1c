"""Two attacks of one run, paired: against SciPy's paired bootstrap, and by properties."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import fedsem
from fedsem.cli import app
from fedsem.errors import OutputError
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.tabulate import differences
from fedsem.reporting.results import Results


def points(one: np.ndarray, other: np.ndarray, **columns: Any) -> list[Point]:
    """Two attacks at one place: shares of right receptions of each image, of four."""
    place = {"receiver": "all", "task": "label", "snr_db": 10.0, "psr_db": -20.0}
    return [
        Point({**place, "attack": "one", "pnr_db": 1}, {"accuracy": Tally(4 * one, np.full(len(one), 4.0), 4)}),
        Point(
            {**place, "attack": "other", "psr_achieved_db": -20.1, **columns},
            {"accuracy": Tally(4 * other, np.full(len(other), 4.0), 4)},
        ),
    ]


def test_the_interval_is_the_paired_bootstrap_over_images() -> None:
    """Two attacks that agree on most images: unpaired, the interval would be four times as wide."""
    generator = np.random.default_rng(0)
    other = generator.integers(0, 5, 400) / 4
    one = np.clip(other - (generator.random(400) < 0.1) / 4, 0, 1)
    (row,) = differences([points(one, other)], "one", "other")
    assert row["difference"] == pytest.approx(one.mean() - other.mean())
    assert (row["value"], row["other_value"], row["n"]) == (pytest.approx(one.mean()), pytest.approx(other.mean()), 400)
    peer = stats.bootstrap((one - other,), np.mean, method="percentile", rng=generator).confidence_interval
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(peer.low, abs=2e-3), pytest.approx(peer.high, abs=2e-3))
    unpaired = 2 * 1.96 * np.sqrt((one.var() + other.var()) / 400)
    assert row["ci_high"] - row["ci_low"] < unpaired / 4
    (back,) = differences([points(one, other)], "other", "one")
    assert (back["ci_low"], back["ci_high"]) == (pytest.approx(-row["ci_high"]), pytest.approx(-row["ci_low"]))


@pytest.mark.parametrize(
    ("columns", "alike"),
    [
        ({"knowledge": "weights: none", "sites": "air", "norm": "linf"}, True),
        ({"sensing_snr_db": 5.0}, True),
        ({"snr_db": 0.0}, False),
        ({"psr_db": -10.0}, False),
        ({"receiver": "others"}, False),
    ],
)
def test_what_is_compared_was_measured_at_the_same_place(columns: dict[str, Any], alike: bool) -> None:
    share = np.linspace(0, 1, 8)
    assert len(list(differences([points(share, share**2, **columns)], "one", "other"))) == alike


SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "compared",
    "seeds": [0, 1],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 100, "test_images": 40},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"all": {"count": 2, "tasks": ["label"], "channel": "down"}},
    "train": {"batch": 16, "snr_db": 10},
    "federation": {"kind": "none", "rounds": 3},
    "sweep": {"link.power": ["per_example", "batch_average"]},
    "attacks": {"step": {"kind": "fgsm"}, "steps": {"kind": "pgd", "steps": 4}, "unused": {"kind": "fgsm"}},
    "evaluation": {
        "draws": {"attack": 2, "score": 4},
        "samples": 0,
        "baselines": False,
        "grids": [{"attacks": ["none", "step", "steps"], "snr_db": [10], "psr_db": [-20, -15]}],
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return fedsem.run(SCENARIO, out=tmp_path_factory.mktemp("compared"))


def test_a_finished_run_is_compared_cell_by_cell(results: Results) -> None:
    found = fedsem.compare(results.folder, "step", "steps")
    found = found[found["metric"] == "accuracy"]
    table = results.table[results.table["seed"].isna() & (results.table["metric"] == "accuracy")]
    assert set(found["cell"]) == set(table["cell"]) == {"link.power=per_example", "link.power=batch_average"}
    assert set(found["psr_db"]) == {-20.0, -15.0}
    for _, row in found.iterrows():
        here = table[(table["cell"] == row["cell"]) & (table["psr_db"] == row["psr_db"])].set_index("attack")["value"]
        assert row["value"] == pytest.approx(here["step"])
        assert row["other_value"] == pytest.approx(here["steps"])
        assert row["difference"] == pytest.approx(here["step"] - here["steps"])
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]


def test_the_command_prints_what_varies(results: Results) -> None:
    done = CliRunner().invoke(app, ["compare", str(results.folder), "step", "steps"])
    assert (done.exit_code, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == [
        "cell",
        "psr_db",
        "metric",
        "value",
        "other_value",
        "difference",
        "ci_low",
        "ci_high",
        "n",
    ]
    assert len(lines) == 2 * 2 * 2
    wrong = CliRunner().invoke(app, ["compare", str(results.folder), "stap", "steps"])
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: The run in")


@pytest.mark.parametrize(
    ("attack", "other", "sentence"),
    [
        ("stap", "steps", r"has no attack 'stap' in its scenario. Did you mean 'step'\?"),
        ("step", "unused", "measured 'step' and 'unused' nowhere at the same SNR and PSR; name both in one grid"),
    ],
)
def test_what_cannot_be_compared_is_said(results: Results, attack: str, other: str, sentence: str) -> None:
    with pytest.raises(OutputError, match=sentence):
        fedsem.compare(results.folder, attack, other)


def test_an_unfinished_run_is_not_compared(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(results.folder, folder)
    next(folder.glob("stages/evaluate-cell1-seed1-*/points.json")).unlink()
    with pytest.raises(OutputError, match=r"is not finished; finish it with: fedsem run --resume"):
        fedsem.compare(folder, "step", "steps")
    with pytest.raises(OutputError, match="is not the folder of a run"):
        fedsem.compare(tmp_path, "step", "steps")
