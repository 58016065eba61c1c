"""The command line. Nothing heavy is imported before a command needs it: `fedsem --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedsem.errors import FedsemError

app = typer.Typer(
    help="A testbed for the robustness of federated semantic communications.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

Setting = Annotated[list[str] | None, typer.Option("--set", help="override a key of the scenario: a.b=value")]


class Device(StrEnum):
    """Where the arithmetic runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Listing(StrEnum):
    """What can be listed."""

    ATTACKS = "attacks"
    DEFENSES = "defenses"
    CHANNELS = "channels"
    TASKS = "tasks"
    DATASETS = "datasets"
    PARTITIONS = "partitions"
    ENCODERS = "encoders"
    AGGREGATORS = "aggregators"
    SCENARIOS = "scenarios"


@app.command()
def run(
    scenario: Annotated[str | None, typer.Argument(help="a YAML file, or the name of a shipped scenario")] = None,
    settings: Setting = None,
    folder: Annotated[Path, typer.Option("--out", help="results go to OUT/<scenario>/<run id>")] = Path("results"),
    device: Annotated[Device | None, typer.Option(help="replaces compute.device")] = None,
    seed: Annotated[int | None, typer.Option(help="replaces seeds by this one")] = None,
    resume: Annotated[Path | None, typer.Option(help="finish the run in this folder")] = None,
) -> None:
    """Train and evaluate a scenario; write table, figures and report."""
    with _sentences():
        from fedsem.runner import run as run_scenario

        with _bars() as progress:
            results = run_scenario(
                scenario,
                settings or [],
                out=folder,
                device=device.value if device else None,
                seed=seed,
                resume=resume,
                progress=progress,
            )
        for sentence in results.warnings():
            err.print(f"Warning: {sentence}", style="yellow", highlight=False)
        out.print(results.summary())
        out.print(f"Report: {results.folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def validate(
    scenario: Annotated[str, typer.Argument(help="a YAML file, or the name of a shipped scenario")],
    settings: Setting = None,
) -> None:
    """Check a scenario against its data and plug-ins without running it."""
    with _sentences():
        from fedsem.plan import resolve
        from fedsem.scenario import cells, check_scenario, load_scenario

        checked = load_scenario(scenario, settings or [])
        trainings = [resolve(check_scenario(cell.tree)) for cell in cells(checked)]
        receivers = len(trainings[0].receivers)
        out.print(
            f"The scenario '{checked.name}' is valid: {len(trainings) * len(checked.seeds)} training(s), "
            f"{receivers} receivers, {len(trainings[0].dataset.train.labels)} training images.",
            highlight=False,
        )


@app.command("list")
def list_plugins(what: Annotated[Listing, typer.Argument(help="what to list")]) -> None:
    """List what a scenario can name."""
    with _sentences():
        table = Table(box=None, pad_edge=False)
        table.add_column("name", style="bold", no_wrap=True)
        table.add_column("")
        if what is Listing.SCENARIOS:
            from fedsem.scenario import shipped_scenarios

            for name, path in shipped_scenarios().items():
                lines = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
                table.add_row(name, next(lines, ""))
        else:
            from fedsem.registry import names

            for name, cls in names(what.value.removesuffix("s")).items():
                table.add_row(name, (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " "))
        out.print(table if table.row_count else f"No {what.value} are installed.")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="folder of a run")]) -> None:
    """Draw the figures and the report of a finished run again, from its table alone."""
    with _sentences():
        from fedsem.reporting.results import Results

        out.print(f"Report: {Results(folder).report()}", highlight=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the scenario, for editors."""
    with _sentences():
        from fedsem.scenario import json_schema

        sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


def main() -> None:
    """Entry point of the command `fedsem`."""
    app()


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn errors into one sentence and an exit code; FEDSEM_DEBUG=1 shows tracebacks instead."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("Interrupted; finish the run with: fedsem run --resume RUN_DIR", highlight=False)
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        if os.environ.get("FEDSEM_DEBUG") == "1":
            raise
        if isinstance(error, FedsemError):
            sentence = str(error)
        else:
            sentence = (
                f"Something went wrong inside fedsem ({type(error).__name__}: {error}); "
                "set FEDSEM_DEBUG=1 to see where, and please report it."
            )
        err.print(f"Error: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def _bars() -> Iterator[Callable[[str, str, int, int], None]]:
    """Progress bars of trainings and evaluations; silent where there is no terminal."""
    if not err.is_terminal:
        yield lambda stage, label, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    words = {"federate": "training", "evaluate": "evaluating"}
    bars: dict[tuple[str, str], Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        waiting = progress.add_task("starting", total=None)

        def show(stage: str, label: str, done: int, total: int) -> None:
            progress.update(waiting, visible=False)
            key = (stage, label)
            if key not in bars:
                bars[key] = progress.add_task(f"{words[stage]} {label}", total=total)
            progress.update(bars[key], completed=done)

        yield show


if __name__ == "__main__":
    main()
