"""Run a scenario: the entry point for the command line, scripts and notebooks.

What takes seconds to import is imported after the child process that will hold Ray has been started: the two start up
side by side.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsem import ctrl_c
from fedsem.errors import FedsemError, OutputError, ScenarioError
from fedsem.federation.child import SimulationProcess, actors
from fedsem.scenario_file import Source, read_tree
from fedsem.sweep import check_cells

if TYPE_CHECKING:
    from fedsem.reporting.results import Results
    from fedsem.stages import Progress


def _silent(stage: str, label: str, done: int, total: int) -> None:
    pass


def run(
    scenario: Source | None = None,
    settings: Sequence[str] = (),
    *,
    out: str | Path = "results",
    device: str | None = None,
    seed: int | None = None,
    resume: str | Path | None = None,
    reuse: str | Path | Sequence[str | Path] = (),
    progress: Progress = _silent,
) -> Results:
    """Run a scenario and return its results.

    Args:
        scenario: a YAML file, the name of a shipped scenario, a mapping of the same shape, or a `Scenario`.
        settings: overrides of the form ``a.b=value``.
        out: the results go to ``out/<scenario>/<run id>``.
        device: `auto`, `cpu` or `cuda`; replaces `compute.device`.
        seed: replaces `seeds` by this one.
        resume: folder of a run to finish, instead of a scenario; nothing that is finished is computed again.
        reuse: folders of other runs, or of ablations, whose finished trainings are taken where they are identical (the
            same data, link, receivers, training, federation, seed and code, whatever is evaluated), and their
            evaluations where those are identical too.
        progress: told how far the run is.

    Raises:
        ScenarioError, DataError: before anything is written.
        FederationError: training lost more than its policy allows; the folder can be resumed.
        OutputError: results cannot be written.
    """
    others = [Path(folder) for folder in ([reuse] if isinstance(reuse, (str, Path)) else reuse)]
    if (scenario is None) == (resume is None):
        raise FedsemError("Give either a scenario or the folder of a run to resume.")
    for other in others:
        _check_folder(other)
    if resume is not None:
        if settings or seed is not None or device is not None:
            raise FedsemError("A resumed run keeps its scenario: leave out --set, --seed and --device.")
        _check_folder(Path(resume))
        tree = read_tree(Path(resume) / "scenario.yaml")
    else:
        assert scenario is not None
        tree = read_tree(scenario, [*settings, *([f"compute.device={device}"] if device else [])], seed)
    with ExitStack() as stack:
        child = None
        if workers := _ray_workers(tree):
            child = SimulationProcess(workers)
            stack.callback(child.end)
        from fedsem.plan import plan_of_text, warn_of_slow_precision
        from fedsem.reporting.results import Results
        from fedsem.stages import plans_of, prepare, run_stages
        from fedsem.store import Store, now

        # An earlier run of this process may have kept pictures that have changed on disk since.
        plan_of_text.cache_clear()
        checked = check_cells(tree)
        if checked.ablate:
            raise ScenarioError(
                "In the scenario, 'ablate': its combinations are runs of their own; use fedsem ablate, or leave them "
                "out with --set ablate={}."
            )
        plans = plans_of(checked)
        warn_of_slow_precision(plans[0][1])
        if resume is not None:
            store = Store.open(Path(resume).resolve())  # its name is the run's id, even of "."
        else:
            store = Store.create(checked, Path(out), str(plans[0][1].device))
        stack.enter_context(store.locked())
        try:
            units = prepare(checked, plans, store, others)
        except (KeyboardInterrupt, Exception) as error:
            if ctrl_c.interrupts(error):
                if resume is None:  # one that was finished before stays so
                    store.write_manifest(status="interrupted", finished=now())
                raise ctrl_c.Interrupted(store.folder) from None
            if resume is None:
                shutil.rmtree(store.folder)
            if isinstance(error, OSError):
                raise OutputError(f"The run in '{store.folder}' cannot be written ({error}).") from error
            raise
        stack.enter_context(_logged(store.folder / "run.log"))
        try:
            run_stages(checked, plans, units, store, progress, child)
        except (KeyboardInterrupt, Exception) as error:
            if ctrl_c.interrupts(error):
                store.write_manifest(status="interrupted", finished=now())
                raise ctrl_c.Interrupted(store.folder) from None
            logging.getLogger(__name__).exception("The run failed.")
            store.write_manifest(status="failed", finished=now(), error=str(error))
            if isinstance(error, OSError):
                raise OutputError(f"The run in '{store.folder}' could not go on ({error}).") from error
            raise
    return Results(store.folder)


def _check_folder(folder: Path) -> None:
    """Raise OutputError unless the folder is that of a run."""
    from fedsem.store import Store

    Store.open(folder)


def _ray_workers(tree: Mapping[str, Any]) -> int:
    """Ray actors that an unchecked scenario seems to ask for; 0 where it does not ask for Ray.

    A guess that only saves time: what the checked scenario says decides.
    """
    compute, federation = tree.get("compute") or {}, tree.get("federation") or {}
    if not isinstance(compute, Mapping) or federation == "none":
        return 0
    if isinstance(federation, Mapping) and federation.get("kind") == "none":
        return 0
    if compute.get("engine", "ray") != "ray":
        return 0
    groups = tree.get("receivers")
    counts = [group.get("count") for group in groups.values()] if isinstance(groups, Mapping) else []
    return actors(_positive(compute.get("workers")), sum(filter(None, map(_positive, counts))))


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send the log records and warnings of all libraries to a file for the duration of the block."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
