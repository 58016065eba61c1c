"""The hash of the code behind a stage: what changes it, what does not, and what it refuses."""

from __future__ import annotations

import importlib
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedsem import provenance, run
from fedsem.checks import resolve
from fedsem.errors import OutputError
from fedsem.plan import Plan
from fedsem.provenance import evaluation_code, training_code
from fedsem.reporting.results import Results
from fedsem.scenario_file import load_scenario


def tiny(**changes: Any) -> dict[str, Any]:
    """One receiver, one round, 60 digits."""
    scenario: dict[str, Any] = {
        "schema": 1,
        "name": "tiny",
        "seeds": [0],
        "compute": {"engine": "local"},
        "data": {"kind": "digits", "train_images": 60, "test_images": 20},
        "link": {"encoder": {"kind": "cnn", "channel_uses": 4}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
        "federation": {"rounds": 1},
        "evaluation": {"draws": {"attack": 1, "score": 1}, "samples": 0, "grids": [{"snr_db": [10]}]},
    }
    return scenario | changes


def plan_of(**changes: Any) -> Plan:
    return resolve(load_scenario(tiny(**changes)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tiny(), out=tmp_path_factory.mktemp("provenance"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of fedsem's sources that may be edited."""
    copy = tmp_path / "fedsem"
    shutil.copytree(provenance._HERE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_HERE", copy)
    return copy


@pytest.mark.parametrize(
    ("file", "trains", "evaluates"),
    [
        ("training.py", True, True),
        ("link.py", True, True),
        ("channels/fading.py", True, True),
        ("federation/rounds.py", True, True),
        ("federation/aggregators/fedavg.py", True, True),
        ("evaluation/score.py", False, True),
        ("reporting/figures.py", False, False),
        ("cli.py", False, False),
    ],
)
def test_a_line_of_source_changes_the_hash_of_what_it_decides(
    sources: Path, file: str, trains: bool, evaluates: bool
) -> None:
    plan = plan_of()
    before = training_code(plan), evaluation_code(plan)
    with (sources / file).open("a") as text:
        text.write("# changed\n")
    provenance._digest.cache_clear()
    assert (training_code(plan) != before[0], evaluation_code(plan) != before[1]) == (trains, evaluates)


def test_an_attack_belongs_to_the_evaluation_alone_until_it_acts_in_training() -> None:
    clean = plan_of()
    attacked = plan_of(attacks={"fgsm": {"kind": "fgsm", "objective": {"label": 1}}})
    assert training_code(clean) == training_code(attacked)
    assert evaluation_code(clean) != evaluation_code(attacked)


def test_the_file_of_a_third_partys_plugin_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "their_channel.py"
    file.write_text("from fedsem.channels.awgn import Awgn\n\nclass Theirs(Awgn):\n    pass\n")
    theirs = importlib.import_module("their_channel").Theirs()
    monkeypatch.setitem(sys.modules, "their_channel", sys.modules["their_channel"])
    ours = plan_of()
    mixed = ours.scenario.model_copy(update={"channels": {"down": theirs}})
    with_theirs = Plan(mixed, ours.dataset, ours.receivers, ours.device)
    before = training_code(with_theirs)
    assert before != training_code(ours)
    file.write_text(file.read_text() + "# changed\n")
    provenance._digest.cache_clear()
    assert training_code(with_theirs) != before


def test_the_version_of_a_numerical_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    before = training_code(plan)
    monkeypatch.setattr(provenance, "version", lambda name: "0.0" if name == "torch" else "1")
    first = training_code(plan)
    monkeypatch.setattr(provenance, "version", lambda name: "0.1" if name == "torch" else "1")
    assert len({before, first, training_code(plan)}) == 3


def altered(finished: Results, tmp_path: Path) -> Path:
    """A copy of a finished run that other code is said to have made."""
    folder = tmp_path / "altered"
    shutil.copytree(finished.folder, folder)
    for code in folder.glob("*/*/code.json"):
        code.write_text('{"hash": "0123456789abcdef", "git": null}')
    return folder


def test_trainings_of_other_code_are_not_reused(finished: Results, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"was trained with other code \(0123456789abcdef, now .*Leave out --reuse"):
        run(tiny(), out=tmp_path / "out", reuse=altered(finished, tmp_path))
    assert not list(tmp_path.glob("out/*/*"))


def test_a_run_of_other_code_is_not_resumed(finished: Results, tmp_path: Path) -> None:
    folder = altered(finished, tmp_path)
    before = {name: (folder / name).read_bytes() for name in ("table.csv", "manifest.json")}
    with pytest.raises(OutputError, match=r"was begun with other code \(0123456789abcdef, now .*start a new run"):
        run(resume=folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_stage_whose_code_is_unknown_is_neither_reused_nor_resumed(finished: Results, tmp_path: Path) -> None:
    folder = altered(finished, tmp_path)
    for code in folder.glob("*/*/code.json"):
        code.unlink()
    with pytest.raises(OutputError, match="was trained with other code"):
        run(tiny(), out=tmp_path / "out", reuse=folder)
    with pytest.raises(OutputError, match="was begun with other code"):
        run(resume=folder)


def test_engines_share_trainings_because_they_give_the_same_numbers(finished: Results, tmp_path: Path) -> None:
    reused = run(tiny(), ["compute.engine=ray", "compute.workers=1"], out=tmp_path, reuse=finished.folder)
    stages = [(taken["stage"], taken["of"]) for taken in reused.manifest["reused"]]
    assert stages == [("training", "cell0-seed0"), ("evaluation", "cell0-seed0")]
    precise = run(tiny(), ["compute.precision=bf16"], out=tmp_path, reuse=finished.folder)
    assert precise.manifest["reused"] == []


def test_trainings_come_from_several_runs_and_remember_where_they_began(finished: Results, tmp_path: Path) -> None:
    second = run(tiny(seeds=[1]), out=tmp_path)
    joined = run(tiny(seeds=[0, 1]), out=tmp_path, reuse=[finished.folder, second.folder])
    origins = [(taken["of"], taken["run"], taken["git"]) for taken in joined.manifest["reused"]]
    git = joined.manifest["git"]
    assert origins[::2] == [("cell0-seed0", finished.folder.name, git), ("cell0-seed1", second.folder.name, git)]
    page = (joined.folder / "report.html").read_text(encoding="utf-8")
    assert f"<td>training</td><td>cell0-seed0</td><td>{finished.folder.name}</td>" in page
    again = run(tiny(seeds=[0]), out=tmp_path, reuse=joined.folder)
    assert {taken["run"] for taken in again.manifest["reused"]} == {finished.folder.name}


def test_an_identical_evaluation_is_taken_into_another_sweep_and_any_other_is_not(
    finished: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = {"evaluation.draws.score": [2, tiny()["evaluation"]["draws"]["score"]]}
    both = run(tiny(sweep=sweep), out=tmp_path, reuse=finished.folder)
    evaluations = [taken["of"] for taken in both.manifest["reused"] if taken["stage"] == "evaluation"]
    assert evaluations == ["cell1-seed0"]
    fresh = run(tiny(sweep=sweep), out=tmp_path)
    pd.testing.assert_frame_equal(both.table.drop(columns="run_id"), fresh.table.drop(columns="run_id"))
    monkeypatch.setattr("fedsem.stages.evaluation_code", lambda plan: "another")
    anew = run(tiny(), out=tmp_path, reuse=finished.folder)
    assert [taken["stage"] for taken in anew.manifest["reused"]] == ["training"]


def images(folder: Path, shade: int) -> Path:
    """A parquet file of 60 grey pictures in three classes."""
    rng = np.random.default_rng(shade)
    pictures = []
    for _ in range(60):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(shade, shade + 100, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"img": pictures, "label": np.arange(60) % 3}).to_parquet(folder / "pictures.parquet")
    return folder / "pictures.parquet"


def test_other_pictures_under_the_same_path_are_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSEM_DATA", str(tmp_path / "cache"))
    scenario = tiny(data={"kind": "parquet", "train": str(images(tmp_path / "data", 0)), "image_size": 8})
    first = run(scenario, out=tmp_path)
    images(tmp_path / "data", 100)
    assert run(scenario, out=tmp_path, reuse=first.folder).manifest["reused"] == []
    before = {path: path.read_bytes() for path in first.folder.glob("*.*")}
    with pytest.raises(OutputError, match="was begun with other pictures, on another device"):
        run(resume=first.folder)
    assert {path: path.read_bytes() for path in first.folder.glob("*.*")} == before
    images(tmp_path / "data", 0)
    again = run(scenario, out=tmp_path, reuse=first.folder)
    assert [taken["stage"] for taken in again.manifest["reused"]] == ["training", "evaluation"]


def test_cells_that_differ_in_their_evaluation_share_a_training(tmp_path: Path) -> None:
    results = run(tiny(sweep={"evaluation.draws.score": [1, 2]}), out=tmp_path)
    assert len(list(results.folder.glob("checkpoints/*"))) == 1
    assert results.table["cell"].nunique() == 2
