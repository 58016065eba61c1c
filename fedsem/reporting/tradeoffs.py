"""What links that were trained for different tasks do at each task: a matrix, and the front between two tasks.

The links are the named settings of a sweep, such as ``sweep: {trained_for: {picture: ..., mask: ..., all: ...}}``.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedsem.reporting import words
from fedsem.reporting.captions import evidence
from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.rows import evaluated, is_clean, own_snr, task_kinds, tasks_of
from fedsem.reporting.style import CATEGORIES, FAINT, INK, MARKERS, Drawing, house_style
from fedsem.reporting.words import Kind
from fedsem.scenario import Scenario

HEADLINES: dict[Kind, str] = {
    "classification": "accuracy",
    "reconstruction": "psnr_db",
    "detection": "ap50",
    "segmentation": "dice",
    "keypoints": "pck",
    "sensing": "accuracy",
}
"""What a link is judged by at a task; of all of these more is better."""
MOST_RATIOS = 2
MOST_FRONTS = 6
OTHERS = ("variance", "random")
"""Ways of choosing patches that stand below the links, with the decoders of the last of them."""


def lacks(table: pd.DataFrame) -> str:
    """Why there is no figure; empty where there is one."""
    if _axis(table) is None:
        return "the scenario sweeps no settings with names"
    if len(task_kinds(table)) < 2:
        return "only one task was evaluated"
    rows = _rows(table)
    scored = rows[_scored(rows)]
    if scored.empty:
        return "no patches were chosen by score"
    several = rows.groupby(["link", "task", "selection", "mask_ratio"], dropna=False).size().max() > 1
    whole = len(scored[["link", "task", "mask_ratio"]].drop_duplicates()) == (
        scored["link"].nunique() * scored["task"].nunique() * max(1, scored["mask_ratio"].nunique())
    )
    return "" if whole and not several else "its links differ in more than the names of settings"


def draw_matrix(table: pd.DataFrame) -> Drawing:
    """A row for each link, a column for each task: its value, shaded from the worst to the best of the column."""
    rows = _rows(table)
    ratios, tasks = _ratios(rows), list(dict.fromkeys(rows["task"]))
    links = list(dict.fromkeys(rows.loc[_scored(rows), "link"]))
    with house_style():
        height = 0.3 * (len(links) + sum((rows["selection"] == name).any() for name in OTHERS)) + 0.75
        figure = Drawing(figsize=(1.6 + 1.05 * len(tasks), height * len(ratios)))
        grid = figure.subplots(len(ratios), 1, squeeze=False)
        for axes, ratio in zip(grid[:, 0], ratios, strict=True):
            here = _at(rows, ratio)
            lines = [(words.plain(name), here[_scored(here) & (here["link"] == name)]) for name in links]
            for other in OTHERS:
                chosen = here[(here["selection"] == other) & (here["link"] == links[-1])]
                if not chosen.empty:
                    lines.append((f"{words.SELECTIONS[other]}*", chosen))
            _matrix(axes, lines, tasks, len(links))
            axes.text(-0.56, -0.62, _title(ratio), ha="right", va="bottom", size=7, weight="bold")
            for i, task in enumerate(tasks):
                mine = here[here["task"] == task]
                quantity = words.quantity(str(mine["metric"].iloc[0]))
                label = wrap(figure, f"{words.plain(task)}: {quantity.label}", 0.95, 7)
                axes.text(i, -0.62, label, ha="center", va="bottom", size=7)
        note = f"Rows: \u201c{words.plain(str(_axis(table)))}\u201d of the sweep."
        if any((rows["selection"] == name).any() for name in OTHERS):
            note += f" *With the decoders of \u201c{words.plain(links[-1])}\u201d."
            note += " In bold the best of each column, not counting these."
        else:
            note += " In bold the best of each column."
        note += f" {_heard_at(rows)} {evidence(table, rows.assign(ci_low=np.nan, ci_high=np.nan))}"
        finish(figure, {}, note, height * len(ratios))
        settle(figure)
    return figure


def draw_fronts(table: pd.DataFrame) -> Drawing:
    """A panel for each pair of tasks, at the highest mask ratio: a point for each link, and a line through those that
    no other link beats at both tasks."""
    rows = _rows(table)
    ratio = _ratios(rows)[-1]
    here = _at(rows, ratio)
    here = here[_scored(here)]
    links = list(dict.fromkeys(here["link"]))
    pairs = list(combinations(dict.fromkeys(here["task"]), 2))[:MOST_FRONTS]
    columns = min(3, len(pairs))
    lines = -(-len(pairs) // columns)
    handles = {}
    with house_style():
        figure = Drawing(figsize=(2.6 * columns, 2.4 * lines))
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in grid.flat[len(pairs) :]:
            axes.remove()
        for axes, pair in zip(grid.flat, pairs, strict=False):
            shown = [here[here["task"] == task].set_index("link") for task in pair]
            scales = [words.quantity(str(one["metric"].iloc[0])) for one in shown]
            points = [
                tuple(
                    float(scale.scale * one.loc[link, column])
                    for column in ("value", "ci_low", "ci_high")
                    for one, scale in zip(shown, scales, strict=True)
                )
                for link in links
            ]
            front = sorted(p for p in points if not any(_beats(q[:2], p[:2]) for q in points))
            axes.plot([p[0] for p in front], [p[1] for p in front], color=FAINT, lw=1.2, zorder=1)
            for i, (link, (x, y, x_low, y_low, x_high, y_high)) in enumerate(zip(links, points, strict=True)):
                colour = CATEGORIES[i % len(CATEGORIES)]
                axes.plot([x_low, x_high], [y, y], color=colour, lw=0.8, alpha=0.5, zorder=2)
                axes.plot([x, x], [y_low, y_high], color=colour, lw=0.8, alpha=0.5, zorder=2)
                (handle,) = axes.plot(
                    [x],
                    [y],
                    color=colour,
                    marker=MARKERS[i % len(MARKERS)],
                    ls="",
                    mec="white",
                    mew=0.4,
                    ms=5,
                    zorder=3,
                )
                handles[words.plain(link)] = handle
            axes.set_xlabel(f"{words.plain(pair[0])}: {scales[0].label}")
            axes.set_ylabel(f"{words.plain(pair[1])}: {scales[1].label}")
        note = f"{words.sentence(_title(ratio))} {_heard_at(here)} ".lstrip()
        note += (
            f"Legend: \u201c{words.plain(str(_axis(table)))}\u201d of the sweep. The line joins links that no other "
            f"beats at both tasks. {evidence(table, here).replace('Bands', 'Crosses')}"
        )
        finish(figure, handles, note, 2.4 * lines)
        settle(figure)
    return figure


def _matrix(axes: Axes, lines: list[tuple[str, pd.DataFrame]], tasks: list[str], links: int) -> None:
    values = np.full((len(lines), len(tasks)), np.nan)
    for i, (_, mine) in enumerate(lines):
        for j, task in enumerate(tasks):
            cell = mine.loc[mine["task"] == task, "value"]
            values[i, j] = float(cell.iloc[0]) if len(cell) else np.nan
    low, high = np.nanmin(values[:links], axis=0), np.nanmax(values[:links], axis=0)
    shade = np.clip((values - low) / np.where(high > low, high - low, 1.0), 0, 1)
    axes.imshow(np.where(np.isnan(shade), 0, shade), cmap="Blues", vmin=-0.15, vmax=1.6, aspect="auto")
    kinds = {str(row.task): str(row.metric) for _, mine in lines for row in mine.itertuples()}
    for i in range(len(lines)):
        for j, task in enumerate(tasks):
            quantity = words.quantity(kinds[task])
            text = "" if np.isnan(values[i, j]) else words.number(quantity.scale * values[i, j], quantity.digits)
            best = i < links and values[i, j] == high[j]
            axes.text(j, i, text, ha="center", va="center", size=7.5, weight="bold" if best else "normal", color=INK)
    if links < len(lines):
        axes.axhline(links - 0.5, color="white", lw=3)
    axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether one is at least as good at everything, and better at something."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def _axis(table: pd.DataFrame) -> str | None:
    """The key of a sweep whose values are names of settings: it is no path."""
    for cell in table["cell"].dropna().unique():
        for key in words.settings(str(cell)):
            if "." not in key and key not in Scenario.model_fields:
                return key
    return None


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    """Clean, pooled rows of every task's headline, with the name of the link's settings in `link`."""
    axis = _axis(table)
    parts = []
    for kind in dict.fromkeys(task_kinds(table).values()):
        rows = evaluated(table, kind)
        mine = rows[is_clean(rows) & (rows["metric"] == HEADLINES[kind]) & rows["task"].isin(tasks_of(table, kind))]
        snrs = sorted(mine[own_snr(kind)].unique())
        parts.append(mine[mine[own_snr(kind)] == snrs[len(snrs) // 2]])
    rows = pd.concat(parts)
    named = {cell: _name(str(cell), str(axis)) for cell in rows["cell"].unique()}
    rows = rows.assign(link=rows["cell"].map(named), selection=rows["selection"].fillna("score").astype(str))
    return rows[rows["selection"] != "original"]


def _name(cell: str, axis: str) -> str:
    return next(pair.partition("=")[2] for pair in cell.split("; ") if pair.partition("=")[0] == axis)


def _scored(rows: pd.DataFrame) -> pd.Series:
    return ~rows["selection"].isin(("random", "uniform", "variance", "oracle"))


def _ratios(rows: pd.DataFrame) -> list[float]:
    """The highest mask ratios, where links differ most; NaN for links without patches."""
    ratios = sorted(float(ratio) for ratio in rows["mask_ratio"].dropna().unique())
    return ratios[-MOST_RATIOS:] or [float("nan")]


def _at(rows: pd.DataFrame, ratio: float) -> pd.DataFrame:
    return rows[rows["mask_ratio"].isna() if np.isnan(ratio) else rows["mask_ratio"] == ratio]


def _title(ratio: float) -> str:
    return "" if np.isnan(ratio) else f"mask ratio {words.number(ratio)}"


def _heard_at(rows: pd.DataFrame) -> str:
    """``At SNR 10 dB and sensing SNR 0 dB.``"""
    parts = [
        words.snr(round(float(snr), 2), sensing)
        for column, sensing in (("snr_db", False), ("sensing_snr_db", True))
        for snr in rows[column].dropna().unique()
    ]
    return f"At {' and '.join(parts)}."
