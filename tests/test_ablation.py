"""`fedsem ablate`: every combination, each training once, nothing computed twice, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import fedsem
from fedsem.ablation import at_once, planned
from fedsem.audit import audit
from fedsem.auditing.subject import Effort
from fedsem.cli import app
from fedsem.errors import FedsemError, OutputError, ScenarioError
from fedsem.joined import parts_of
from fedsem.reporting import table
from fedsem.reporting.findings import Finding, read_findings
from fedsem.reporting.results import Results
from fedsem.scenario import check_scenario
from fedsem.store import Store

COMMAND = str(Path(sys.executable).parent / "fedsem")


def tiny(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "tiny",
        "compute": {"engine": "local", "device": "cpu"},
        "data": {"kind": "digits", "train_images": 60, "test_images": 20},
        "link": {"encoder": {"kind": "cnn", "channel_uses": 4}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": 3, "tasks": ["label"], "channel": "down", "decoder": "group"}},
        "train": {"batch": 20, "snr_db": 10},
        "federation": {"rounds": 1},
        "attacks": {"fgsm": {"kind": "fgsm"}, "flip": {"kind": "sign_flip"}},
        "defenses": {"noisy": {"kind": "noise_augmentation", "psr_db": -10}},
        "evaluation": {
            "draws": {"attack": 1, "score": 2},
            "baselines": False,
            "samples": 0,
            "grids": [{"attacks": ["none", "fgsm"], "snr_db": [10], "psr_db": [-20]}],
        },
        **changes,
    }


def without(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.drop(columns=["run_id", *columns]).reset_index(drop=True)


def records(results: Results | Path) -> dict[str, dict[str, Any]]:
    folder = results if isinstance(results, Path) else results.folder
    return {one["cell"]: one for one in json.loads((folder / "manifest.json").read_text())["cells"]}


# ------------------------------------------------------------------------------------------------- before it runs


def names(vary: list[str], **changes: Any) -> list[str]:
    return [one.name for one in planned(tiny(**changes), vary=vary)[1]]


def test_the_product_and_its_names() -> None:
    listed = {"federation.aggregator": ["fedavg", {"kind": "trimmed_mean", "f": 1}]}
    assert names(["defenses=[none, noisy]"], ablate=listed) == [
        "federation.aggregator=fedavg; defenses=none",
        "federation.aggregator=fedavg; defenses=noisy",
        "federation.aggregator=trimmed_mean (f: 1); defenses=none",
        "federation.aggregator=trimmed_mean (f: 1); defenses=noisy",
    ]
    # An axis of the command line takes the place of the scenario's.
    assert names(["federation.aggregator=[median]"], ablate=listed) == ["federation.aggregator=median"]


def test_axes_of_attacks_and_defenses_say_what_is_used_in_training() -> None:
    _, members = planned(tiny(), vary=["attacks=[none, flip]", "defenses=[noisy]"])
    assert [(one.scenario.use.attacks, one.scenario.use.defenses) for one in members] == [
        ([], ["noisy"]),
        (["flip"], ["noisy"]),
    ]
    with pytest.raises(ScenarioError, match="'fgsm' does not act in training"):
        planned(tiny(), vary=["attacks=[flip+fgsm]"])


def test_alternatives_with_names() -> None:
    rule = "{plain: {}, robust: {federation.aggregator: median, train.batch: 30}}"
    _, members = planned(tiny(), vary=[f"rule={rule}"])
    assert [(one.name, one.scenario.federation.aggregator.kind, one.scenario.train.batch) for one in members] == [
        ("rule=plain", "fedavg", 20),
        ("rule=robust", "median", 30),
    ]


def test_folders_are_told_apart_even_where_their_settings_look_alike() -> None:
    long = [{"kind": "trimmed_mean", "f": 1}, {"kind": "trimmed_mean", "share": 0.3}]
    _, members = planned(tiny(ablate={"federation.aggregator": long, "train.batch": [20, 30]}))
    assert len({one.folder for one in members}) == len(members) == 4


def test_trainings_that_differ_in_nothing_but_what_is_measured_are_one() -> None:
    _, members = planned(tiny(), vary=["defenses=[none, noisy]", "evaluation.draws.score=[2, 3, 4]"])
    trainings = [set(one.jobs) for one in members]
    assert [len(one) for one in trainings] == [1] * 6
    assert trainings[0] == trainings[1] == trainings[2] != trainings[3] == trainings[4] == trainings[5]


def test_twins_are_shared_by_all_attacks() -> None:
    _, members = planned(tiny(seeds=[0, 1]), vary=["attacks=[none, flip]"])
    clean, attacked = (set(one.jobs) for one in members)
    assert (len(clean), len(attacked)) == (2, 4)
    assert clean < attacked


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ("defenses=[none, niosy]", "'use.defenses': unknown defense 'niosy'. Did you mean 'noisy'?"),
        ("attacks=[flop]", "'use.attacks': unknown attack 'flop'. Did you mean 'flip'?"),
        ("defences=[none]", "'defences': unknown key. Did you mean 'defenses'?"),
        ("federation.agregator=[median]", "'federation.agregator': unknown key. Did you mean 'aggregator'?"),
        ("federation.aggregator=[mediam]", "unknown aggregator 'mediam'. Did you mean 'median'?"),
        ("federation.aggregator=[{kind: krum, f: 1}]", "'krum' with f = 1 needs at least 5 updates"),
        ("defenses=[none, none]", "'ablate.defenses': lists 'none' twice"),
        ("defenses=none", "'ablate.defenses': should be a list"),
        ("train.batch=[20, 20.5]", "should be a whole number"),
        ("seeds=[[0], [1]]", "'ablate.seeds': this key cannot be swept"),
        ("compute.engine=[ray, local]", "one engine runs the whole sweep"),
        ("defenses", "--vary needs the form a.b=value, for example --vary train.batch=[16,32], not 'defenses'."),
        ("defenses=[", "--vary defenses: the value '['"),
    ],
)
def test_a_slip_is_told_before_anything_runs(vary: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        planned(tiny(), vary=[vary])
    assert said in str(error.value)


def test_an_axis_of_the_sweep_is_not_varied_again() -> None:
    with pytest.raises(ScenarioError, match=r"'sweep.train.batch': 'ablate.train.batch' sets this key too"):
        planned(tiny(sweep={"train.batch": [20, 30]}), vary=["train.batch=[10, 20]"])


def test_what_is_no_ablation() -> None:
    with pytest.raises(ScenarioError, match="there is nothing to vary"):
        planned(tiny())
    with pytest.raises(ScenarioError, match=r"use fedsem ablate, or leave them out with --set ablate=\{\}"):
        fedsem.run(tiny(ablate={"defenses": ["none", "noisy"]}))
    with pytest.raises(FedsemError, match="Give either a scenario or the folder of an ablation"):
        fedsem.ablate()


def test_a_rule_without_an_attack_that_knows_it_is_left_out_of_that_column() -> None:
    robust = {"kind": "trimmed_mean", "f": 1}
    _, members = planned(tiny(ablate={"federation.aggregator": ["fedavg", robust], "attacks": ["flip", "adaptive"]}))
    assert [bool(one.left_out) for one in members] == [False, True, False, False]
    assert "'fedavg' names none" in members[1].left_out
    with pytest.raises(ScenarioError, match="'fedavg' names none"):
        planned(tiny(), vary=["attacks=[adaptive]"])


def test_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert at_once(check_scenario(tiny())) == 8
    assert at_once(check_scenario(tiny(compute={"engine": "ray"}))) == 1
    assert at_once(check_scenario(tiny(compute={"engine": "ray", "workers": 3}))) == 2
    assert at_once(check_scenario(tiny(compute={"engine": "ray", "workers": 99}))) == 1


def test_a_dry_run_says_what_is_shared_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("t.yaml").open("w") as file:
        YAML().dump(tiny(), file)
    axes = ["--vary", "attacks=[none, flip]", "--vary", "train.batch=[20, 30]", "--jobs", "3"]
    said = CliRunner().invoke(app, ["ablate", "t.yaml", *axes, "--dry-run"])
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines() == [
        "attacks=none; train.batch=20: trains 1 of 1",
        "attacks=none; train.batch=30: trains 1 of 1",
        "attacks=flip; train.batch=20: trains 1 of 2, takes the rest from attacks=none; train.batch=20",
        "attacks=flip; train.batch=30: trains 1 of 2, takes the rest from attacks=none; train.batch=30",
        "4 runs of 4 combinations, 4 trainings, 3 at once.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]


# -------------------------------------------------------------------------------------------------- as it runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three runs, two at once: two of them need the same training."""
    axes = ["attacks=[none, flip]", "federation.aggregator=[fedavg]"]
    told: list[tuple[str, str, int, int]] = []
    results = fedsem.ablate(
        tiny(ablate={"evaluation.draws.score": [2, 3]}),
        ["ablate.evaluation.draws.score=[2]"],
        vary=axes,
        out=tmp_path_factory.mktemp("whole"),
        jobs=2,
        progress=lambda *step: told.append(step),
    )
    assert [step[1] for step in told].count("finished") == 2
    assert told[-1][2:] == (2, 2)
    return results


def test_a_training_that_two_runs_need_is_made_once(whole: Results) -> None:
    clean, attacked = (whole.folder / one["folder"] for one in records(whole).values())
    (shared,) = {path.name for path in (clean / "checkpoints").iterdir()}
    assert shared in {path.name for path in (attacked / "checkpoints").iterdir()}
    assert len(list(attacked.glob("checkpoints/*"))) == 2
    made = [path.parent.name for path in whole.folder.glob("cells/*/checkpoints/*/reused-from")]
    assert made == [shared]
    assert [one["of"] for one in json.loads((attacked / "manifest.json").read_text())["reused"]] == ["cell0-seed0-twin"]


def test_what_another_ablation_has_made_is_not_made_again(whole: Results, tmp_path: Path) -> None:
    again = fedsem.ablate(tiny(), vary=["attacks=[none, flip]"], out=tmp_path, reuse=[whole.folder], jobs=1)
    made = {path.name for path in again.folder.glob("cells/*/checkpoints/*") if not (path / "reused-from").exists()}
    assert not made
    taken = [path.read_text() for path in again.folder.glob("cells/*/checkpoints/*/reused-from")]
    assert set(taken) == {Path(one["folder"]).name for one in records(whole).values()}


def test_the_joined_table_is_that_of_the_single_runs(whole: Results, tmp_path: Path) -> None:
    for cell, record in records(whole).items():
        mine = whole.table[whole.table["cell"] == cell]
        assert set(mine["run_id"]) == {Path(record["folder"]).name}
        own = Results(whole.folder / record["folder"]).table
        pd.testing.assert_frame_equal(without(mine, "cell", "verdict"), without(own, "cell", "verdict"))
    assert len(whole.table) == sum((whole.table["cell"] == cell).sum() for cell in records(whole))
    alone = fedsem.run(tiny(use={"attacks": ["flip"]}), out=tmp_path).table
    attacked = whole.table[whole.table["cell"].str.contains("attacks=flip")]
    pd.testing.assert_frame_equal(without(attacked, "cell", "verdict"), without(alone, "cell", "verdict"))


def test_the_folder_is_a_report_of_its_own(whole: Results) -> None:
    assert whole.manifest["status"] == "finished"
    assert whole.report() == whole.folder / "report.html"
    page = (whole.folder / "report.html").read_text()
    assert "Runs of this ablation" in page
    assert page.count("<td>finished</td>") == 2
    read = pd.read_csv(whole.folder / "table.csv")
    assert len(read) == len(whole.table)


def test_a_finished_ablation_is_not_computed_again(whole: Results) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.folder.glob("cells/*/*") if path.name != "run.log"}

    before, table = times(), whole.table
    again = fedsem.ablate(resume=whole.folder)
    assert times() == before
    pd.testing.assert_frame_equal(again.table, table)
    with pytest.raises(FedsemError, match="A resumed ablation keeps its scenario: leave out --set, --vary"):
        fedsem.ablate(resume=whole.folder, vary=["train.batch=[1]"])


def test_a_run_that_fails_is_marked_and_the_rest_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "t.yaml").open("w") as file:
        YAML().dump(tiny(), file)
    arguments = ["ablate", "t.yaml", "--vary", "train.optimizer.lr=[1e30, 1e-3]", "--jobs", "2"]
    ended = subprocess.run([COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "Error: 1 of 2 runs did not finish; the report says why. Try them again with: fedsem ablate" in ended.stderr
    (folder,) = tmp_path.glob("results/ablate-tiny/*")
    broken, fine = records(folder).values()
    assert (broken["status"], fine["status"]) == ("failed", "finished")
    assert "is NaN or infinite: the link diverged in training" in broken["error"]
    results = Results(folder)
    assert results.manifest["status"] == "incomplete"
    assert set(results.table["cell"]) == {"train.optimizer.lr=0.001"}
    assert "the link diverged in training" in (folder / "report.html").read_text()
    # What finished is audited, and the rest named.
    told = CliRunner().invoke(app, ["audit", str(folder), "--images", "2", "--queries", "1"])
    assert told.exit_code == any(one.verdict == "failed" for one in read_findings(folder))
    assert {one.cell for one in read_findings(folder)} == {"train.optimizer.lr=0.001"}
    warned = "Warning: Not audited, as its run did not finish: 'train.optimizer.lr=1e+30'; try again with: "
    assert f"{warned}fedsem ablate --resume {folder}" in told.stderr.splitlines()


def started(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "t.yaml").open("w") as file:
        YAML().dump(tiny(), file)
    command = [COMMAND, "ablate", "t.yaml", "--vary", "train.batch=[20, 30]", "--jobs", "1", *arguments]
    # As a terminal starts it: a shell's background, and pytest's, may ignore Ctrl-C.
    return subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError


def second_runs(folder: Path) -> Path | None:
    """The ablation's folder when its first run has finished and its second is going on."""
    for manifest in folder.glob("results/ablate-tiny/*/manifest.json"):
        statuses = [one["status"] for one in json.loads(manifest.read_text()).get("cells", [])]
        if statuses == ["finished", "running"]:
            return manifest.parent
    return None


def test_after_ctrl_c_the_rest_is_computed_and_nothing_else(tmp_path: Path) -> None:
    process = started(tmp_path)
    folder: Path = wait_for(lambda: second_runs(tmp_path))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"Interrupted; finish it with: fedsem ablate --resume {folder}".encode() in said
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    first, second = records(folder).values()
    assert (first["status"], second["status"]) == ("finished", "interrupted")
    stamp = (folder / first["folder"] / "table.parquet").stat().st_mtime_ns
    results = fedsem.ablate(resume=folder)
    assert (folder / first["folder"] / "table.parquet").stat().st_mtime_ns == stamp
    assert [one["status"] for one in records(results).values()] == ["finished", "finished"]
    alone = fedsem.run(tiny(), ["train.batch=30"], out=tmp_path / "alone").table
    other = results.table[results.table["cell"] == "train.batch=30"]
    pd.testing.assert_frame_equal(without(other, "cell", "verdict"), without(alone, "cell", "verdict"))


@pytest.mark.slow
def test_a_killed_ablation_leaves_nobody_training(tmp_path: Path) -> None:
    process = started(tmp_path)
    folder: Path = wait_for(lambda: second_runs(tmp_path))
    (child,) = wait_for(lambda: psutil.Process(process.pid).children())
    process.kill()
    process.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    results = fedsem.ablate(resume=folder)
    assert [one["status"] for one in records(results).values()] == ["finished", "finished"]
    assert set(results.table["cell"]) == {"train.batch=20", "train.batch=30"}


# ------------------------------------------------------------------------------------ audited and compared as a whole


@pytest.fixture(scope="module")
def defended(whole: Results, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two links, one of them trained with a defense; the other's training is taken."""
    both = {"attacks": ["none", "fgsm", "steps"], "snr_db": [10], "psr_db": [-20]}
    scenario = tiny(evaluation={**tiny()["evaluation"], "grids": [both]})
    scenario["attacks"]["steps"] = {"kind": "pgd", "steps": 2}
    clean = next(whole.folder / one["folder"] for one in records(whole).values())
    out = tmp_path_factory.mktemp("defended")
    return fedsem.ablate(scenario, vary=["defenses=[none, noisy]"], out=out, reuse=[clean], jobs=1)


@pytest.fixture
def folder(defended: Results, tmp_path: Path) -> Path:
    copied = tmp_path / defended.folder.name
    shutil.copytree(defended.folder, copied)
    return copied


FEW = Effort(images=4, draws=2, climbed=1, steps=2, queries=2)
CELLS = ["defenses=none", "defenses=noisy"]


def verdicts(findings: list[Finding], check: str) -> dict[str, str]:
    return {one.cell: one.verdict for one in findings if one.check == check}


def test_cells_of_a_sweep_are_told_apart_within_their_run(defended: Results) -> None:
    first, second = parts_of(Store.open(defended.folder))
    assert [first.name, second.name] == CELLS
    assert (second.cell(""), second.cell("train.batch=20")) == (CELLS[1], "defenses=noisy; train.batch=20")
    assert second.scenario.use.defenses == ["noisy"]
    # A run stands for itself.
    (alone,) = parts_of(second.store)
    assert (alone.cell(""), alone.cell("train.batch=20")) == ("", "train.batch=20")


def test_an_ablation_ends_with_an_audit_of_the_records_of_all_its_runs(defended: Results) -> None:
    findings = read_findings(defended.folder)
    assert {one.family for one in findings} == {"Records"}
    assert verdicts(findings, "last_round") == dict.fromkeys(CELLS, "passed")
    # Each run by itself does not see the undefended link of the other one.
    of_cells = [read_findings(defended.folder / one["folder"]) for one in records(defended).values()]
    assert [verdicts(one, "undefended_falls")[""] == "not applicable" for one in of_cells] == [False, True]
    seen = verdicts(findings, "undefended_falls")
    assert seen[CELLS[0]] == seen[CELLS[1]] == verdicts(of_cells[0], "undefended_falls")[""]
    page = (defended.folder / "report.html").read_text()
    assert '<section id="audit">' in page
    assert "Only records were looked at" in page


def test_the_links_of_an_ablation_are_attacked_from_each_other(folder: Path) -> None:
    findings = audit(folder, FEW)
    assert findings == read_findings(folder)
    assert verdicts(findings, "finite") == dict.fromkeys(CELLS, "passed")
    transferred = {one.cell: one.evidence for one in findings if one.check == "transfer"}
    assert "what was made on the link of seed 0 (defenses=noisy) takes" in transferred[CELLS[0]]
    assert "what was made on the link of seed 0 (defenses=none) takes" in transferred[CELLS[1]]
    page = (folder / "report.html").read_text()
    assert "equal to differences" in page
    assert "Only records were looked at" not in page
    # What is joined again keeps what was found.
    fedsem.ablate(resume=folder)
    assert read_findings(folder) == findings


def test_the_exit_code_says_that_a_check_of_an_ablation_failed(folder: Path) -> None:
    whole = table.read(folder)
    whole.loc[whole["psr_achieved_db"].notna() & (whole["cell"] == CELLS[1]), "psr_achieved_db"] = -19.0
    table.write(whole, folder)
    done = CliRunner().invoke(app, ["audit", str(folder), "--images", "2", "--queries", "1"])
    assert done.exit_code == 1
    assert "Warning" not in done.stderr
    failed = [line for line in done.stdout.splitlines() if "+1.000 dB beside the budget" in line]
    assert [line.split()[:6] for line in failed] == [["failed", "achieved", "psr", "defenses", "noisy,", "seed"]]


def test_a_link_that_cells_share_is_attacked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of one training: neither is the other's neighbour, and what was found of one holds of the other."""
    manifest = json.loads((folder / "manifest.json").read_text())
    first = next(one for one in manifest["cells"] if one["cell"] == CELLS[0])
    manifest["cells"] = [first, {**first, "cell": "again"}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    whole = table.read(folder)
    mine = whole[whole["cell"] == CELLS[0]]
    table.write(pd.concat([mine, mine.assign(cell="again").astype(mine.dtypes)], ignore_index=True), folder)
    told: list[tuple[str, int, int]] = []
    findings = audit(folder, FEW, lambda *step: told.append(step))
    attacked = [one for one in findings if one.family != "Records"]
    assert len(told) == len(attacked) / 2
    assert verdicts(findings, "finite") == {CELLS[0]: "passed", "again": "passed"}
    assert {one.evidence for one in findings if one.check == "transfer"} == {
        "The run has no other link with this task; add a seed or an undefended cell."
    }


def test_what_is_transferred_comes_from_a_link_that_nobody_attacked(
    folder: Path, whole: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defended link beside two undefended ones, of which the first was trained under attack."""
    (flipped,) = (one for name, one in records(whole).items() if "flip" in name)
    shutil.copytree(whole.folder / flipped["folder"], folder / flipped["folder"])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cells"] = [flipped, *reversed(manifest["cells"])]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr("fedsem.audit.TRANSFERRED", 1)
    transferred = {one.cell: one.evidence for one in audit(folder, FEW) if one.check == "transfer"}
    assert "the link of seed 0 (defenses=none)" in transferred[CELLS[1]]
    assert "the link of seed 0 (defenses=none)" in transferred[flipped["cell"]]


def test_an_ablation_is_compared_run_by_run(defended: Results) -> None:
    found = fedsem.compare(defended.folder, "fgsm", "steps")
    found = found[found["metric"] == "accuracy"].set_index("cell")
    pooled = defended.table[defended.table["seed"].isna() & (defended.table["metric"] == "accuracy")]
    assert list(found.index) == CELLS
    for cell in CELLS:
        here = pooled[pooled["cell"] == cell].set_index("attack")["value"]
        assert found.loc[cell, "value"] == pytest.approx(here["fgsm"])
        assert found.loc[cell, "other_value"] == pytest.approx(here["steps"])
    with pytest.raises(OutputError, match=r"has no attack 'step' in its scenario. Did you mean 'steps'\?"):
        fedsem.compare(defended.folder, "step", "fgsm")


@pytest.mark.parametrize("command", [["audit"], ["compare", "fgsm", "steps"]])
def test_what_is_no_finished_ablation_is_told_how_to_become_one(folder: Path, command: list[str]) -> None:
    def told(**changes: Any) -> str:
        manifest = folder / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
        done = CliRunner().invoke(app, [command[0], str(folder), *command[1:]])
        assert (done.exit_code, done.stdout) == (1, "")
        return done.stderr.strip()

    resume = f"fedsem ablate --resume {folder}"
    assert told(status="interrupted") == f"Error: The ablation in '{folder}' is not finished; finish it with: {resume}"
    lost = [{**one, "status": "failed"} for one in records(folder).values()]
    said = told(status="incomplete", cells=lost)
    assert said == f"Error: No run of the ablation in '{folder}' finished; try them again with: {resume}"


def test_a_run_whose_training_is_gone_is_named(folder: Path) -> None:
    (cell,) = (folder / one["folder"] for one in records(folder).values() if one["cell"] == CELLS[1])
    next(cell.glob("checkpoints/*/state.json")).unlink()
    with pytest.raises(OutputError, match=f"The run in '{cell}' is not finished, or another version .* {cell}$"):
        audit(folder, FEW)
    # Joining only leaves its records out.
    fedsem.ablate(resume=folder)
    assert {one.cell for one in read_findings(folder)} == {CELLS[0]}


def test_a_folder_that_is_none(whole: Results, tmp_path: Path) -> None:
    (cell, *_) = (whole.folder / record["folder"] for record in records(whole).values())
    with pytest.raises(OutputError, match="is the folder of a run, not of an ablation; use fedsem run --resume"):
        fedsem.ablate(resume=cell)
    with pytest.raises(ScenarioError, match="use fedsem ablate"):
        fedsem.run(resume=whole.folder)
    with pytest.raises(OutputError, match="is not the folder of a run"):
        fedsem.ablate(resume=tmp_path)
