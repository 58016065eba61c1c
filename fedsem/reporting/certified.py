"""Figure of certificates: over PSR, what is certified for every attack, and what the attacks of the run leave."""

from __future__ import annotations

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.attackers import Attackers
from fedsem.reporting.captions import evidence
from fedsem.reporting.panels import Curve, Panel, compose
from fedsem.reporting.rows import (
    attacks,
    common,
    evaluated,
    groups,
    operating_points,
    own_snr,
    pooled,
    select_made_at,
    task_kinds,
    with_words,
)
from fedsem.reporting.strokes import Links
from fedsem.reporting.style import CATEGORIES, DASHED, GREY, LINES, MARKERS, Drawing, Stroke
from fedsem.reporting.words import Kind, quantity

CERTIFIED: dict[Kind, str] = {
    "classification": "accuracy",
    "sensing": "accuracy",
    "detection": "f1",
    "reconstruction": "psnr_db",
}
"""Kind of task -> the metric of which `certified_<metric>` is a bound for every attack."""


def lacks(table: pd.DataFrame) -> str:
    """Why there is no figure of certificates; empty where there is one."""
    if pooled(table, "certificate").empty:
        return "no grid names a defense that certifies, such as reception_vote or randomised_smoothing"
    return ""


def draw(table: pd.DataFrame) -> Drawing:
    """A panel for each task, link, SNR and site: of each defense a dashed curve for what is certified and a solid one
    for what each attack at that site leaves, and of the link without it the latter."""
    attackers, panels, shown = Attackers(table), [], []
    named = [name for name in attacks(table) if not table.loc[table["attack"] == name, "sites"].isna().all()]
    whole = pooled(table, "certificate")
    sites = list(whole["sites"].unique())
    colours = {name: CATEGORIES[i % len(CATEGORIES)] for i, name in enumerate(whole["defense"].unique())}
    for kind, metric in CERTIFIED.items():
        tasks = [task for task, found in task_kinds(table).items() if found == kind]
        bounds = whole[whole["task"].isin(tasks) & whole["metric"].eq(f"certified_{metric}")]
        if bounds.empty:
            continue
        left = evaluated(table, kind)
        left = left[left["metric"].eq(metric) & left["attack"].isin(named) & left["psr_db"].notna()]
        rows = with_words(pd.concat([bounds.assign(bound=True), left.assign(bound=False)]))
        rows = rows.assign(defense=rows["defense"].fillna("none"))
        shown.append(rows)
        links, x = Links(rows, without=("defense",)), own_snr(kind)
        several = rows[x].nunique() > 1
        for (task, *_), family in groups(rows, ["task", *links.columns]):
            for site, one in groups(family, ["sites"]):
                if not one["bound"].any():
                    continue
                for own, made in operating_points(one, kind):
                    here = select_made_at(one[one[x] == own], kind, made)
                    title = [words.plain(str(task)), links.label(here)]
                    title += [words.snr(own, kind == "sensing")] if several else []
                    title += [words.SITES[site[0]]] if len(sites) > 1 else []
                    heading = " · ".join(part for part in title if part)
                    above = ("PNR (dB)", own) if site[0] == "air" else None
                    panels.append(_panel(heading, here, attackers, colours, kind, metric, above))
    rows = pd.concat(shown)
    caption = ["Solid: what the attacks leave. Dashed: what is certified, for every perturbation of that power."]
    caption += [attackers.common] if attackers.common else []
    snrs = [
        words.snr(float(found[0]), x == "sensing_snr_db")
        for x in ("snr_db", "sensing_snr_db")
        if len(found := rows.loc[rows["bound"], x].dropna().unique()) == 1
    ]
    caption.append(words.sentence(", ".join([*snrs, *common(rows)])))
    caption.append(evidence(table, rows))
    return compose(panels, " ".join(part for part in caption if part))


def _panel(
    title: str,
    rows: pd.DataFrame,
    attackers: Attackers,
    colours: dict[str, str],
    kind: Kind,
    metric: str,
    above: tuple[str, float] | None,
) -> Panel:
    """Rows of one panel: of each defense its bounds and what attacks leave."""
    seen = quantity(metric, kind)
    certifying = list(rows.loc[rows["bound"], "defense"].unique())
    others = [name for name in rows["defense"].unique() if name not in certifying]
    names = [name for name in attackers.strokes if (rows["attack"] == name).any()]
    balls = rows.loc[rows["bound"], "norm"].dropna()
    curves = []
    for i, defense in enumerate([*certifying, *others]):
        mine = rows[rows["defense"] == defense]
        colour = colours.get(defense, GREY)
        label = "No defense" if defense == "none" else words.plain(str(defense))
        if defense in certifying:
            bound = mine[mine["bound"]]
            stroke, what = Stroke(colour, DASHED, "", 1.4), f"{label}, certified"
            # The same PSR is a ball for one and a cube inside it for the other.
            what += f" ({words.NORMS[bound['norm'].iloc[0]]})" if balls.nunique() > 1 else ""
            curves.append(Curve.of(bound, "psr_db", seen.scale, stroke, what))
        for j, name in enumerate(names):
            left = mine[mine["attack"] == name]
            # Within the bounds of the L-inf norm there are no attacks of the L2 norm.
            held = not (mine["bound"] & mine["norm"].eq("linf")).any() or left["norm"].eq("linf").all()
            if held and not left.empty:
                stroke = Stroke(colour, LINES[j % len(LINES)], MARKERS[i % len(MARKERS)])
                curves.append(Curve.of(left, "psr_db", seen.scale, stroke, f"{label}, under {attackers.labels[name]}"))
    return Panel(title, "PSR (dB)", seen.label, curves, [], (0.0, 100.0) if seen.share else None, above)
