"""`evaluation.rounds`: the mean over the last rounds, against runs that end in each of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedsem
from fedsem.errors import ScenarioError
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.tabulate import over_rounds
from fedsem.federation.state import FederationState

LAST = {
    "schema": 1,
    "name": "last",
    "seeds": [0, 1],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 100, "test_images": 30},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 4}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
    "receivers": {"all": {"count": 3, "tasks": ["label", "picture"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 10, "snr_db": 10, "epochs": 2, "optimizer": {"lr": 3e-3}},
    "federation": {"rounds": 3},
    "attacks": {"fgsm": {"kind": "fgsm"}, "flip": {"kind": "sign_flip", "fraction": 0.34}},
    "use": {"attacks": ["flip"]},
    "evaluation": {
        "draws": {"attack": 1, "score": 2},
        "baselines": False,
        "samples": 1,
        "grids": [{"attacks": ["none", "noise", "fgsm"], "snr_db": [10], "psr_db": [-20]}],
    },
}
KEYS = ["seed", "stage", "task", "attack", "metric", "psr_db"]


def values(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["stage"].isin(["evaluate", "twin"])].set_index(KEYS)[["value", "n", "ci_low", "ci_high"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fedsem.Results]:
    out = tmp_path_factory.mktemp("rounds")
    ends = {f"{n} rounds": fedsem.run(LAST, [f"federation.rounds={n}"], out=out) for n in (2, 3)}
    return {**ends, "mean": fedsem.run(LAST, ["evaluation.rounds=2"], out=out)}


def test_it_is_the_mean_of_runs_that_end_there(runs: dict[str, fedsem.Results]) -> None:
    two, three, mean = (values(runs[name].table) for name in ("2 rounds", "3 rounds", "mean"))
    assert set(mean.index.get_level_values("metric")) >= {"accuracy", "accuracy_vs_twin", "mse", "psnr_db_vs_noise"}
    assert (mean.index == three.index).all()
    assert mean["value"].to_numpy(float) == pytest.approx(
        ((two["value"] + three["value"]) / 2).to_numpy(float), abs=1e-12
    )
    # The rounds of one link are no independent trials: there are as many examples as before.
    assert (mean["n"] == three["n"]).all()


def test_the_interval_resamples_images_and_seeds_not_rounds(runs: dict[str, fedsem.Results]) -> None:
    two, three, mean = (values(runs[name].table).xs("accuracy", level="metric") for name in runs)
    widths = [(one["ci_high"] - one["ci_low"]).to_numpy(float) for one in (two, three, mean)]
    # Were rounds trials, it would be narrower by sqrt(2): 0.71 of the mean of the two.
    assert (widths[2] > 0.8 * (widths[0] + widths[1]) / 2).mean() > 0.7


def test_the_table_says_how_many_rounds(runs: dict[str, fedsem.Results]) -> None:
    table = runs["mean"].table
    evaluated = table[table["stage"].isin(["evaluate", "twin"])]
    assert set(evaluated["rounds"]) == {2}
    assert set(evaluated["round"]) == {3}
    assert runs["3 rounds"].table["rounds"].isna().all()


def test_only_the_measured_rounds_are_kept(runs: dict[str, fedsem.Results]) -> None:
    for name, kept in (("3 rounds", ["state-00003"]), ("mean", ["state-00002", "state-00003"])):
        for training in (runs[name].folder / "checkpoints").iterdir():
            assert sorted(path.stem for path in training.glob("*.safetensors")) == kept
            state = FederationState.load(training, 3)
            assert state is not None
            assert [record.round for record in state.history] == [1, 2, 3]
    state = FederationState.load(training, 2)
    assert state is not None
    assert (state.round, [record.round for record in state.history]) == (2, [1, 2])


def test_a_resumed_evaluation_finds_the_rounds(runs: dict[str, fedsem.Results], tmp_path: Path) -> None:
    folder = tmp_path / runs["mean"].folder.name
    shutil.copytree(runs["mean"].folder, folder)
    for stage in (folder / "stages").iterdir():
        (stage / "points.json").unlink()
    pd.testing.assert_frame_equal(fedsem.run(resume=folder).table, runs["mean"].table)


def test_the_training_is_that_of_a_run_that_measures_the_last_round(runs: dict[str, fedsem.Results]) -> None:
    plain, kept = (sorted((runs[name].folder / "checkpoints").iterdir()) for name in ("3 rounds", "mean"))
    one = {path.joinpath("state-00003.safetensors").read_bytes() for path in plain}
    assert one == {path.joinpath("state-00003.safetensors").read_bytes() for path in kept}
    # But it has not kept what the other one needs: their folders have different names.
    assert not {path.name for path in plain} & {path.name for path in kept}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation.rounds": 1}, "'evaluation.rounds': there are only 1 rounds to measure the link after, not 2"),
        ({"evaluation.rounds": 0}, "should be more than 0"),
    ],
)
def test_what_cannot_be_averaged(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        fedsem.run(LAST, ["evaluation.rounds=2", *(f"{key}={value}" for key, value in changes.items())])
    assert said in str(error.value)


def test_average_precision_has_no_mean_over_rounds() -> None:
    with pytest.raises(ScenarioError, match="the average precision of 'objects' is a ranking of one round's"):
        fedsem.run("mae_quickstart", ["evaluation.rounds=2", "compute.engine=local"])


def test_rounds_that_measured_other_points_are_no_mean() -> None:
    point = Point({"attack": "none"}, {"accuracy": Tally(np.ones(3), np.ones(3), 1)})
    with pytest.raises(ValueError, match="different numbers"):
        over_rounds([[point], []])
    with pytest.raises(ValueError, match="different points"):
        over_rounds([[point], [Point({"attack": "pgd"}, point.metrics)]])
