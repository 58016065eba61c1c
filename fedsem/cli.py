"""The command line. Nothing heavy is imported before a command needs it: `fedsem --help` answers at once."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from fedsem import __version__, ctrl_c
from fedsem.errors import FedsemError, closest


class _Choice(click.Choice[str]):
    """One of some words; a misspelt one is told the closest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return f"unknown value '{value}'.{closest(str(value), self.choices)}"


class _Commands(TyperGroup):
    """Says what is wrong with a command line in one sentence, without click's usage lines before it."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _usage():
            return super().make_context(*args, **kwargs)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            ctx.fail(f"unknown command '{args[0]}'.{closest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _usage():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="A testbed for the robustness of federated semantic communications.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)

Setting = Annotated[list[str] | None, typer.Option("--set", help="override a key of the scenario: a.b=value")]

LINE_EVERY_S = 60
"""Seconds between two lines of progress where there is no terminal: a log should say that the run is alive."""

LISTINGS = (
    "attacks",
    "defenses",
    "channels",
    "tasks",
    "datasets",
    "partitions",
    "encoders",
    "aggregators",
    "pre_aggregators",
    "scenarios",
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"fedsem {__version__}", highlight=False)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        out.print(context.get_help(), markup=False, highlight=False)


@app.command()
def run(
    scenario: Annotated[str | None, typer.Argument(hidden=True)] = None,
    settings: Setting = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="results go to OUT/<scenario>/<run id>; default: results")
    ] = None,
    device: Annotated[
        str | None, typer.Option(click_type=_Choice(["auto", "cpu", "cuda"]), help="replaces compute.device")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="replaces seeds by this one")] = None,
    resume: Annotated[Path | None, typer.Option(help="finish the run in this folder")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="take what is identical from this run or ablation; can be repeated")
    ] = None,
) -> None:
    """Train and evaluate a scenario; write table, figures and report.

    SCENARIO is a YAML file, or the name of a shipped scenario.
    """
    with _sentences("finish the run with: fedsem run --resume"):
        if resume is not None and folder is not None:
            raise FedsemError("A resumed run stays in its folder: leave out --out.")
        from fedsem.runner import run as run_scenario

        with _bars() as progress:
            results = run_scenario(
                scenario,
                settings or [],
                out=folder or "results",
                device=device,
                seed=seed,
                resume=resume,
                reuse=reuse or [],
                progress=progress,
            )
        for sentence in results.warnings():
            err.print(f"Warning: {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        out.print(results.summary(), markup=False, soft_wrap=True)
        out.print(f"Report: {results.folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def ablate(
    scenario: Annotated[str | None, typer.Argument(hidden=True)] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="an axis: a.b=[value, value], defenses=[none, x, x+y]; can be repeated")
    ] = None,
    settings: Setting = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="results go to OUT/ablate-<scenario>/<id>; default: results")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs at once; default: as many as the CPU cores can serve")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be run, and what is shared")] = False,
    device: Annotated[
        str | None, typer.Option(click_type=_Choice(["auto", "cpu", "cuda"]), help="replaces compute.device")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="replaces seeds by this one")] = None,
    resume: Annotated[Path | None, typer.Option(help="finish the ablation in this folder")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="take what is identical from this run or ablation; can be repeated")
    ] = None,
) -> None:
    """Run a scenario with every combination of some settings; write one table and one report.

    SCENARIO is a YAML file, or the name of a shipped scenario; its block ABLATE names axes too. Every combination is a
    run in a process of its own; trainings that are the same are made once.
    """
    with _sentences("finish it with: fedsem ablate --resume"):
        if resume is not None and folder is not None:
            raise FedsemError("A resumed ablation stays in its folder: leave out --out.")
        from fedsem.ablation import ablate as run_ablation
        from fedsem.ablation import at_once, planned

        if dry_run:
            if scenario is None:
                raise FedsemError("--dry-run tells what a scenario would run: name one.")
            checked, members = planned(scenario, settings or [], vary=vary or [], device=device, seed=seed)
            first: dict[str, str] = {}
            for one in members:
                own = [name for name in one.jobs if first.setdefault(name, one.name) == one.name]
                shared = sorted({first[name] for name in one.jobs} - {one.name})
                told = f"left out: {one.left_out}" if one.left_out else f"trains {len(own)} of {len(one.jobs)}"
                told += f", takes the rest from {' and '.join(shared)}" if shared else ""
                out.print(f"{one.name}: {told}", highlight=False, markup=False, soft_wrap=True)
            runs = sum(not one.left_out for one in members)
            out.print(
                f"{runs} runs of {len(members)} combinations, {len(first)} trainings, "
                f"{jobs or at_once(checked)} at once.",
                highlight=False,
                soft_wrap=True,
            )
            return

        def tell(cell: str, status: str, done: int, total: int) -> None:
            if status != "running":
                err.print(f"[{done}/{total}] {cell}: {status}", highlight=False, markup=False, soft_wrap=True)

        results = run_ablation(
            scenario,
            settings or [],
            vary=vary or [],
            out=folder or "results",
            device=device,
            seed=seed,
            resume=resume,
            reuse=reuse or [],
            jobs=jobs,
            progress=tell,
        )
        out.print(f"Report: {results.folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
        if lost := len(results.lost):
            raise FedsemError(
                f"{lost} of {len(results.manifest['cells'])} runs did not finish; the report says why. Try them again "
                f"with: fedsem ablate --resume {results.folder}"
            )


@app.command()
def validate(
    scenario: Annotated[str, typer.Argument(hidden=True)],
    settings: Setting = None,
) -> None:
    """Check a scenario against its data and plug-ins.

    SCENARIO is a YAML file, or the name of a shipped scenario. Nothing is trained or written.
    """
    with _sentences():
        from fedsem.adaptive import NothingKnown
        from fedsem.checks import resolve
        from fedsem.scenario import check_scenario
        from fedsem.scenario_file import load_scenario
        from fedsem.sweep import cells

        checked = load_scenario(scenario, settings or [])
        trainings = []
        for cell in [inner for one in cells(checked, "ablate") for inner in cells(check_scenario(one.tree))]:
            with cell.named(), suppress(NothingKnown):  # an ablation leaves it out
                trainings.append(resolve(check_scenario(cell.tree)))
        receivers = len(trainings[0].receivers)
        out.print(
            f"The scenario '{checked.name}' is valid: {len(trainings) * len(checked.seeds)} training(s), "
            f"{receivers} receivers, {len(trainings[0].dataset.train.labels)} training images.",
            highlight=False,
            soft_wrap=True,
        )


@app.command("list", help=f"List what a scenario can name.\n\nWHAT is one of: {', '.join(LISTINGS)}.")
def list_plugins(
    what: Annotated[str, typer.Argument(click_type=_Choice(LISTINGS), metavar="WHAT", hidden=True)],
) -> None:
    with _sentences():
        if what == "scenarios":
            from fedsem.scenario_file import shipped_scenarios

            texts = {name: _opening(path.read_text(encoding="utf-8")) for name, path in shipped_scenarios().items()}
        else:
            from fedsem.registry import names

            texts = {name: (cls.__doc__ or "").strip() for name, cls in names(what.removesuffix("s")).items()}
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        for name, text in texts.items():
            # Not as markup: a docstring's [low, high] is none.
            table.add_row(Text(name), Text(" ".join(text.partition("\n\n")[0].split())))
        out.print(table if texts else f"No {what} are installed.")


def _opening(scenario: str) -> str:
    """The comment that a scenario begins with."""
    lines = [line.removeprefix("#").strip() for line in scenario.splitlines() if line.startswith("#")]
    return "\n".join(lines)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)]) -> None:
    """Draw figures and report of a finished run again.

    RUN_DIR is the run's folder, results/<scenario>/<run id>; what it has written alone is read.
    """
    with _sentences():
        from fedsem.reporting.results import Results

        out.print(f"Report: {Results(folder).report()}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)],
    attack: Annotated[str, typer.Argument(metavar="ATTACK", hidden=True)],
    other: Annotated[str, typer.Argument(metavar="OTHER", hidden=True)],
) -> None:
    """Print what one attack of a finished run leaves minus what another one leaves.

    RUN_DIR is the folder of the run, or of an ablation; ATTACK and OTHER are names in its scenario. Differences are
    paired over images, channel draws and seeds; [ci_low, ci_high] is their 95 % interval.
    """
    with _sentences():
        from fedsem.comparison import compare as compare_attacks

        found = compare_attacks(folder, attack, other).dropna(axis=1, how="all")
        numbers = ("metric", "value", "other_value", "difference", "ci_low", "ci_high", "n")
        told = [column for column in found if column in numbers or found[column].nunique() > 1]
        out.print(found[told].to_string(index=False), highlight=False, markup=False, soft_wrap=True)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)],
    images: Annotated[int, typer.Option(min=1, help="test images that are attacked, evenly spaced")] = 100,
    queries: Annotated[int, typer.Option(min=1, help="of the black box, Square")] = 1000,
) -> None:
    """Say which robustness figures of a finished run cannot be trusted.

    RUN_DIR is the folder of the run, or of an ablation. Its links are attacked anew, on some of the test images;
    docs/audit.md explains each check. The findings stand in audit.json and in the report; the exit code is 1 where a
    check failed.
    """
    with _sentences():
        from fedsem.audit import audit as audit_run
        from fedsem.auditing.subject import Effort
        from fedsem.reporting.findings import counts, digest
        from fedsem.reporting.results import Results

        with _bars() as progress:
            findings = audit_run(folder, Effort(images=images, queries=queries), partial(progress, "audit"))
        lines = digest(findings)
        wide = [max(len(line[column]) for line in lines) for column in range(3)]
        for verdict, check, link, evidence in lines:
            line = f"{verdict:<{wide[0]}}  {check:<{wide[1]}}  {link:<{wide[2]}}  {evidence}"
            out.print(line, highlight=False, markup=False, soft_wrap=True)
        if lost := Results(folder).lost:
            sentence = f"Warning: Not audited, as its run did not finish: '{lost[0]['cell']}'"
            sentence += f", and {len(lost) - 1} more" if len(lost) > 1 else ""
            sentence += f"; try again with: fedsem ablate --resume {folder}"
            err.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
        out.print(f"{counts(findings)}. Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
        if any(finding.verdict == "failed" for finding in findings):
            raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the scenario, for editors."""
    with _sentences():
        from fedsem.scenario import json_schema

        out.print_json(data=json_schema(), ensure_ascii=True, highlight=out.is_terminal)


def main() -> None:
    """Entry point of the command `fedsem`."""
    ctrl_c.listen()
    try:
        app()
    except SystemExit as exit_:
        if exit_.code == ctrl_c.EXIT_CODE:
            # All is on disk. Unwinding what torch and gRPC have loaded takes seconds, and who presses Ctrl-C means now.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ctrl_c.EXIT_CODE)
        raise


@contextmanager
def _usage() -> Iterator[None]:
    """Turn click's errors into one sentence and exit code 2."""
    try:
        yield
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedsem"
        message = " ".join(error.format_message().split())
        _fail(f"{message}{'' if message.endswith(('.', '?', '?)')) else '.'} Try '{command} --help'.", error.exit_code)


def _fail(sentence: str, code: int) -> NoReturn:
    err.print(f"Error: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code) from None


@contextmanager
def _sentences(finish: str = "") -> Iterator[None]:
    """Turn errors into one sentence and exit code 1; FEDSEM_DEBUG=1 shows tracebacks instead.

    Args:
        finish: how what was interrupted can be finished, but for its folder.
    """
    try:
        yield
    except typer.Exit:
        raise
    except (KeyboardInterrupt, Exception) as error:
        if ctrl_c.interrupts(error):
            what = f"; {finish} {shlex.quote(str(error.folder))}" if isinstance(error, ctrl_c.Interrupted) else ""
            err.print(f"Interrupted{what}", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(ctrl_c.EXIT_CODE) from None
        if os.environ.get("FEDSEM_DEBUG") == "1":
            raise
        if isinstance(error, FedsemError):
            _fail(str(error), 1)
        if isinstance(error, OSError) and error.strerror:
            where = f": '{error.filename}'" if error.filename else ""
            _fail(f"{FedsemError(f'{error.strerror}{where}')}.", 1)
        # FedsemError makes one line of whatever a library says.
        sentence = FedsemError(f"Something went wrong inside fedsem ({type(error).__name__}: {error})")
        _fail(f"{sentence}; set FEDSEM_DEBUG=1 to see where, and please report it.", 1)


@contextmanager
def _bars() -> Iterator[Callable[[str, str, int, int], None]]:
    """Progress bars of trainings and evaluations; where there is no terminal, a line now and then."""
    words = {"pretrain": "pretraining", "federate": "training", "evaluate": "evaluating", "audit": "auditing"}
    if not err.is_terminal:
        told = time.monotonic()

        def tell(stage: str, label: str, done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_EVERY_S:
                told = time.monotonic()
                err.print(f"{words[stage]} {label}: {done} of {total}", highlight=False, markup=False, soft_wrap=True)

        yield tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
