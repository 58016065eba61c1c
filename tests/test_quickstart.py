"""The shipped quickstart, as a user runs it: what it must reach. Minutes; run by `make test-slow`."""

from __future__ import annotations

import pandas as pd
import pytest

from fedsem import run
from fedsem.reporting.results import Results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run("quickstart", ["seeds=[0, 1, 2]"], out=tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def pooled(results: Results) -> pd.DataFrame:
    """Rows over all three seeds."""
    return results.table[results.table["seed"].isna()]


def clean(pooled: pd.DataFrame, task: str, metric: str, x: str) -> pd.DataFrame:
    rows = pooled[pooled["attack"].eq("none") & pooled["task"].eq(task) & pooled["metric"].eq(metric)]
    return rows.set_index([x, "decoder"])


def at_10_db(pooled: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Clean rows at 10 dB, by decoder."""
    rows = clean(pooled, task, metric, "snr_db").reset_index()
    return rows[rows["snr_db"].eq(10.0)].set_index("decoder")


def test_clean_accuracy_at_10_db(pooled: pd.DataFrame) -> None:
    row = at_10_db(pooled, "label", "accuracy").loc["mlp"]
    assert row["value"] >= 0.95
    assert row["ci_low"] >= 0.93


def test_sensing_lies_between_the_energy_detector_and_the_matched_filter(pooled: pd.DataFrame) -> None:
    value = clean(pooled, "target", "accuracy", "sensing_snr_db")["value"].unstack()
    assert len(value) >= 5
    assert (value["mlp"] >= value["energy_detector"] - 0.01).all(), value
    assert (value["mlp"] <= value["matched_filter"] + 0.002).all(), value


def test_reconstruction_beats_the_mean_image_and_stands_beside_pca(pooled: pd.DataFrame) -> None:
    mse = at_10_db(pooled, "picture", "mse")
    learned, mean_image = mse.loc["mlp"], mse.loc["mean_image"]
    assert learned["ci_high"] < mean_image["ci_low"]
    assert 0 < mse.loc["pca"]["value"] < mean_image["value"]


def test_attacks_hurt_more_than_noise_of_equal_achieved_power(pooled: pd.DataFrame) -> None:
    rows = pooled[pooled["task"].eq("label") & pooled["psr_db"].between(-20, -5)]
    beyond = rows[rows["metric"].eq("accuracy_vs_noise")]
    assert set(beyond["attack"]) == {"fgsm", "pgd"}
    assert (beyond["ci_high"] < 0).all()
    under_attack = pooled[pooled["task"].eq("label") & pooled["psr_db"].notna() & pooled["metric"].eq("accuracy")]
    accuracy = under_attack.pivot_table(index="psr_db", columns="attack", values="value")
    middle = accuracy[accuracy[["fgsm", "pgd"]].apply(lambda column: column.between(0.2, 0.8)).any(axis=1)]
    assert len(middle) >= 2
    assert (middle["pgd"] < middle["fgsm"]).all()


def test_nobody_was_lost_on_the_way(results: Results) -> None:
    lost = results.table[results.table["metric"].isin(["failed_receivers", "rejected_updates"])]
    assert len(lost) == 2 * 3 * results.scenario["federation"]["rounds"]
    assert lost["value"].eq(0).all()
    assert results.warnings() == []
