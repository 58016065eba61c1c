"""Figures over SNR: how well tasks are done on a good or bad channel ([S3] figures 3, 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.attackers import Attackers
from fedsem.reporting.captions import evidence, made_for
from fedsem.reporting.panels import Curve, Level, Panel, compose
from fedsem.reporting.rows import (
    AIR,
    FACETS,
    airs,
    common,
    evaluated,
    facets_of,
    groups,
    is_clean,
    made_at,
    other_snr,
    over_air,
    own_snr,
    pooled,
    select_made_at,
    spread,
    tasks_of,
    with_words,
)
from fedsem.reporting.strokes import Links
from fedsem.reporting.style import CLEAN, DASHED, FAINT, GREY, Drawing, Stroke, mix
from fedsem.reporting.words import Kind, quantity

MOST_PSR = 3
"""PSRs under attack that get panels; more PSR values are what the figures over PSR are for."""
FEWEST_SNRS = 3
"""SNRs at which attacks must have been measured to be drawn over SNR."""
REFERENCE_LINES = {
    "energy_detector": (0, (1, 1.2)),
    "matched_filter": (0, (6, 1.5, 1, 1.5)),
    "pca": DASHED,
    "mean_image": (0, (1, 1.2)),
    "chance": (0, (1, 2.5)),
}
LINK_FACETS = (*AIR, "channel_uses", "symbols")
"""What ties a reference to the links that it stands beside, with the swept keys."""


def lacks(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> str:
    """Why there is no figure over SNR for tasks of that kind; empty where there is one."""
    if not tasks_of(table, kind):
        return f"no {kind} task was evaluated"
    rows = evaluated(table, kind)
    rows = over_air(rows[rows["metric"].isin(metrics)], kind)
    if rows.loc[is_clean(rows), own_snr(kind)].notna().sum() == 0:
        return f"no {kind} task was evaluated without attack at any {'sensing ' if kind == 'sensing' else ''}SNR"
    return ""


def draw(table: pd.DataFrame, kind: Kind, metrics: Sequence[str]) -> Drawing:
    """One panel for each task and metric, and a few more under attack where attacks were measured over SNR.

    Args:
        table: the run's table.
        kind: tasks to show.
        metrics: metrics to show, where the table has them.
    """
    rows = with_words(over_air(evaluated(table, kind), kind))
    rows = rows[rows["metric"].isin(metrics) & rows[own_snr(kind)].notna()]
    clean, shown = rows[is_clean(rows)], [m for m in metrics if (rows["metric"] == m).any()]
    references = with_words(pooled(table, "reference"))
    links = Links(clean, attacked=_most_snrs(rows, kind) >= FEWEST_SNRS)
    several = clean["task"].nunique() > 1
    panels: list[Panel] = []
    for task in tasks_of(table, kind):
        for metric in shown:
            mine = clean[(clean["task"] == task) & (clean["metric"] == metric)]
            if mine.empty:
                continue
            beside = references[(references["metric"] == metric) & references["task"].fillna(task).eq(task)]
            title = [words.plain(task)] if several or not common(clean) else [words.plain(task), *common(clean)]
            panels.append(_clean_panel(" · ".join(title), mine, beside, links, kind, metric))
    attackers = Attackers(table)
    under = _attack_panels(attackers, rows, links, kind, shown)
    caption = [evidence(table, clean[clean["metric"].isin(shown)])]
    if several and common(clean):
        caption.insert(0, words.sentence(", ".join(common(clean))))
    if 1 < len(airs(clean)) <= 4:
        caption.insert(0, f"Channels: {words.listed(airs(clean))}.")
    made = rows.loc[~is_clean(rows), other_snr(kind)]
    if under and made.nunique() == 1:
        caption.insert(0, made_for(float(made.dropna().iloc[0]), kind == "sensing"))
    if under and attackers.common:
        caption.insert(0, attackers.common)
    return compose(panels + under, " ".join(caption), group=len(shown))


def x_label(kind: Kind) -> str:
    """The axis."""
    return "Sensing SNR (dB)" if kind == "sensing" else "SNR (dB)"


def _clean_panel(
    title: str, mine: pd.DataFrame, references: pd.DataFrame, links: Links, kind: Kind, metric: str
) -> Panel:
    shown, x = quantity(metric, kind), own_snr(kind)
    curves, levels = [], []
    for decoder, rows in references.groupby("decoder", sort=False):
        variants = _variants(rows, mine, x)
        for link, variant in variants:
            stroke = Stroke(GREY, REFERENCE_LINES.get(str(decoder), DASHED), "", 1.1)
            tinted = stroke
            if len(variants) > 1 and link is not None:
                tinted = stroke.but(colour=mix(links.strokes[links.label(link)].colour, GREY, 0.45))
            label = words.REFERENCES.get(str(decoder), words.plain(str(decoder)))
            if decoder == "chance" or variant[x].isna().all():
                level = stroke.but(colour=FAINT) if decoder == "chance" else stroke
                levels.append(Level(label, shown.scale * float(variant["value"].iloc[0]), level))
            else:
                curves.append(Curve.of(variant, x, shown.scale, tinted))
                curves.append(Curve.only_legend(label, stroke))
    if kind == "sensing" and metric == "accuracy":
        levels.append(Level("Chance", 50.0, Stroke(FAINT, REFERENCE_LINES["chance"], "", 1.1)))
    for _, rows in groups(mine, links.columns):
        label = links.label(rows)
        curves.append(Curve.of(rows, x, shown.scale, links.strokes[label], label or "Learned link"))
    return Panel(title, x_label(kind), shown.label, curves, levels, (0.0, 100.0) if shown.share else None)


def _variants(references: pd.DataFrame, mine: pd.DataFrame, x: str) -> list[tuple[pd.DataFrame | None, pd.DataFrame]]:
    """The different curves of one reference, each with the rows of a link that it stands beside, if any."""
    columns = [f"@{facet}" for facet in facets_of(references) if facet in LINK_FACETS or facet not in FACETS]
    found: list[tuple[pd.DataFrame | None, pd.DataFrame]] = []
    seen = set()
    columns = [column for column in columns if column in mine.columns]
    for identity, rows in groups(references, columns):
        content = tuple(rows[[x, "value"]].drop_duplicates(x).sort_values(x).itertuples(index=False, name=None))
        # NA is not equal to itself: compare what is written.
        if str(content) in seen:
            continue
        seen.add(str(content))
        # A reference need not fill all of these columns: what it leaves empty fits any link.
        given = [(column, word) for column, word in zip(columns, identity, strict=True) if word]
        fits = mine
        for column, word in given:
            fits = fits[fits[column] == word]
        found.append((None if fits.empty else fits, rows))
    return found


def _most_snrs(rows: pd.DataFrame, kind: Kind) -> int:
    """At how many SNRs attacks were measured."""
    return int(rows.loc[~is_clean(rows) & (rows["attack"] != "noise"), own_snr(kind)].nunique())


def _attack_panels(
    attackers: Attackers, rows: pd.DataFrame, links: Links, kind: Kind, metrics: Sequence[str]
) -> list[Panel]:
    """Panels of all attacks over SNR, one for each link and PSR, where attacks were measured at three SNRs or more."""
    x, other = own_snr(kind), other_snr(kind)
    attacked = rows[~is_clean(rows) & rows["psr_db"].notna()]
    several = attacked[other].nunique() > 1
    panels = []
    for (task, *_), family in groups(attacked, ["task", *links.columns]):
        measured = []
        for psr in sorted(float(psr) for psr in family["psr_db"].unique()):
            here = family[family["psr_db"] == psr]
            parts = [select_made_at(here, kind, made) for made in made_at(here, kind)]
            measured += [(psr, part) for part in parts if _most_snrs(part, kind) >= FEWEST_SNRS]
        for psr, here in spread(measured, max(1, MOST_PSR // len(links.strokes))):
            title = [words.plain(str(task)), links.label(here), f"PSR {words.decibel(psr)}"]
            if several and here[other].nunique() == 1:
                title.append(words.snr(float(here[other].dropna().iloc[0]), kind != "sensing"))
            for metric in metrics:
                shown = quantity(metric, kind)
                calm = rows[is_clean(rows) & (rows["task"] == task) & (rows["metric"] == metric)]
                for column in links.columns:
                    calm = calm[calm[column] == here[column].iloc[0]]
                curves = [Curve.of(calm, x, shown.scale, Stroke(CLEAN), "Without attack")]
                curves += attackers.curves(here[here["metric"] == metric], x, shown.scale)
                panels.append(
                    Panel(
                        " · ".join(part for part in title if part),
                        x_label(kind),
                        shown.label,
                        curves,
                        bounds=(0.0, 100.0) if shown.share else None,
                    )
                )
    return panels
