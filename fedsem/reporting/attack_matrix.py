"""The matrix of attacks and defenses: what every attack leaves of every defended link, and what each is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedsem.reporting import words
from fedsem.reporting.captions import evidence
from fedsem.reporting.layout import finish, settle, text_width, wrap
from fedsem.reporting.rows import groups, own_snr, pooled, spread
from fedsem.reporting.style import GREY, INK, VERMILLION, Drawing, house_style
from fedsem.reporting.verdicts import CLEAN, claimed, described
from fedsem.reporting.words import Kind, quantity
from fedsem.scenario import ADAPTIVE

CELL_WIDTH, CELL_HEIGHT = 0.66, 0.34
"""Inches."""
MOST_COLUMNS, MOST_LINES = 12, 40
WORST = "worst"
"""The last column."""


@dataclass(frozen=True)
class Entry:
    """One cell of the matrix, in the unit that is shown.

    Attributes:
        value, low, high: what is left, with its interval; NaN: not measured.
        claim: whether an attack of this threat knows the defense, or there is none.
    """

    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    claim: bool = True


@dataclass(frozen=True)
class Panel:
    """The matrix of one task at one place.

    Attributes:
        title: the task, the place and the SNR.
        kind, metric: of the task.
        links: what is defended, and how: the lines.
        columns: no attack, each attack, and the worst of these.
        entries: by line and column.
        worst_link: number of the line with the lowest mean over the attacks that all lines have; None where there are
            none.
        worst_column: number of the attack with the lowest mean over the lines.
    """

    title: str
    kind: Kind
    metric: str
    links: list[str]
    columns: list[str]
    entries: list[list[Entry]]
    worst_link: int | None
    worst_column: int


def lacks(table: pd.DataFrame) -> str:
    """Why there is no such figure; empty where there is one."""
    rows = described(pooled_rows(table))
    if rows.empty or (rows["column"] == CLEAN).all():
        return "nothing was attacked within a budget"
    if rows["link"].nunique() < 2 or not rows["defended"].any():
        return "there are no defenses to compare; sweep use.defenses or federation.aggregator, or use fedsem ablate"
    if rows.groupby(["link", "column", *PANEL], dropna=False).size().max() > 1:
        return "its links differ in more than attacks and defenses"
    return ""


def draw(table: pd.DataFrame) -> Drawing:
    """A panel for each task, receiver group and channel, at the middle one of the SNRs, the higher one of two."""
    rows = described(pooled_rows(table))
    panels = panels_of(rows)
    shown = pooled_rows(table).loc[rows.index]
    return _compose(panels, table, shown)


PANEL = ("task", "receiver", "channel", "fading", "csi", "selection", "mask_ratio", "snr_db", "sensing_snr_db")


def pooled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the evaluation, all seeds together, with all columns."""
    return table.loc[pooled(table, "evaluate").index]


def panels_of(rows: pd.DataFrame) -> list[Panel]:
    """The matrices of rows of `described`."""
    panels = []
    places = ["task", "receiver", "channel", "fading", "csi", "selection", "mask_ratio"]
    for values, mine in groups(rows, places):
        kind: Kind = mine["kind"].iloc[0]
        snrs = sorted(float(snr) for snr in mine[own_snr(kind)].dropna().unique())
        snr_db = snrs[len(snrs) // 2]
        here = mine[mine[own_snr(kind)] == snr_db]
        named = dict(zip(places, values, strict=True))
        title = [words.plain(str(named["task"]))]
        for name in ("receiver", "channel", "selection", "mask_ratio"):
            if rows[name].nunique() > 1 and pd.notna(named[name]):
                title.append(words.plain(str(named[name])))
        title.append(words.snr(snr_db, kind == "sensing"))
        panels.append(_panel(" · ".join(title), kind, here))
    return panels


def _panel(title: str, kind: Kind, rows: pd.DataFrame) -> Panel:
    shown = quantity(str(rows["metric"].iloc[0]), kind)
    links = list(dict.fromkeys(rows["link"]))
    columns = _columns(rows)
    found = {(row["link"], row["column"]): row for row in rows.to_dict("records")}
    threats = dict(zip(rows["column"], rows["threat"], strict=True))
    claims = {key: claimed(same) for key, same in rows[rows["column"] != CLEAN].groupby(["link", "threat"], sort=False)}
    entries = []
    for link in links:
        line = []
        for column in columns:
            row = found.get((link, column))
            if row is None and column.startswith(ADAPTIVE):
                row = _already(rows[(rows["link"] == link) & (rows["threat"] == threats[column])])
            claim = column == CLEAN or claims.get((link, threats[column]), False)
            if row is None:
                line.append(Entry(claim=claim))
            else:
                value, low, high = (shown.scale * float(row[name]) for name in ("value", "ci_low", "ci_high"))
                line.append(Entry(value, low, high, claim))
        attacked = [one for one, column in zip(line, columns, strict=True) if column != CLEAN]
        least = min((one for one in attacked if not np.isnan(one.value)), key=lambda one: one.value, default=Entry())
        line.append(Entry(least.value, least.low, least.high, all(one.claim for one in attacked)))
        entries.append(line)
    values = np.array([[one.value for one in line] for line in entries])
    start = 1 if columns[0] == CLEAN else 0
    attacks = values[:, start:-1]
    whole = attacks[:, ~np.isnan(attacks).any(0)]
    worst_link = int(whole.mean(1).argmin()) if whole.size else None
    worst_column = start + int(np.nanmean(attacks, axis=0).argmin())
    metric = str(rows["metric"].iloc[0])
    return Panel(title, kind, metric, links, [*columns, WORST], entries, worst_link, worst_column)


def _already(rows: pd.DataFrame) -> dict[Any, Any] | None:
    """Of a link's rows under one threat, what an adaptive attack would repeat: the worst of those that know its
    defenses, or where it has none of all."""
    known = rows[rows["knows"] | ~rows["defended"]]
    return None if known.empty else known.sort_values("value", kind="stable").iloc[0].to_dict()


def _columns(rows: pd.DataFrame) -> list[str]:
    """Without attack first; then each attack, at its rising PSRs, the adaptive ones after those that they are like."""
    attacked = rows[rows["column"] != CLEAN]
    psrs = [float(psr) for psr in sorted(attacked["psr_db"].dropna().unique())]
    bases = list(dict.fromkeys(attacked["base"]))
    # A matrix with more columns than fit on a page tells less: fewer of the PSRs then.
    while len(psrs) > 1 and sum(1 for _ in groups(_at(attacked, psrs), ["column"])) > MOST_COLUMNS:
        psrs = spread(psrs, len(psrs) - 1)
    attacked = _at(attacked, psrs)
    order = sorted(bases, key=lambda base: base.startswith(ADAPTIVE))
    listed = [
        str(column)
        for base in order
        for column in dict.fromkeys(attacked[attacked["base"] == base].sort_values("psr_db", kind="stable")["column"])
    ]
    return [CLEAN, *listed] if (rows["column"] == CLEAN).any() else listed


def _at(rows: pd.DataFrame, psrs: Sequence[float]) -> pd.DataFrame:
    return rows[rows["psr_db"].isna() | rows["psr_db"].isin(psrs)]


def _compose(panels: Sequence[Panel], table: pd.DataFrame, shown: pd.DataFrame) -> Drawing:
    columns = max(len(panel.columns) for panel in panels)
    lines = [min(len(panel.links), MOST_LINES) for panel in panels]
    with house_style():
        figure = Drawing(figsize=(4, 4))
        label_width = 0.25 + max(text_width(figure, label, 7) for panel in panels for label in panel.links[:MOST_LINES])
        label_width = min(label_width, 2.6)
        heads = [_heads(figure, panel) for panel in panels]
        head_heights = [0.34 + 0.125 * max(head.count("\n") + 1 for head in some) for some in heads]
        heights = [CELL_HEIGHT * count + head + 0.12 for count, head in zip(lines, head_heights, strict=True)]
        figure.set_size_inches(label_width + CELL_WIDTH * columns + 0.15, sum(heights))
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, panel, some, count in zip(grid[:, 0], panels, heads, lines, strict=True):
            _draw(figure, axes, panel, some, count, columns, label_width)
        left_out = sum(len(panel.links) - count for panel, count in zip(panels, lines, strict=True))
        finish(figure, {}, _caption(panels, left_out, table, shown), sum(heights))
        figure.set_layout_engine(None)
        width, top = (float(inches) for inches in figure.get_size_inches())
        whole = top
        for axes, count, head, height in zip(grid[:, 0], lines, head_heights, heights, strict=True):
            bottom = top - head - CELL_HEIGHT * count
            axes.set_position(
                (label_width / width, bottom / whole, CELL_WIDTH * columns / width, CELL_HEIGHT * count / whole)
            )
            top -= height
        settle(figure)
    return figure


def _heads(figure: Drawing, panel: Panel) -> list[str]:
    # A name that is wider than its column is broken after an underscore.
    broken = [wrap(figure, column.replace("_", "_ "), CELL_WIDTH - 0.06, 6.5) for column in panel.columns]
    return [head.replace("_ ", "_") for head in broken]


def _draw(
    figure: Drawing, axes: Axes, panel: Panel, heads: Sequence[str], count: int, columns: int, label_width: float
) -> None:
    shown = quantity(panel.metric, panel.kind)
    values = np.array([[one.value for one in line] for line in panel.entries[:count]])
    low, high = (0.0, 100.0) if shown.share else (float(np.nanmin(values)), float(np.nanmax(values)))
    shade = (values - low) / (high - low if high > low else 1.0)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.imshow(
        np.ma.masked_invalid(shade), cmap="Blues", vmin=-0.12, vmax=1.7, aspect="auto",
        extent=(-0.5, len(panel.columns) - 0.5, count - 0.5, -0.5),
    )  # fmt: skip
    halo = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    for i in range(count):
        of_line = values[i, 1 if panel.columns[0] == CLEAN else 0 : -1]
        for j, one in enumerate(panel.entries[i]):
            if not one.claim:
                box = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="/////", ec="#9c9c9c", lw=0, zorder=2)
                axes.add_patch(box)
            if np.isnan(one.value):
                axes.text(j, i, "–", ha="center", va="center", size=7.5, color=GREY, path_effects=halo, zorder=4)
                continue
            lowest = j not in (0, len(panel.columns) - 1) and one.value == np.nanmin(of_line)
            weight = "bold" if lowest or j == len(panel.columns) - 1 else "normal"
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "path_effects": halo, "zorder": 4}
            digits = shown.digits if not shown.share else 1
            axes.text(j, i - 0.17, words.number(one.value, digits), size=7.5, weight=weight, **style)
            if one.low < one.high:
                whole = 0 if shown.share and round(one.high) > round(one.low) else digits
                interval = f"[{words.number(one.low, whole)}, {words.number(one.high, whole)}]"
                axes.text(j, i + 0.24, interval, size=5.4, **style)
    axes.axvline(len(panel.columns) - 1.5, color="white", lw=3, zorder=5)
    axes.set_yticks([])
    for i, link in enumerate(panel.links[:count]):
        worst = i == panel.worst_link and len(panel.links) > 1
        label = wrap(figure, link, label_width - 0.2, 7)
        axes.text(
            -0.6, i, f"{label} ◂" if worst else label, ha="right", va="center", size=7,
            color=VERMILLION if worst else INK,
        )  # fmt: skip
    for j, head in enumerate(heads):
        worst = j == panel.worst_column and len(panel.columns) > 3
        text = f"{head}\n▾" if worst else head
        axes.text(
            j,
            -0.58,
            text,
            ha="center",
            va="bottom",
            size=6.5,
            color=VERMILLION if worst else INK,
            weight="bold" if j == len(heads) - 1 else "normal",
        )
    edge: dict[str, Any] = {"fill": False, "ec": VERMILLION, "lw": 1.1, "zorder": 6, "clip_on": False}
    if panel.worst_link is not None and panel.worst_link < count and len(panel.links) > 1:
        axes.add_patch(Rectangle((-0.5, panel.worst_link - 0.5), len(panel.columns), 1, **edge))
    if len(panel.columns) > 3:
        axes.add_patch(Rectangle((panel.worst_column - 0.5, -0.5), 1, count, **edge))
    start = -0.6 - (label_width - 0.15) / CELL_WIDTH
    above = -0.75 - 0.125 * _most(heads) / CELL_HEIGHT
    axes.text(start, above, f"{panel.title}: {shown.label}", ha="left", va="bottom", size=8)
    axes.set_xticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _most(heads: Sequence[str]) -> int:
    return 1 + max(head.count("\n") + 1 for head in heads)


def _caption(panels: Sequence[Panel], left_out: int, table: pd.DataFrame, shown: pd.DataFrame) -> str:
    parts = ["Each cell: what is left under the attack, with its 95\u00a0% interval."]
    parts.append("In orange the line and the attack with the lowest mean; in bold the least of each line.")
    if any(not one.claim for panel in panels for line in panel.entries for one in line):
        parts.append("Hatched: no attack of this budget knows the defense, which supports no claim.")
    if any(column.startswith(ADAPTIVE) for panel in panels for column in panel.columns):
        parts.append(
            "Adaptive: the attack that knows the defense; where another one already does, or nothing defends, the "
            "worst of those is repeated."
        )
    if (table["metric"] == "undetected_error").any():
        parts.append(
            "Behind a detector an attack that is flagged has failed: 1 − the share that is decided wrongly and passes; "
            "without attack, the share that is decided rightly and passes."
        )
    if any(column.endswith(", trigger") for panel in panels for column in panel.columns):
        parts.append("Trigger: 1 − the share of triggered images of other classes that are taken for the goal.")
    if any(np.isnan(one.value) for panel in panels for line in panel.entries for one in line):
        parts.append("–: not measured.")
    if left_out:
        parts.append(f"{words.count(left_out)} more lines are in the table.")
    parts.append(evidence(table, shown.assign(ci_low=np.nan, ci_high=np.nan)))
    return " ".join(parts)
