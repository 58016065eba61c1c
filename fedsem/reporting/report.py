"""The figures and the HTML report of a run, made from its files alone: same files, same report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsem.files import replace_file
from fedsem.reporting import words
from fedsem.reporting.figures import FIGURES, available, draw
from fedsem.reporting.findings import Finding, counts, digest, read_findings
from fedsem.reporting.page import (
    brief,
    code,
    facts,
    folded,
    grid_table,
    page,
    paragraph,
    picture,
    section,
    text_table,
    tiles,
)
from fedsem.reporting.style import encode
from fedsem.reporting.summary import Grid, clean, federation, headlines, leaks, under_attack
from fedsem.reporting.verdicts import verdicts

if TYPE_CHECKING:
    import pandas as pd

    from fedsem.reporting.results import Results

OPEN_GRIDS = 6
"""Tables of one section that are open; the rest is folded."""
INCH = 96
"""CSS pixels."""


def write_figures(results: Results) -> dict[str, tuple[bytes, float]]:
    """Draw every figure that the run has rows for into ``figures/NAME.png`` and ``.pdf``, and remove outdated ones.

    Returns:
        name -> (PNG, width in inches), in the order of the report.

    Raises:
        OutputError: the folder cannot be written.
    """
    table, samples, folder = results.table, results.samples, results.folder / "figures"
    drawn = {}
    for name in available(table, samples):
        figure = draw(name, table, samples)
        png = encode(figure, "png")
        replace_file(folder / f"{name}.png", png)
        replace_file(folder / f"{name}.pdf", encode(figure, "pdf"))
        drawn[name] = (png, float(figure.get_figwidth()))
    for name in FIGURES.keys() - drawn.keys():
        for kind in ("png", "pdf"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn


def write_report(results: Results) -> Path:
    """Draw the figures and write ``report.html``: one file that needs no other, and no network.

    Raises:
        OutputError: the folder cannot be written.
    """
    drawn = write_figures(results)
    path = results.folder / "report.html"
    replace_file(path, html(results, drawn).encode())
    return path


def html(results: Results, drawn: Mapping[str, tuple[bytes, float]]) -> str:
    """The report as text.

    Args:
        results: the run.
        drawn: what `write_figures` returned.
    """
    scenario, manifest, table = results.scenario, results.manifest, results.table
    name = str(scenario.get("name", results.folder.name))
    sections = [
        section("run", "What was run", facts(_settings(scenario)), _receivers(scenario)),
        section(
            "results",
            "Results without attack",
            paragraph("Each number with its 95 % interval, pooled over seeds.", "soft"),
            *(paragraph(sentence, "soft") for sentence in results.unmeasured()),
            _grids(clean(table)),
        ),
        section("attacks", "Results under attack", _grids(under_attack(table))),
        section("verdicts", "What each defense is judged by", _verdicts(table)),
        section("leaks", "What leaks", _grids(leaks(table))),
        section("audit", "Audit", *_audit(read_findings(results.folder))),
        section("figures", "Figures", _figures(drawn)),
        section("runs", "Runs of this ablation", _runs(results)),
        section("federation", "Federation", _federation(results)),
        section("reproduce", "How to reproduce", _reproduce(results)),
        section(
            "manifest", "Manifest", facts(_machine(manifest)), _stages(manifest), _reused(manifest), _packages(manifest)
        ),
        section(
            "scenario", "Resolved scenario", folded("Show the scenario with every default", code(_source(results)))
        ),
    ]
    links = [
        ("run", "What was run"),
        ("results", "Results"),
        ("attacks", "Under attack"),
        ("verdicts", "Verdicts"),
        ("leaks", "What leaks"),
        ("audit", "Audit"),
        ("figures", "Figures"),
        ("runs", "Runs"),
        ("federation", "Federation"),
        ("reproduce", "Reproduce"),
        ("manifest", "Manifest"),
        ("scenario", "Scenario"),
    ]
    items = [
        f'<li><a href="#{anchor}">{heading}</a></li>'
        for (anchor, heading), text in zip(links, sections, strict=True)
        if text
    ]
    head = [
        '<header>\n<p class="kicker">fedsem: robustness of federated semantic communications</p>',
        f"<h1>{escape(words.plain(name))}</h1>",
        paragraph(str(scenario.get("description") or ""), "lead"),
        paragraph(_when(results), "soft"),
        f"<nav><ul>{''.join(items)}</ul></nav>\n</header>",
        _unfinished(manifest),
        tiles(headlines(table)),
    ]
    foot = paragraph(
        "Intervals: Wilson for shares within one model and one channel draw for each image, otherwise bootstrap "
        "clustered by image and seed; differences are paired. PSR is nominal where nothing else is said. All numbers "
        "are in table.parquet and table.csv beside this file.",
        "soft",
    )
    body = "\n".join(part for part in [*head, *sections, f"<footer>{foot}</footer>"] if part)
    return page(f"{name}: fedsem report", body)


def _when(results: Results) -> str:
    manifest = results.manifest
    seeds = manifest.get("seeds") or results.scenario.get("seeds") or []
    parts = [f"Run {results.folder.name}"]
    if seeds:
        parts.append(f"seed{'s' if len(seeds) > 1 else ''} {brief(seeds)}")
    parts += [f"{key} {manifest[key]}" for key in ("engine", "device") if manifest.get(key)]
    if manifest.get("started"):
        parts.append(str(manifest["started"]))
    if (seconds := _elapsed(manifest)) is not None:
        parts.append(f"took {words.duration(seconds)}")
    return " · ".join(parts)


def _elapsed(manifest: Mapping[str, Any]) -> float | None:
    try:
        started, finished = (datetime.fromisoformat(str(manifest[key])) for key in ("started", "finished"))
        return (finished - started).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _unfinished(manifest: Mapping[str, Any]) -> str:
    status = str(manifest.get("status") or "")
    if status in ("", "complete", "completed", "finished", "done"):
        return ""
    return paragraph(f"This run is not complete (status: {status}); its figures show what there is so far.", "warning")


def _settings(scenario: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that a reader asks for first."""
    evaluation = dict(scenario.get("evaluation") or {})
    grids = [brief(grid) for grid in evaluation.pop("grids", None) or []]
    named = [
        ("Data", brief(scenario.get("data"))),
        ("Link", brief(scenario.get("link"))),
        ("Channels", _each(scenario.get("channels"))),
        ("Tasks", _each(scenario.get("tasks"))),
        ("Training", brief(scenario.get("train"))),
        ("Federation", brief(scenario.get("federation"))),
        ("Attacks", _each(scenario.get("attacks"))),
        ("Defenses", _each(scenario.get("defenses"))),
        ("Ablation", "; ".join(f"{key}: {brief(values)}" for key, values in (scenario.get("ablate") or {}).items())),
        ("Sweep", "; ".join(f"{key}: {brief(values)}" for key, values in (scenario.get("sweep") or {}).items())),
        ("Evaluation", "; ".join([brief(evaluation), *(f"grid: {grid}" for grid in grids)])),
    ]
    return [(name, text) for name, text in named if text]


def _each(named: Mapping[str, Any] | None) -> str:
    return "; ".join(f"{name}: {brief(value)}" for name, value in (named or {}).items())


def _receivers(scenario: Mapping[str, Any]) -> str:
    groups = scenario.get("receivers") or {}
    rows = [
        [str(name), *(brief(group.get(key)) for key in ("count", "tasks", "channel", "decoder"))]
        for name, group in groups.items()
        if isinstance(group, Mapping)
    ]
    return text_table(["Receivers", "How many", "Tasks", "Channel", "Decoder"], rows)


def _grids(grids: list[Grid]) -> str:
    shown = "\n".join(map(grid_table, grids[:OPEN_GRIDS]))
    rest = "\n".join(map(grid_table, grids[OPEN_GRIDS:]))
    return "\n".join(part for part in (shown, folded(f"{len(grids) - OPEN_GRIDS} more tables", rest)) if part)


def _figures(drawn: Mapping[str, tuple[bytes, float]]) -> str:
    return "\n".join(
        picture(number, FIGURES[name].title, FIGURES[name].hint, png, round(width * INCH * 1.25))
        for number, (name, (png, width)) in enumerate(drawn.items(), start=1)
    )


def _verdicts(table: pd.DataFrame) -> str:
    """Of each defended link the least that attacks of each budget left, and what nothing may be claimed of."""
    found = verdicts(table)
    if not found:
        return ""
    unsupported = sum(verdict.unsupported for verdict in found)
    note = (
        "The least that any attack of a budget left, and which one: the worse of attacks that know the defense and of "
    )
    note += "those that do not."
    if unsupported:
        note += (
            f" {words.count(unsupported)} of {words.count(len(found))} support no claim: no attack of that budget knew "
            "the defense, and none here says what a real adversary would leave."
        )
    columns = ["Link", "Task", "Attacks of this budget", "The worst of them", "What it left", "Claim"]
    rows = [
        [
            one.link,
            one.task,
            words.listed(one.attacks),
            one.worst,
            f"{one.value} {one.interval}".strip(),
            "supports no claim" if one.unsupported else "no defense" if not one.defended else "judged",
        ]
        for one in found
    ]
    return "\n".join((paragraph(note, "soft"), text_table(columns, rows)))


def _runs(results: Results) -> str:
    """The runs that an ablation is made of: which ended well, and what the others say."""
    runs = [one for one in results.manifest.get("cells") or [] if isinstance(one, Mapping)]
    rows = [
        [
            words.cell(str(one.get("cell"))),
            str(one.get("status")),
            words.duration(float(one.get("seconds") or 0)),
            str(one.get("folder")) if one.get("status") != "left out" else "",
            str(one.get("error") or ""),
        ]
        for one in runs
    ]
    lost = results.lost
    note = f"{len(lost)} of {len(runs)} runs did not finish; what they would have measured is missing." if lost else ""
    return "\n".join(
        part
        for part in (
            paragraph(note, "warning"),
            text_table(["Settings", "Status", "Wall time", "Folder", "Why"], rows),
        )
        if part
    )


def _federation(results: Results) -> str:
    found = federation(results.table)
    rows = [
        [
            training.cell or "all",
            str(training.rounds),
            words.count(training.asked),
            words.count(training.failed),
            words.count(training.rejected),
            words.count(training.untrained),
            words.data_volume(training.bytes_up),
            words.data_volume(training.bytes_down),
        ]
        for training in found
    ]
    columns = ["Training", "Rounds", "Receivers asked", "Failed", "Rejected", "Never trained", "Sent up", "Sent down"]
    note = (
        "Receivers asked, failed and rejected, and bytes, are summed over rounds and seeds; receivers with a decoder "
        "that was never trained, over seeds."
        if rows
        else ""
    )
    return "\n".join(part for part in (text_table(columns, rows, ""), paragraph(note, "soft")) if part)


def _audit(findings: Sequence[Finding]) -> list[str]:
    """What cannot be trusted, and what else was looked at."""
    if not findings:
        return []
    lines, columns = digest(findings), ["Verdict", "Check", "Link", "Evidence"]
    doubtful = [line for line in lines if line[0] in ("failed", "suspicious")]
    rest = [line for line in lines if line not in doubtful]
    told = f"Whether the robustness figures can be trusted: {counts(findings)}."
    if not any(finding.target for finding in findings):
        told += " Only records were looked at; fedsem audit also attacks the trained links."
    return [
        paragraph(told, "warning" if doubtful else ""),
        text_table(columns, doubtful),
        folded(
            "What passed, and what does not apply",
            text_table(columns, rest) + paragraph("Of several links the evidence is that of the first.", "soft"),
        ),
    ]


def _reproduce(results: Results) -> str:
    manifest = results.manifest
    command = manifest.get("command") or ""
    given = shlex.join(map(str, command)) if isinstance(command, list | tuple) else str(command)
    version = manifest.get("fedsem")
    lines = [f"pip install fedsem=={version}"] if version else []
    lines += [given] if given else []
    lines += [
        f"fedsem run {shlex.quote(str(Path(results.folder.name) / 'scenario.yaml'))}  # the same, from this folder"
    ]
    lines += [f"fedsem report {shlex.quote(results.folder.name)}  # this report again, from the files alone"]
    git = brief(manifest.get("git"))
    return code("\n".join(lines)) + paragraph(f"Git revision: {git}." if git else "", "soft")


def _machine(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    hardware = manifest.get("hardware")
    hardware = hardware if isinstance(hardware, Mapping) else {}
    units = {"cores": " cores", "memory_gib": " GiB"}
    return [
        ("fedsem", brief(manifest.get("fedsem"))),
        ("Python", brief(manifest.get("python"))),
        ("Hardware", ", ".join(f"{brief(value)}{units.get(key, '')}" for key, value in hardware.items() if value)),
        ("Started", brief(manifest.get("started"))),
        ("Finished", brief(manifest.get("finished"))),
        ("Status", brief(manifest.get("status"))),
    ]


def _stages(manifest: Mapping[str, Any]) -> str:
    """Wall time of each stage, over all cells and seeds."""
    totals: dict[str, list[float]] = {}
    for stage in manifest.get("stages") or []:
        if isinstance(stage, Mapping) and isinstance(stage.get("seconds"), int | float):
            totals.setdefault(str(stage.get("stage")), []).append(float(stage["seconds"]))
    rows = [[name, str(len(times)), words.duration(sum(times))] for name, times in totals.items()]
    return text_table(["Stage", "Times", "Wall time"], rows, "")


def _reused(manifest: Mapping[str, Any]) -> str:
    """Stages that another run computed, and the revision that did."""
    taken = [one for one in manifest.get("reused") or [] if isinstance(one, Mapping)]
    rows = [[brief(one.get(key)) for key in ("stage", "of", "run", "git")] for one in taken]
    return text_table(["Taken from another run", "Cell and seed", "Run", "Git revision"], rows, "")


def _packages(manifest: Mapping[str, Any]) -> str:
    packages = manifest.get("packages")
    rows = [[str(name), str(version)] for name, version in (packages if isinstance(packages, Mapping) else {}).items()]
    return folded("Package versions", text_table(["Package", "Version"], rows))


def _source(results: Results) -> str:
    path = results.folder / "scenario.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
