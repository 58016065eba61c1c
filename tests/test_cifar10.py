"""CIFAR-10 at full size: what one encoder, 20 channel uses and 10 dB must reach. Twelve minutes or more a test."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedsem import run

DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "cifar10-train.parquet").is_file(), reason="CIFAR-10 is not in ../shared/data: nothing to train on"
    ),
]


def accuracy(table: pd.DataFrame, snr_db: float) -> float:
    rows = table[table["stage"].eq("evaluate") & table["metric"].eq("accuracy") & table["snr_db"].eq(snr_db)]
    (value,) = rows[rows["seed"].isna()]["value"]
    return float(value)


def test_centralised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSEM_DATA", str(tmp_path))
    settings = [f"data.path={DATA}", "seeds=[0]", "sweep={}"]
    assert accuracy(run("fig3_task_accuracy", settings, out=tmp_path).table, 10.0) >= 0.77


def test_federated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSEM_DATA", str(tmp_path))
    settings = [f"data.path={DATA}", "seeds=[0]", "sweep={}"]
    assert accuracy(run("federated_cifar10", settings, out=tmp_path).table, 10.0) >= 0.72
