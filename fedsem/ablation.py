"""An ablation: a run for every combination of a scenario's `ablate`, and one table of them all.

Its folder holds a run folder for each combination, `cells/<settings>-<hash>`, and beside them the joined table, the
figures and the report. Every run is a process of its own: Flower's simulation on Ray leaves a process that it cannot be
used in again. A training that several runs need is made by one of them and taken by the others (`fedsem run --reuse`);
a run waits while another one makes what it needs. What is finished is never computed again: resuming is starting again
in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsem import ctrl_c
from fedsem.adaptive import NothingKnown
from fedsem.errors import FedsemError, OutputError, ScenarioError
from fedsem.federation.engine import finished
from fedsem.federation.job import Job
from fedsem.joined import parts_of
from fedsem.parent import follow_parent
from fedsem.plan import Plan, plan_of_text, warn_of_slow_precision
from fedsem.runner import run
from fedsem.scenario import Scenario, check_scenario, dump_scenario
from fedsem.scenario_file import Source, override, read_tree
from fedsem.stages import plans_of, prepare, units_behind, units_of, write_records
from fedsem.store import Store, now
from fedsem.sweep import Cell, cells, check_cells

if TYPE_CHECKING:
    from fedsem.reporting.results import Results

Progress = Callable[[str, str, int, int], None]
"""Called as (cell, status, done, total) whenever a run begins or ends; `done` of `total` runs have ended."""
PATIENCE_S = 15.0
"""How long interrupted runs may take to write down how far they are."""
POLL_S = 0.1


@dataclass(frozen=True)
class Member:
    """One combination of an ablation.

    Attributes:
        name: its settings.
        scenario: of its run.
        folder: of its run, in the ablation's folder.
        jobs: its trainings, in the ablation's folder, by the name of their folders; the same name is the same training.
        networks: files of networks that must be trained before anything else.
        left_out: why there is no run; empty where there is one.
    """

    name: str
    scenario: Scenario
    folder: Path
    jobs: Mapping[str, Job]
    networks: tuple[Path, ...] = ()
    left_out: str = ""

    def trained(self, root: Path, name: str) -> bool:
        """Whether one of its trainings is finished in its own folder."""
        job = self.jobs[name]
        return finished(replace(job, folder=root / job.folder))


def ablate(
    scenario: Source | None = None,
    settings: Sequence[str] = (),
    *,
    vary: Sequence[str] = (),
    out: str | Path = "results",
    device: str | None = None,
    seed: int | None = None,
    resume: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
    jobs: int | None = None,
    progress: Progress = lambda cell, status, done, total: None,
) -> Results:
    """Run every combination of a scenario's `ablate` and join their tables.

    Args:
        scenario: a YAML file, the name of a shipped scenario, a mapping of the same shape, or a `Scenario`.
        settings: overrides of the form ``a.b=value``.
        vary: axes of the form ``a.b=[value, value]``, beside those of `ablate` or in their place.
        out: the results go to ``out/ablate-<scenario>/<id>``.
        device: `auto`, `cpu` or `cuda`; replaces `compute.device`.
        seed: replaces `seeds` by this one.
        resume: folder of an ablation to finish, instead of a scenario; runs that failed are tried again.
        reuse: folders of runs, or of ablations, whose identical trainings and evaluations are taken.
        jobs: runs at once; None: as many as the CPU cores can serve with the workers that each takes.
        progress: told when runs begin and end.

    Returns:
        The joined results; their manifest says of each run whether it finished, and why not.

    Raises:
        ScenarioError, DataError: before anything is written.
        OutputError: results cannot be written, or no run finished.
    """
    if (scenario is None) == (resume is None):
        raise FedsemError("Give either a scenario or the folder of an ablation to resume.")
    if resume is not None:
        if settings or vary or seed is not None or device is not None or reuse:
            raise FedsemError(
                "A resumed ablation keeps its scenario: leave out --set, --vary, --seed, --device and --reuse."
            )
        store = Store.open(Path(resume))
        store.folder = store.folder.resolve()
        tree = read_tree(store.folder / "scenario.yaml")
        if not tree.get("ablate"):
            raise OutputError(f"'{resume}' is the folder of a run, not of an ablation; use fedsem run --resume.")
        checked, members = members_of(tree)
    else:
        assert scenario is not None
        others = [Store.open(Path(folder)).folder for folder in reuse]
        checked, members = planned(scenario, settings, vary=vary, device=device, seed=seed)
        store = _create(checked, members, Path(out), others)
    with _locked(store.folder):
        if lacking := [one.name for one in members if not one.left_out and not (store.folder / one.folder).is_dir()]:
            raise OutputError(
                f"'{store.folder}' lacks the run of '{lacking[0]}': it was begun with another scenario, or by "
                "another version of fedsem; start a new ablation."
            )
        try:
            return _Schedule(store, checked, members, jobs or at_once(checked), progress).run()
        except KeyboardInterrupt:
            raise ctrl_c.Interrupted(store.folder) from None


def planned(
    scenario: Source,
    settings: Sequence[str] = (),
    *,
    vary: Sequence[str] = (),
    device: str | None = None,
    seed: int | None = None,
) -> tuple[Scenario, list[Member]]:
    """What `ablate` would do with these arguments: the scenario, and each combination in order; nothing is written.

    Raises:
        ScenarioError, DataError: a combination is impossible, or there are none.
    """
    tree = read_tree(scenario, [*settings, *([f"compute.device={device}"] if device else [])], seed)
    return members_of(override(tree, vary, "--vary"))


def members_of(tree: Mapping[str, Any]) -> tuple[Scenario, list[Member]]:
    """A scenario as it was written, checked, and its combinations.

    Raises:
        ScenarioError, DataError: as `planned`.
    """
    plan_of_text.cache_clear()
    checked = check_cells(tree)
    if not checked.ablate:
        raise ScenarioError(
            "In the scenario, 'ablate': there is nothing to vary; name an axis, such as --vary "
            "federation.aggregator=[fedavg,median]."
        )
    members = [_member(cell) for cell in cells(checked, "ablate")]
    if all(one.left_out for one in members):
        raise ScenarioError(members[0].left_out)
    return checked, members


def _member(cell: Cell) -> Member:
    scenario = check_scenario(cell.tree)
    digest = hashlib.blake2b(json.dumps(dump_scenario(scenario)).encode(), digest_size=6).hexdigest()
    words = re.sub(r"[^A-Za-z0-9]+", "-", " ".join(_short(value) for value in cell.settings.values())).strip("-")
    folder = Path("cells") / f"{words[:60].strip('-')}-{digest}".strip("-")
    try:
        with cell.named():
            plans = plans_of(scenario)
    except NothingKnown as error:
        return Member(cell.name, scenario, folder, {}, left_out=str(error))
    units = units_of(scenario, plans, Store(folder, {}))
    jobs = {job.folder.name: job for unit in units for _, job in unit.jobs}
    networks = tuple(dict.fromkeys(one.path for _, plan in plans for one in plan.wanted))
    return Member(cell.name, scenario, folder, jobs, networks)


def _short(value: Any) -> str:
    return str(value["kind"]) if isinstance(value, dict) and "kind" in value else str(value)


def at_once(scenario: Scenario) -> int:
    """How many runs the CPU cores can serve: each takes one core, on Ray one for each of its workers."""
    cores = len(os.sched_getaffinity(0))
    on_ray = scenario.compute.engine == "ray" and scenario.federation.kind == "flower"
    return max(1, cores // (scenario.compute.workers or cores)) if on_ray else cores


def _create(scenario: Scenario, members: Sequence[Member], out: Path, reuse: Sequence[Path]) -> Store:
    """The ablation's folder with a run folder for each combination, which only has to be resumed.

    Raises:
        OutputError: it cannot be written.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = (out / f"ablate-{scenario.name}" / f"{stamp}-{secrets.token_hex(3)}").resolve()
    store: Store | None = None
    for one in members:
        if one.left_out:
            continue
        plans: list[tuple[str, Plan]] = plans_of(one.scenario)
        device = str(plans[0][1].device)
        if store is None:
            warn_of_slow_precision(plans[0][1])
            store = Store.begin(scenario, folder, device)
        cell = Store.begin(one.scenario, folder / one.folder, device)
        # What is claimed now is refused later, should the code have changed: no table mixes two versions of it.
        prepare(one.scenario, plans, cell, reuse)
        cell.write_manifest(status="waiting")
    assert store is not None
    return store


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with Store(folder, {}).locked():
        yield


@dataclass
class _Running:
    """A run that is going on.

    Attributes:
        member: which.
        process: it.
        errors: descriptor from which its error can be read when it has ended.
        started: when, in seconds of a clock of no date.
        makes: trainings and networks that it makes, and others wait for.
    """

    member: Member
    process: subprocess.Popen[bytes]
    errors: int
    started: float
    makes: set[str]


class _Schedule:
    """Runs the members of an ablation, so many at once, then joins their tables."""

    def __init__(
        self, store: Store, scenario: Scenario, members: Sequence[Member], jobs: int, progress: Progress
    ) -> None:
        self.store, self.root, self.scenario, self.members = store, store.folder, scenario, members
        self.jobs, self.progress = jobs, progress
        self.running: list[_Running] = []
        self.made: dict[str, Path] = {}  # training -> folder of a run that has it
        self.records: dict[str, dict[str, Any]] = {}
        known = {record["folder"]: record for record in store.manifest.get("cells", [])}
        for one in members:
            record = {"cell": one.name, "folder": str(one.folder), "status": "waiting", "error": "", "seconds": 0.0}
            record["seconds"] = known.get(str(one.folder), {}).get("seconds", 0.0)
            if one.left_out:
                record |= {"status": "left out", "error": one.left_out}
            elif self._finished(one):
                record["status"] = "finished"
            self.records[one.name] = record

    def run(self) -> Results:
        for one in self.members:
            self.made |= {name: self.root / one.folder for name in one.jobs if one.trained(self.root, name)}
        self._write(status="running", finished=None)
        waiting = [one for one in self.members if self.records[one.name]["status"] == "waiting"]
        try:
            while waiting or self.running:
                for one in waiting.copy():
                    if len(self.running) < self.jobs and not self._must_wait(one):
                        waiting.remove(one)
                        self._start(one)
                time.sleep(POLL_S)
                for running in self.running.copy():
                    if running.process.poll() is not None:
                        self._end(running)
                    else:
                        self._look(running)
        finally:
            if self.running:
                self._interrupt()
        return self._join()

    def _needs(self, one: Member) -> set[str]:
        """Trainings and networks that no run has made yet."""
        missing = {name for name in one.jobs if name not in self.made}
        return missing | {str(path) for path in one.networks if not path.is_file()}

    def _must_wait(self, one: Member) -> bool:
        return any(self._needs(one) & running.makes for running in self.running)

    def _start(self, one: Member) -> None:
        own = self.root / one.folder
        others = sorted({self.made[name] for name in one.jobs if name in self.made} - {own})
        reader, writer = os.pipe()
        with (own / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedsem.ablation", str(writer), str(own), *map(str, others)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writer],
                start_new_session=True,  # Ctrl-C is ours to pass on
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        os.close(writer)
        self.running.append(_Running(one, process, reader, time.monotonic(), self._needs(one)))
        self._tell(one, "running")

    def _look(self, running: _Running) -> None:
        """See which of its trainings others need not wait for any more."""
        one = running.member
        for name in [name for name in running.makes if name in one.jobs and one.trained(self.root, name)]:
            running.makes.discard(name)
            self.made[name] = self.root / one.folder

    def _end(self, running: _Running, interrupted: bool = False) -> None:
        self._look(running)
        self.running.remove(running)
        with os.fdopen(running.errors, "rb") as pipe:
            error = pipe.read().decode()
        one, code = running.member, running.process.returncode
        self.records[one.name]["seconds"] += round(time.monotonic() - running.started, 1)
        if code == 0 and self._finished(one):
            self._tell(one, "finished")
        elif interrupted or code == ctrl_c.EXIT_CODE:  # it may have been too early for it to say so
            self._tell(one, "interrupted")
        else:
            log = self.root / one.folder / "run.log"
            ended = f"The run ended unexpectedly (exit code {code}); the last lines of '{log}' say more."
            self._tell(one, "failed", error or ended)

    def _interrupt(self) -> None:
        """End what is going on: each run is told so, and killed if it does not obey."""
        for running in self.running:
            running.process.send_signal(signal.SIGINT)
        end = time.monotonic() + PATIENCE_S
        for running in self.running.copy():
            try:
                running.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
            self._end(running, interrupted=True)
        self._write(status="interrupted", finished=now())

    def _finished(self, one: Member) -> bool:
        folder = self.root / one.folder
        if not (folder / "manifest.json").is_file() or not (folder / "table.parquet").is_file():
            return False
        return bool(Store.open(folder).manifest["status"] == "finished")

    def _tell(self, one: Member, status: str, error: str = "") -> None:
        self.records[one.name] |= {"status": status, "error": error}
        self._write()
        ended = sum(record["status"] not in ("waiting", "running") for record in self.records.values())
        self.progress(one.name, f"{status}: {error}" if error else status, ended, len(self.members))

    def _write(self, **changes: Any) -> None:
        self.store.write_manifest(cells=list(self.records.values()), **changes)

    def _join(self) -> Results:
        """One table, one audit of the records and one report of all runs that finished.

        Raises:
            OutputError: none did.
        """
        import pandas as pd

        from fedsem.reporting import table
        from fedsem.reporting.results import Results
        from fedsem.reporting.verdicts import with_verdicts

        failed = [record for record in self.records.values() if record["status"] not in ("finished", "left out")]
        self._write(status="incomplete" if failed else "finished", finished=now())
        if not any(record["status"] == "finished" for record in self.records.values()):
            raise OutputError(f"No run of the ablation in '{self.root}' finished; the first says: {failed[0]['error']}")
        parts, tables = parts_of(self.store), []
        for part in parts:
            rows = table.read(part.store.folder)
            tables.append(rows.assign(cell=rows["cell"].fillna("").map(part.cell).astype("string")))
        whole = with_verdicts(pd.concat(tables, ignore_index=True))
        table.write(whole, self.root)
        units = (unit for part in parts for unit in units_behind(part))
        # Trainings of another version of fedsem may have other names than this one looks for.
        write_records((unit for unit in units if unit.trained), whole, self.root)
        results = Results(self.root)
        results.report()
        return results


def main() -> None:
    """One run of an ablation, in a process of its own: ends with its parent, and says through a pipe why it failed."""
    follow_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    ctrl_c.listen()
    pipe, folder, *others = sys.argv[1:]
    try:
        run(resume=folder, reuse=others)
    except (KeyboardInterrupt, Exception) as error:  # the border of the process: the parent gets one sentence
        if ctrl_c.interrupts(error):
            os._exit(ctrl_c.EXIT_CODE)
        said = error if isinstance(error, FedsemError) else FedsemError(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        os.write(int(pipe), str(said).encode())
        sys.exit(1)


if __name__ == "__main__":
    main()
