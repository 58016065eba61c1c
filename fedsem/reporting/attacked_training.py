"""The figure of attacked training: how often triggers reach their goal, and what poisons and forged updates cost in
clean figures, each beside the twin that was trained without attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsem.reporting import words
from fedsem.reporting.captions import evidence
from fedsem.reporting.layout import finish, settle, text_width, wrap
from fedsem.reporting.panels import WIDTH
from fedsem.reporting.rows import is_clean, own_snr, pooled, task_kinds
from fedsem.reporting.style import GREY, VERMILLION, Drawing, house_style
from fedsem.reporting.words import Kind, quantity

CLEAN: dict[Kind, str] = {
    "classification": "accuracy",
    "reconstruction": "mse",
    "sensing": "accuracy",
    "detection": "f1",
    "segmentation": "dice",
    "keypoints": "pck",
}
LINE = 0.22
"""Inches of a line of dots."""
MOST_LINES = 40
ATTACKED, TWIN = "Attacked training", "Same seed, no attack"


@dataclass(frozen=True)
class Line:
    """One link: its row, and that of its twin."""

    label: str
    row: pd.Series
    twin: pd.Series | None


@dataclass(frozen=True)
class Panel:
    """Lines of one task and metric."""

    title: str
    kind: Kind
    metric: str
    lines: list[Line]


def lacks(table: pd.DataFrame) -> str:
    """Why there is no such figure; empty where there is one."""
    if (table["stage"] == "twin").any() or table["metric"].fillna("").str.endswith("_vs_twin").any():
        return ""
    return "no training was attacked; name a poison, a backdoor or a forged update in 'use.attacks'"


def draw(table: pd.DataFrame) -> Drawing:
    """For each task how often its goal was reached under the trigger, and its clean figure; at the middle one of the
    SNRs, the higher one of two."""
    rows, twins = pooled(table, "evaluate"), pooled(table, "twin")
    panels: list[Panel] = []
    for task, kind in task_kinds(table).items():
        mine = rows[rows["task"] == task]
        compared = mine[mine["metric"] == f"{CLEAN[kind]}_vs_twin"]
        triggered = mine[(mine["metric"] == "reached") & ~is_clean(mine) & mine["psr_db"].isna()]
        clean = mine[(mine["metric"] == CLEAN[kind]) & is_clean(mine) & mine["cell"].isin(compared["cell"])]
        if mine["cell"].isna().all():
            clean = mine[(mine["metric"] == CLEAN[kind]) & is_clean(mine)]
        found = [("triggered", "reached", triggered), ("without trigger", CLEAN[kind], clean)]
        if triggered.empty:
            found = [("", CLEAN[kind], clean)]
        for what, metric, part in found:
            if part.empty:
                continue
            snrs = sorted(part[own_snr(kind)].unique())
            snr_db = float(snrs[len(snrs) // 2])
            title = [words.plain(task), what, words.snr(snr_db, kind == "sensing")]
            lines = _lines(part[part[own_snr(kind)] == snr_db], twins, kind)
            panels.append(Panel(" · ".join(word for word in title if word), kind, metric, lines))
    shown = rows[rows["metric"].isin([panel.metric for panel in panels])]
    return _compose(panels, table, shown)


def _lines(rows: pd.DataFrame, twins: pd.DataFrame, kind: Kind) -> list[Line]:
    x = own_snr(kind)
    lines = []
    for _, row in rows.iterrows():
        parts = [words.cell(str(row["cell"])) if pd.notna(row["cell"]) else ""]
        if row["attack"] != "none" and not _says(parts[0], str(row["attack"])):
            parts.append(words.attack_name(str(row["attack"])))
        if rows["receiver"].nunique() > 1:
            parts.append(words.plain(str(row["receiver"])))
        label = ", ".join(part for part in parts if part) or "All receivers"
        if pd.notna(row["psr_achieved_db"]):
            label += f" ({words.decibel(round(float(row['psr_achieved_db']), 1))})"
        same = twins["attack"].eq(row["attack"]) & twins["metric"].eq(row["metric"]) & twins["task"].eq(row["task"])
        same &= twins["receiver"].eq(row["receiver"]) & twins["channel"].eq(row["channel"]) & twins[x].eq(row[x])
        same &= twins["cell"].isna() if pd.isna(row["cell"]) else twins["cell"].eq(row["cell"])
        found = twins[same.fillna(False)]
        lines.append(Line(label, row, None if found.empty else found.iloc[0]))
    return lines


def _says(label: str, attack: str) -> bool:
    """Whether a label names the attack already."""
    return attack in label.replace(",", " ").split()


def _compose(panels: Sequence[Panel], table: pd.DataFrame, shown: pd.DataFrame) -> Drawing:
    left_out = sum(max(0, len(panel.lines) - MOST_LINES) for panel in panels)
    panels = [replace(panel, lines=panel.lines[:MOST_LINES]) for panel in panels]
    columns = min(2, len(panels))
    grid_rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [0.75 + LINE * max(len(panel.lines) for panel in row) for row in grid_rows]
    with house_style():
        figure = Drawing(figsize=(WIDTH * columns * 1.15, sum(heights)))
        grid = figure.subplots(len(grid_rows), columns, squeeze=False, height_ratios=heights)
        handles: dict[str, Any] = {}
        for axes_row, row in zip(grid, grid_rows, strict=True):
            for axes, panel in zip(axes_row, row, strict=False):
                _draw(figure, axes, panel, handles)
            for axes in axes_row[len(row) :]:
                axes.remove()
        caption = ["Dots with 95\u00a0% intervals."]
        if any(panel.metric == "reached" for panel in panels):
            caption.append("In brackets: the trigger's own PSR.")
        if left_out:
            caption.append(f"{words.count(left_out)} more lines are in the table.")
        if any(panel.kind == "reconstruction" and panel.metric == "reached" for panel in panels):
            caption.append("Of a picture the goal is a small error to the target picture.")
        caption.append(evidence(table, shown).replace("Bands: 95\u00a0% intervals. ", ""))
        finish(figure, handles, " ".join(caption), sum(heights))
        settle(figure)
    return figure


def _draw(figure: Drawing, axes: Axes, panel: Panel, handles: dict[str, Any]) -> None:
    shown = quantity(panel.metric, panel.kind)
    places = range(len(panel.lines))
    for place, line in zip(places, panel.lines, strict=True):
        for label, row, colour, face, offset in (
            (TWIN, line.twin, GREY, "white", 0.14),
            (ATTACKED, line.row, VERMILLION, VERMILLION, -0.14),
        ):
            if row is None:
                continue
            y = place + offset
            low, high = (shown.scale * float(row[name]) for name in ("ci_low", "ci_high"))
            axes.hlines(y, low, high, color=colour, lw=1.1, zorder=2)
            (handle,) = axes.plot(
                [shown.scale * float(row["value"])], [y], "o", color=colour, mfc=face, ms=4.2, ls="", zorder=3
            )
            handles.setdefault(label, handle)
    axes.set_yticks(list(places))
    widest = 1.9
    axes.set_yticklabels([_cut(figure, line.label, widest) for line in panel.lines])
    axes.set_ylim(len(panel.lines) - 0.5, -0.5)
    axes.grid(False, axis="y")
    if shown.share:
        axes.set_xlim(-3, 103)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value)))
    axes.set_xlabel(shown.label)
    axes.set_title(wrap(figure, panel.title, WIDTH - 0.6, 8))


def _cut(figure: Drawing, label: str, width: float) -> str:
    """The label in at most two lines of that width in inches, the rest as an ellipsis."""
    lines = wrap(figure, label, width, 7).split("\n")
    if len(lines) <= 2 and all(text_width(figure, line, 7) <= width for line in lines):
        return "\n".join(lines)
    return "\n".join([lines[0], f"{lines[1]} …"] if len(lines) > 2 else lines)
