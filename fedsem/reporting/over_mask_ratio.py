"""Figures over the mask ratio: what is left of a task when fewer patches are sent ([S0], Table I)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.captions import evidence
from fedsem.reporting.panels import Curve, Level, Panel, compose
from fedsem.reporting.rows import common, evaluated, groups, is_clean, own_snr, spread, tasks_of, with_words
from fedsem.reporting.strokes import Links
from fedsem.reporting.style import FAINT, Drawing, Stroke
from fedsem.reporting.words import Kind, quantity

MOST_SNR = 3
"""SNRs that get panels of their own."""


def lacks(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> str:
    """Why there is no figure over mask ratio for tasks of that kind; empty where there is one."""
    rows = _rows(table, kind, metrics)
    if rows.empty:
        return f"no {kind} task was evaluated with patches"
    return "" if rows["mask_ratio"].nunique() > 1 else f"no {kind} task was evaluated at several mask ratios"


def draw(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> Drawing:
    """One panel for each task, SNR and metric; a curve for each way of choosing patches, a level for the original
    image.

    Args:
        table: the run's table.
        kind: tasks to show.
        metrics: metrics to show, where the table has them.
    """
    rows, originals = _rows(table, kind, metrics), evaluated(table, kind)
    originals = originals[(originals["selection"].fillna("") == "original") & is_clean(originals)]
    shown = [metric for metric in metrics if (rows["metric"] == metric).any()]
    links, x = Links(rows, without=["mask_ratio"]), own_snr(kind)
    snrs = spread([float(snr) for snr in sorted(rows[x].unique())], MOST_SNR)
    panels = []
    for task in tasks_of(table, kind):
        for snr in snrs:
            for metric in shown:
                mine = rows[(rows["task"] == task) & (rows["metric"] == metric) & (rows[x] == snr)]
                if mine.empty:
                    continue
                as_shown = quantity(metric, kind)
                curves = [
                    Curve.of(link, "mask_ratio", as_shown.scale, links.strokes[links.label(link)], links.label(link))
                    for _, link in groups(mine, links.columns)
                ]
                level = originals[(originals["task"] == task) & (originals["metric"] == metric)]
                levels = []
                # The original has no error: its PSNR would be infinite.
                if not level.empty and metric not in ("mse_255", "psnr_db"):
                    value = as_shown.scale * float(level["value"].iloc[0])
                    levels.append(Level(words.SELECTIONS["original"], value, Stroke(FAINT, (0, (4, 2)), "", 1.1)))
                title = [words.plain(task), *([words.decibel(snr)] if len(snrs) > 1 else [])]
                bounds = (0.0, 100.0) if as_shown.share else None
                panels.append(Panel(" · ".join(title), "Mask ratio", as_shown.label, curves, levels, bounds))
    caption = [words.sentence(", ".join([*common(rows), *([words.snr(snrs[0], False)] if len(snrs) == 1 else [])]))]
    return compose(panels, " ".join([*caption, evidence(table, rows)]), group=len(shown))


def _rows(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> pd.DataFrame:
    rows = with_words(evaluated(table, kind))
    patches = rows["mask_ratio"].notna() & (rows["selection"].fillna("") != "original")
    return rows[patches & is_clean(rows) & rows["metric"].isin(metrics)]
