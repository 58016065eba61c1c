"""The stages of a run: train every cell of the sweep with every seed, evaluate, write the table and the report.

Each stage has a folder whose name holds the hash of what decides its result. What is finished is never computed again:
resuming is running again in the same folder.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from fedsem.auditing.records import RECORDS, Record
from fedsem.checks import resolve
from fedsem.errors import FedsemError, OutputError, ScenarioError
from fedsem.evaluation.backdoor import has_twin
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.point import Point, load_points, save_points
from fedsem.evaluation.tabulate import over_rounds
from fedsem.evaluation.tabulate import rows as evaluation_rows
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.child import SimulationProcess
from fedsem.federation.engine import federated, finished, single_thread
from fedsem.federation.history import rows as history_rows
from fedsem.federation.job import Job
from fedsem.federation.state import FederationState, owner
from fedsem.files import read_json, replace_file
from fedsem.joined import Part
from fedsem.plan import Plan, plan_of_text, scenario_text
from fedsem.provenance import evaluation_code, training_code
from fedsem.registry import Options
from fedsem.reporting import table
from fedsem.reporting.findings import Finding, read_findings, write_findings
from fedsem.reporting.results import Results
from fedsem.reporting.sample_table import write_samples
from fedsem.scenario import Scenario, check_scenario
from fedsem.store import Store, code_of, label_of, now
from fedsem.surrogate import surrogate_scenario, surrogate_seed, surrogates_of
from fedsem.sweep import cells
from fedsem.wanted import weights_of

Progress = Callable[[str, str, int, int], None]
"""Called as (stage, label, done, total): rounds of a training or points of an evaluation, and what it is called."""
ORIGIN = "reused-from"
"""File in the folder of a stage that was taken from another run, with that run's id."""


@dataclass(frozen=True)
class Unit:
    """One cell of the sweep with one seed.

    Attributes:
        cell: its settings of the sweep.
        label: names it in folders and progress.
        plan: what is trained and measured.
        job: its training.
        evaluation: folder of its evaluation.
        surrogates: trainings of adversaries, by the attack's name.
        twin: the training without attack that a poisoned one is compared with; its own where nothing attacks; None
            where there is nothing to compare.
    """

    cell: str
    label: str
    plan: Plan
    job: Job
    evaluation: Path
    surrogates: Mapping[str, Job]
    twin: Job | None = None

    @property
    def jobs(self) -> list[tuple[str, Job]]:
        """Its trainings, each with what it is called; its own comes first."""
        found = [(self.label, self.job)]
        if self.twin is not None and self.twin.folder != self.job.folder:
            found.append((f"{self.label}-twin", self.twin))
        found += [(f"{self.label}-surrogate", job) for job in self.surrogates.values()]
        return found

    @property
    def trained(self) -> bool:
        """Whether all of its trainings are finished."""
        return all(finished(job) for _, job in self.jobs)


def plans_of(scenario: Scenario) -> list[tuple[str, Plan]]:
    """Every cell's name and plan, checked."""
    plans = []
    for cell in cells(scenario):
        with cell.named():
            plan = resolve(check_scenario(cell.tree))
            for attack, options in surrogates_of(plan.scenario).items():
                try:
                    resolve(surrogate_scenario(plan.scenario, options))
                except FedsemError as error:
                    raise ScenarioError(f"With the surrogate of 'attacks.{attack}': {error}") from error
            plans.append((cell.name, plan))
    return plans


def units_of(scenario: Scenario, plans: Sequence[tuple[str, Plan]], store: Store) -> list[Unit]:
    """Every cell with every seed, each with the folders of its stages, whatever they hold; nothing is read."""
    return [_unit(store, i, name, plan, seed) for i, (name, plan) in enumerate(plans) for seed in scenario.seeds]


def units_behind(part: Part) -> list[Unit]:
    """Every cell and seed of a run whose rows a table holds, called as the table calls them; nothing is read."""
    units = units_of(part.scenario, plans_of(part.scenario), part.store)
    return [replace(unit, cell=part.cell(unit.cell)) for unit in units]


def prepare(scenario: Scenario, plans: Sequence[tuple[str, Plan]], store: Store, reuse: Sequence[Path]) -> list[Unit]:
    """Every cell with every seed, each with the folders of its stages.

    Args:
        scenario: the scenario.
        plans: name and plan of each of its cells.
        store: the run's folder.
        reuse: folders of other runs, or of ablations, whose identical trainings and evaluations are taken.

    Raises:
        OutputError: other code has begun one of the stages, or made a training that would be taken; or the folder holds
            stages that are none of this run's.
    """
    units = units_of(scenario, plans, store)
    own = {job.folder for unit in units for _, job in unit.jobs} | {unit.evaluation for unit in units}
    found = [stage for kind in ("checkpoints", "stages") for stage in store.folder.glob(f"{kind}/[!.]*")]
    if not own.issuperset(found) or store.manifest.get("scenario", scenario.name) != scenario.name:
        raise OutputError(
            f"'{store.folder}' was begun with other pictures, on another device, or its scenario.yaml was changed; "
            "start a new run."
        )
    for unit in units:
        _read(unit, [job.folder for _, job in unit.jobs], unit.evaluation)
    for folder in reuse:
        # Of an ablation those of all its runs.
        for run in sorted((folder / "cells").iterdir()) if (folder / "cells").is_dir() else [folder]:
            _reuse(units, run)
    for unit in units:
        for _, job in unit.jobs:
            store.claim(job.folder, training_code(_plan_of(unit, job)))
        store.claim(unit.evaluation, evaluation_code(unit.plan))
    store.write_manifest(reused=[taken for unit in units for taken in _taken(unit)])
    return units


def _taken(unit: Unit) -> Iterator[dict[str, Any]]:
    """Which stages were taken from another run, from which, and the revision that made them."""
    stages = [("training", label, job.folder) for label, job in unit.jobs]
    for stage, label, folder in (*stages, ("evaluation", unit.label, unit.evaluation)):
        origin = folder / ORIGIN
        if origin.is_file():
            run = origin.read_text(encoding="utf-8")
            yield {"stage": stage, "of": label, "run": run, "git": code_of(folder)["git"]}


def run_stages(
    scenario: Scenario,
    plans: Sequence[tuple[str, Plan]],
    units: Sequence[Unit],
    store: Store,
    progress: Progress,
    child: SimulationProcess | None,
) -> None:
    """Run what is not finished yet; cells that differ in their evaluation alone share a training.

    Args:
        scenario: the scenario.
        plans: name and plan of each of its cells.
        units: what `prepare` made of them.
        store: the run's folder.
        progress: told how far the run is.
        child: a child process that has started Ray already.
    """
    store.write_manifest(status="running", finished=None, seeds=list(scenario.seeds))
    if child is not None:
        # This process only waits while Ray starts and trains: time enough to import what draws the report.
        threading.Thread(target=import_module, args=("fedsem.reporting.report",), daemon=True).start()

    # A cell's own training before a twin of the same folder: it has the cell's name.
    both = [pair for twins in (False, True) for unit in units for pair in (unit.jobs[1:] if twins else unit.jobs[:1])]
    distinct: dict[Path, tuple[str, Job]] = {}
    for label, job in both:
        distinct.setdefault(job.folder, (label, job))
    labels, jobs = [label for label, _ in distinct.values()], [job for _, job in distinct.values()]

    def trained(number: int, done: int) -> None:
        progress("federate", labels[number], done, json.loads(jobs[number].text)["federation"]["rounds"])

    with store.timed("pretrain", "", None):
        _pretrain(plans, store, progress)
    with ExitStack() as engine:
        with store.timed("federate", "", None):
            engine.enter_context(federated(jobs, scenario.compute, store.folder / "run.log", trained, child))
        # What the engine leaves running shuts down meanwhile.
        for unit in units:
            if not _evaluated(unit.evaluation):
                with store.timed("evaluate", unit.cell, unit.job.seed), single_thread():
                    _evaluate(unit, progress)
        with store.timed("report", "", None):
            whole = _table(scenario, plans, units, store)
            table.write(whole, store.folder)
            write_records(units, whole, store.folder)
            samples = [row for unit in units for row in _samples(unit)]
            write_samples(samples, store.folder)
            # Every number is final; the report prints the manifest, so this stands there before it is drawn.
            store.write_manifest(status="finished", finished=now())
            Results(store.folder).report()


def _pretrain(plans: Sequence[tuple[str, Plan]], store: Store, progress: Progress) -> None:
    """Train the networks that the cells want and that no run has trained before; keep copies in the run's folder."""
    for _, plan in plans:
        for one in plan.wanted:
            if not one.path.is_file():
                label = one.kind
                with single_thread():
                    one.train(
                        plan.scenario.data,
                        plan.dataset,
                        plan.device,
                        lambda done, total, label=label: progress("pretrain", label, done, total),  # type: ignore[misc]
                    )
            kept = store.folder / "pretrained" / one.path.name
            if not kept.exists():
                replace_file(kept, one.path.read_bytes())


def _unit(store: Store, number: int, cell: str, plan: Plan, seed: int) -> Unit:
    label = label_of(number, seed)
    key, job = _training(store, plan, seed, f"seed{seed}")
    content = json.loads(job.text)
    measured = [content[part] for part in ("link", "tasks", "attacks", "defenses", "evaluation")]
    data = plan.dataset
    measured += [data.test.fingerprint, *([] if data.reserve is None else [data.reserve.fingerprint])]
    twin = _training(store, without_attack(plan), seed, f"seed{seed}")[1] if has_twin(plan) else None
    surrogates = {}
    for name, attack in surrogates_of(plan.scenario).items():
        stolen = plan_of_text(scenario_text(surrogate_scenario(plan.scenario, attack)))
        decided, surrogates[name] = _training(store, stolen, surrogate_seed(seed), f"surrogate-seed{seed}")
        measured.append(decided)
    both = json.dumps([key, *measured], sort_keys=True)
    evaluation = store.stage("stages", both, f"evaluate-{label}")
    return Unit(cell, label, plan, job, evaluation, surrogates, twin)


def without_attack(plan: Plan) -> Plan:
    """The plan with nothing in `use.attacks`."""
    if not plan.scenario.use.attacks:
        return plan
    use = plan.scenario.use.model_copy(update={"attacks": []})
    return replace(plan, scenario=plan.scenario.model_copy(update={"use": use}))


def _plan_of(unit: Unit, job: Job) -> Plan:
    """The plan of one of a unit's trainings."""
    if job is unit.job:
        return unit.plan
    return without_attack(unit.plan) if job is unit.twin else job.plan


def _training(store: Store, plan: Plan, seed: int, name: str) -> tuple[str, Job]:
    """What decides a training, and the training, in a folder of that name."""
    text = scenario_text(plan.scenario)
    content = json.loads(text)
    outside = ("name", "description", "seeds", "compute", "evaluation", "attacks", "defenses", "ablate")
    training = {key: content[key] for key in content if key not in outside}
    link, tasks = plan.scenario.link, plan.scenario.tasks
    training["link"] = {**content["link"], "encoder": _trained_by(link.encoder, content["link"]["encoder"])}
    training["tasks"] = {name: _trained_by(task, content["tasks"][name]) for name, task in tasks.items()}
    # The engine and its workers do not change a number; the device does, whatever `auto` stands for here.
    compute = {key: content["compute"][key] for key in ("precision", "execution")} | {"device": str(plan.device)}
    active = {name: content["attacks"][name] for name in plan.scenario.use.attacks}
    standing = {name: content["defenses"][name] for name in plan.scenario.use.defenses}
    # Sorted keys would forget the order of the groups, which numbers the receivers.
    decisive = [training, list(content["receivers"]), compute, active, standing, seed, plan.dataset.train.fingerprint]
    if weights := weights_of(plan.scenario):
        decisive.append(weights)
    if (kept := plan.scenario.evaluation.rounds) > 1:
        decisive.append({"checkpoints": kept})
    key = json.dumps(decisive, sort_keys=True)
    return key, Job(text, seed, store.stage("checkpoints", key, name))


def _trained_by(options: Options, content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in options.evaluation_only}


def _reuse(units: Sequence[Unit], folder: Path) -> None:
    """Copy finished stages of another run that have the same keys.

    Raises:
        OutputError: one of the trainings was made with other code.
    """
    for unit in units:
        for _, job in unit.jobs:
            found = folder / "checkpoints" / job.folder.name
            if finished(Job(job.text, job.seed, found)) and not (job.folder / "state.json").exists():
                if (code := training_code(_plan_of(unit, job))) != (before := code_of(found)["hash"]):
                    raise OutputError(
                        f"'{folder}' was trained with other code ({before}, now {code}): another version of fedsem, of "
                        "a plug-in or of a numerical library. Leave out --reuse to train anew."
                    )
                _read(unit, [found], None)
                _take(found, job.folder, folder)
        # The number of the cell, which comes first in the name, is that of the other run's sweep.
        for found in sorted((folder / "stages").glob(f"evaluate-*-{unit.evaluation.name.rpartition('-')[2]}")):
            same_code = code_of(found)["hash"] == evaluation_code(unit.plan)
            if same_code and _evaluated(found) and not _evaluated(unit.evaluation):
                _read(unit, [], found)
                _take(found, unit.evaluation, folder)


def _take(found: Path, stage: Path, run: Path) -> None:
    partial = stage.with_name(f".{stage.name}")
    shutil.copytree(found, partial, dirs_exist_ok=True)
    if not (partial / ORIGIN).exists():
        (partial / ORIGIN).write_text(run.resolve().name, encoding="utf-8")
    shutil.rmtree(stage, ignore_errors=True)  # where it was claimed, and nothing more
    partial.rename(stage)


def _read(unit: Unit, trainings: Sequence[Path], evaluation: Path | None) -> None:
    """Read what these folders of stages hold, if anything.

    Raises:
        OutputError: something is damaged: better said now than when hours have been computed.
    """
    for training in trainings:
        FederationState.load(training)
    if evaluation is not None and _evaluated(evaluation):
        load_points(evaluation)
        list(_samples(replace(unit, evaluation=evaluation)))


def _evaluated(stage: Path) -> bool:
    return (stage / "points.json").is_file()


def _evaluate(unit: Unit, progress: Progress) -> None:
    working = unit.plan.accomplices(unit.job.seed)
    surrogates = surrogate_links(unit)
    last, count = unit.plan.scenario.federation.rounds, unit.plan.scenario.evaluation.rounds
    measured: list[list[Point]] = []
    for round_number in range(last - count + 1, last + 1):
        link = trained_link(unit, round_number)
        twin = None
        if unit.twin is not None:
            same = unit.twin.folder == unit.job.folder
            twin = link if same else _link(without_attack(unit.plan), unit.twin, round_number).without(working)
        before = len(measured)
        measurement = evaluate(
            link,
            lambda done, total, before=before: progress(  # type: ignore[misc]
                "evaluate", unit.label, before * total + done, count * total
            ),
            twin,
            surrogates,
        )
        measured.append(measurement.points)
    replace_file(unit.evaluation / "samples.json", json.dumps(measurement.samples).encode())
    save_points(over_rounds(measured), unit.evaluation)


def trained_link(unit: Unit, round_number: int | None = None) -> TrainedLink:
    """What a unit's own training has made, without the decoders of those who work for an adversary; after that round,
    or the last one."""
    return _link(unit.plan, unit.job, round_number).without(unit.plan.accomplices(unit.job.seed))


def surrogate_links(unit: Unit) -> dict[str, TrainedLink]:
    """What a unit's adversaries have trained, by the attack's name."""
    return {name: _link(job.plan, job) for name, job in unit.surrogates.items()}


def _link(plan: Plan, job: Job, round_number: int | None = None) -> TrainedLink:
    """What a training has made; after that round, or the last one."""
    state = job.state() if round_number is None else job.state_after(round_number)
    decoders = {
        (receiver.id, branch): (owner(plan, receiver, branch), state.decoders[owner(plan, receiver, branch)])
        for receiver in plan.receivers
        for branch in receiver.branches
    }
    return TrainedLink.build(plan, job.seed, state.shared, decoders)


def write_records(units: Iterable[Unit], whole: pd.DataFrame, folder: Path) -> None:
    """Write what `records_of` finds into ``audit.json``, beside what an audit found before by attacking links: those
    are the same still.

    Raises:
        OutputError: the folder cannot be read or written.
    """
    attacked = [one for one in read_findings(folder) if one.family != RECORDS.name]
    write_findings([*records_of(units, whole), *attacked], folder)


def records_of(units: Iterable[Unit], whole: pd.DataFrame) -> Iterator[Finding]:
    """What can be audited of every cell and seed by its records alone.

    Args:
        units: all that the table has rows of.
        whole: the table.
    """
    for unit in units:
        state = FederationState.load(unit.job.folder)
        assert state is not None
        rows = whole[(whole["cell"] == unit.cell) & (whole["seed"] == unit.job.seed)]
        for finding in RECORDS.examine(Record(unit.plan, unit.job.seed, state, rows, whole)):
            yield replace(finding, cell=unit.cell, seed=unit.job.seed)


def _samples(unit: Unit) -> Iterator[dict[str, Any]]:
    for row in read_json(unit.evaluation / "samples.json", list):
        yield {**row, "cell": unit.cell}


def _malicious_share(plan: Plan) -> float:
    """Share of the receivers that are malicious in some round."""
    receivers = len(plan.receivers)
    return max((attack.count(receivers) for attack in plan.training_attacks), default=0) / receivers


def _table(scenario: Scenario, plans: Sequence[tuple[str, Plan]], units: Sequence[Unit], store: Store) -> Any:
    rows: list[dict[str, Any]] = []
    for i, (cell, plan) in enumerate(plans):
        federation = plan.scenario.federation
        members = units[i * len(scenario.seeds) : (i + 1) * len(scenario.seeds)]
        common = {
            "scenario": scenario.name,
            "run_id": store.run_id,
            "cell": cell,
            "defense": "+".join(plan.scenario.use.defenses) or "none",
            "adversary_fraction": _malicious_share(plan),
            "aggregator": "+".join(rule.kind for rule in (*federation.pre_aggregators, federation.aggregator))
            if federation.kind == "flower"
            else "none",
            "f_assumed": federation.assumed_f("shared") if federation.kind == "flower" else None,
        }
        for unit in members:
            state = FederationState.load(unit.job.folder)
            assert state is not None
            rows += [{**common, "seed": unit.job.seed, **row} for row in history_rows(plan, unit.job.seed, state)]
        points: list[list[Point]] = [load_points(unit.evaluation) for unit in members]
        rows += [{**common, **row} for row in evaluation_rows(points, scenario.seeds)]
    return table.frame(rows)
