"""Figures over PSR: how tasks fare under attacks of growing power ([S3] figure 6)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.attackers import Attackers
from fedsem.reporting.captions import evidence, made_for
from fedsem.reporting.over_snr import REFERENCE_LINES
from fedsem.reporting.panels import Level, Panel, compose
from fedsem.reporting.rows import (
    airs,
    common,
    evaluated,
    groups,
    is_clean,
    operating_points,
    other_snr,
    own_snr,
    pooled,
    select_made_at,
    spread,
    tasks_of,
    with_words,
)
from fedsem.reporting.strokes import Links
from fedsem.reporting.style import CLEAN, FAINT, GREY, Drawing, Stroke
from fedsem.reporting.words import Kind, quantity

MOST_GROUPS = 12
"""Rows of panels in a figure, before SNRs are left out."""
MOST_SNR = 4


def lacks(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> str:
    """Why there is no figure over PSR for tasks of that kind; empty where there is one."""
    if not tasks_of(table, kind):
        return f"no {kind} task was evaluated"
    rows = evaluated(table, kind)
    rows = rows[rows["metric"].isin(metrics)]
    if rows.empty:
        return f"the table has no {words.listed(metrics, 'or')} of a {kind} task"
    if not (~is_clean(rows) & rows["psr_db"].notna()).any():
        return f"no {kind} task was evaluated under attack; add a grid with 'attacks' and 'psr_db' to the scenario"
    return ""


def draw(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> Drawing:
    """Panels of all attacks over nominal PSR, of those over the air over PNR = PSR + SNR too: for each task, link and
    SNR one for each metric.

    Args:
        table: the run's table.
        kind: tasks to show.
        metrics: metrics to show, where the table has them.
    """
    x, other = own_snr(kind), other_snr(kind)
    rows = with_words(evaluated(table, kind))
    # What tells this figure's links from others of the run belongs into their titles.
    links = Links(rows[~is_clean(rows) & rows["psr_db"].notna()])
    rows = rows[rows["metric"].isin(metrics)]
    attacked = rows[~is_clean(rows) & rows["psr_db"].notna()]
    apart = _apart(attacked)
    attacked = attacked[~attacked["psr_db"].isin(apart)]
    clean, references = rows[is_clean(rows)], pooled(table, "reference")
    shown = [metric for metric in metrics if (attacked["metric"] == metric).any()]
    attackers = Attackers(table)
    sensing = kind == "sensing"
    families = list(groups(attacked, ["task", *links.columns]))
    most = max(1, min(MOST_SNR, MOST_GROUPS // len(families)))
    panels: list[Panel] = []
    chosen, measured = set(), set()
    on_air = bool((attacked["sites"] == "air").all())
    several, several_made = attacked[x].nunique() > 1, attacked[other].nunique() > 1
    for (task, *_), family in families:
        points = operating_points(family, kind)
        measured.update(points)
        for own, made in spread(points, most):
            chosen.add((own, made))
            here = select_made_at(family[family[x] == own], kind, made)
            calm = clean[(clean["task"] == task) & (clean[x] == own)]
            for column in links.columns:
                calm = calm[calm[column] == here[column].iloc[0]]
            level = references[references["task"].fillna(task).eq(task) & references[x].fillna(own).eq(own)]
            title = [words.plain(str(task)), links.label(here)]
            if several:
                title.append(words.snr(own, sensing))
            if several_made and here[other].notna().any():
                title.append(words.snr(float(here[other].dropna().iloc[0]), not sensing))
            heading = " · ".join(part for part in title if part)
            above = ("PNR (dB)", own) if on_air else None
            panels += [_panel(heading, here, calm, level, attackers, kind, metric, above) for metric in shown]
    caption = [attackers.common]
    if not several:
        snr = words.snr(float(attacked[x].iloc[0]), sensing)
        caption.append(words.sentence(", ".join([snr, *common(attacked)])))
    elif common(attacked):
        caption.append(words.sentence(", ".join(common(attacked))))
    if attacked[other].nunique() == 1:
        caption.append(made_for(float(attacked[other].dropna().iloc[0]), sensing))
    if 1 < len(airs(attacked)) <= 4:
        caption.append(f"Channels: {words.listed(airs(attacked))}.")
    if len(chosen) < len(measured):
        caption.append(f"{len(chosen)} of {len(measured)} SNRs are shown; the table has all.")
    if apart:
        caption.append(f"{words.decibel(apart[0])} is in the table alone.")
    if not on_air:
        caption.append("PSR is nominal; the table also has what was achieved after clipping.")
    caption.append(evidence(table, attacked[attacked["metric"].isin(shown)]))
    return compose(panels, " ".join(part for part in caption if part), group=len(shown))


def _apart(attacked: pd.DataFrame) -> list[float]:
    """The lowest PSR where it lies farther from all others than they do from each other, and by 25 dB at least: a check
    that nothing happens there would leave no room for what does happen."""
    psrs = sorted(float(psr) for psr in attacked["psr_db"].unique())
    lone = len(psrs) > 2 and psrs[1] - psrs[0] >= max(25.0, psrs[-1] - psrs[1])
    return psrs[:1] if lone else []


def _panel(
    title: str,
    attacked: pd.DataFrame,
    clean: pd.DataFrame,
    references: pd.DataFrame,
    attackers: Attackers,
    kind: Kind,
    metric: str,
    above: tuple[str, float] | None,
) -> Panel:
    """All attacks over PSR, with the clean value and what chance or a guess would give as horizontal lines."""
    shown = quantity(metric, kind)
    curves = attackers.curves(attacked[attacked["metric"] == metric], "psr_db", shown.scale)
    levels = [
        Level(
            "Without attack",
            shown.scale * float(row["value"]),
            Stroke(CLEAN, "-", "", 1.1),
            shown.scale * float(row["ci_low"]) if pd.notna(row["ci_low"]) else float("nan"),
            shown.scale * float(row["ci_high"]) if pd.notna(row["ci_high"]) else float("nan"),
        )
        for _, row in clean[clean["metric"] == metric].head(1).iterrows()
    ]
    for _, row in references[references["metric"] == metric].drop_duplicates("decoder").iterrows():
        decoder = str(row["decoder"])
        if decoder in ("chance", "mean_image"):
            stroke = Stroke(FAINT if decoder == "chance" else GREY, REFERENCE_LINES[decoder], "", 1.1)
            levels.append(Level(words.REFERENCES[decoder], shown.scale * float(row["value"]), stroke))
    if kind == "sensing" and metric == "accuracy":
        levels.append(Level("Chance", 50.0, Stroke(FAINT, REFERENCE_LINES["chance"], "", 1.1)))
    if metric.endswith(("_vs_noise", "_change")):
        levels.append(Level(None, 0.0, Stroke(FAINT, "-", "", 0.9)))
    bounds = (0.0, 100.0) if shown.share else None
    return Panel(title, "PSR (dB)", shown.label, curves, levels, bounds, above)
