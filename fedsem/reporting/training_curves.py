"""The figure of training: losses over rounds, and receivers whose update was lost."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.panels import Curve, Panel, compose
from fedsem.reporting.rows import common, facets_of, groups, seeds, task_kinds, telling, with_words
from fedsem.reporting.strokes import Links
from fedsem.reporting.style import ORANGE, VERMILLION, Drawing, Stroke, mix

LOST = {
    "failed_receivers": ("Receivers that failed", Stroke(VERMILLION, "-", "X", 0.8)),
    "rejected_updates": ("Updates that were rejected", Stroke(ORANGE, "-", "v", 0.8)),
}
MOST_WITH_SEEDS = 3
"""Trainings in one panel, up to which each seed has a line."""
LOSSES = {
    "reconstruction": "Training loss (MSE)",
    "classification": "Training loss (nats)",
    "sensing": "Training loss (nats)",
}


def lacks(table: pd.DataFrame) -> str:
    """Why there is no figure of training; empty where there is one."""
    rows = table[(table["stage"] == "federate") & (table["metric"] == "train_loss")]
    return "" if rows["value"].notna().any() else "no training round was recorded"


def draw(table: pd.DataFrame) -> Drawing:
    """One panel for each task's loss, thin lines for seeds and thick ones for their mean; one for losses of updates."""
    federated = with_words(table[(table["stage"] == "federate") & table["value"].notna() & table["round"].notna()])
    losses = federated[federated["metric"] == "train_loss"]
    # Groups of receivers and tasks are trained at once: only what differs within a task makes another training.
    within = [telling(rows, without=["receiver"]) for _, rows in groups(losses, ["task"])]
    links = Links(losses, without=[facet for facet in facets_of(losses) if not any(facet in known for known in within)])
    kinds = task_kinds(table)
    panels = []
    for (task,), rows in groups(losses, ["task"]) if losses["task"].notna().any() else [((None,), losses)]:
        curves = []
        for _, mine in groups(rows, links.columns):
            label = links.label(mine)
            stroke = links.strokes[label].but(marker="")
            each = mine[mine["seed"].notna()]
            thin = stroke.but(width=0.6, colour=mix(stroke.colour, "#ffffff", 0.5))
            if each["seed"].nunique() > 1 and len(links.strokes) <= MOST_WITH_SEEDS:
                curves += [Curve.of(one, "round", 1, thin) for _, one in groups(each, ["seed"])]
            mean = (mine if each.empty else each).groupby("round")["value"].mean().reset_index()
            mean = mean.assign(ci_low=np.nan, ci_high=np.nan)
            marker = "o" if len(mean) < 3 else ""
            curves.append(Curve.of(mean, "round", 1, stroke.but(marker=marker), label or "Mean over seeds"))
        title = words.plain(str(task)) if task is not None and pd.notna(task) else "All tasks"
        panels.append(Panel(title, "Round", LOSSES.get(kinds.get(str(task), ""), "Training loss"), curves))
    lost, asked = _lost(federated)
    if lost:
        panels.append(Panel("Updates lost, all seeds", "Round", "Share of receivers asked (%)", lost, bounds=(0, 100)))
    each_seed = len(links.strokes) <= MOST_WITH_SEEDS
    return compose(panels, _caption(table, losses, federated, asked, each_seed), alike=False)


def _lost(federated: pd.DataFrame) -> tuple[list[Curve], int]:
    """Share of the asked receivers that failed or were rejected in each round, if any was; and how many were asked."""
    curves, asked = [], 0
    for metric, (label, stroke) in LOST.items():
        rows = federated[(federated["metric"] == metric) & federated["seed"].notna()]
        rounds = rows.groupby("round")[["value", "n"]].sum().reset_index()
        asked = max(asked, int(rounds["n"].sum()))
        share = rounds.assign(value=100 * rounds["value"] / rounds["n"].clip(lower=1), ci_low=np.nan, ci_high=np.nan)
        curves.append(Curve.of(share, "round", 1, stroke, label))
    return [curve for curve in curves if curve.y.any()], asked


def _caption(table: pd.DataFrame, losses: pd.DataFrame, federated: pd.DataFrame, asked: int, each_seed: bool) -> str:
    parts = []
    found = seeds(table[table["stage"] == "federate"])
    examples = losses["n"].dropna()
    if common(losses):
        parts.append(words.sentence(", ".join(common(losses))))
    if len(found) > 1:
        parts.append(
            f"Thin lines: {len(found)} seeds; thick: their mean." if each_seed else f"Mean of {len(found)} seeds."
        )
    elif found:
        parts.append("1 seed.")
    if not examples.empty:
        low, high = int(examples.min()), int(examples.max())
        parts.append(
            f"n\u00a0=\u00a0{words.count(low)}{f' to {words.count(high)}' if high > low else ''} examples a round."
        )
    if asked:
        totals = [
            int(federated.loc[(federated["metric"] == metric) & federated["seed"].notna(), "value"].sum())
            for metric in LOST
        ]
        parts.append(
            f"Of {words.count(asked)} receivers asked, {words.count(totals[0]) if totals[0] else 'none'} failed; "
            f"{words.count(totals[1]) if totals[1] else 'no'} update{'' if totals[1] == 1 else 's'} rejected."
        )
    return " ".join(parts)
