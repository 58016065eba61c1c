"""Picking rows of the table: which tasks there are, which curves, and what tells the curves apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.words import Kind

AIR = ("channel", "fading", "csi")
FACETS = (
    *AIR,
    "channel_uses",
    "symbols",
    "encoder",
    "defense",
    "aggregator",
    "train_snr_db",
    "selection",
    "transport",
    "mask_ratio",
    "adversary_fraction",
    "f_assumed",
    "receiver",
    "decoder",
)
"""What can tell one trained link from another, the most telling first; whatever else a scenario sweeps follows."""

USED = (
    *("seed", "cell", "stage", "round", "task", *FACETS, "snr_db", "sensing_snr_db", "draws", "norm"),
    *("attack", "attack_params", "sites", "psr_db", "psr_achieved_db", "metric", "value", "ci_low", "ci_high", "n"),
)
"""Columns that figures and summaries look at: the others only cost time."""

T = TypeVar("T")


def task_kinds(table: pd.DataFrame) -> dict[str, Kind]:
    """Tasks that were evaluated and their kinds, told by their metrics (of a sensing task that only votes by its SNR),
    in the order of the table."""
    evaluated = table[(table["stage"] == "evaluate") & table["task"].notna()]
    kinds: dict[str, Kind] = {}
    for task, rows in evaluated.groupby("task", sort=False):
        seen = set(rows["metric"])
        if "f1" in seen:
            kinds[str(task)] = "detection"
        elif "dice" in seen:
            kinds[str(task)] = "segmentation"
        elif "pck" in seen:
            kinds[str(task)] = "keypoints"
        elif "psnr_db" in seen:
            kinds[str(task)] = "reconstruction"
        elif "misses" in seen or ("accuracy" in seen and rows["snr_db"].isna().any()):
            kinds[str(task)] = "sensing"
        elif "accuracy" in seen:
            kinds[str(task)] = "classification"
    return kinds


def tasks_of(table: pd.DataFrame, kind: Kind) -> list[str]:
    """Evaluated tasks of that kind."""
    return [task for task, found in task_kinds(table).items() if found == kind]


def own_snr(kind: Kind) -> str:
    """The column with the SNR that a task of that kind hears."""
    return "sensing_snr_db" if kind == "sensing" else "snr_db"


def other_snr(kind: Kind) -> str:
    """The column with the SNR of the other kinds; set where an attack aims at both."""
    return "snr_db" if kind == "sensing" else "sensing_snr_db"


def made_at(attacked: pd.DataFrame, kind: Kind) -> list[float | None]:
    """SNRs of the other kinds by which rows under attack must be told apart: those that perturbations were made at,
    where one SNR of this kind stands beside several of them; else None alone."""
    x, other = own_snr(kind), other_snr(kind)
    if (attacked.groupby(x, dropna=False)[other].nunique() <= 1).all():
        return [None]
    return [float(value) for value in sorted(attacked[other].dropna().unique())]


def operating_points(attacked: pd.DataFrame, kind: Kind) -> list[tuple[float, float | None]]:
    """SNRs of this kind, each with the SNRs of the other kinds that `made_at` finds there."""
    x = own_snr(kind)
    return [
        (float(own), made)
        for own in sorted(attacked[x].unique())
        for made in made_at(attacked[attacked[x] == own], kind)
    ]


def select_made_at(attacked: pd.DataFrame, kind: Kind, snr: float | None) -> pd.DataFrame:
    """Rows under attack of perturbations made at that SNR of the other kinds, and of those that depend on none."""
    other = other_snr(kind)
    return attacked if snr is None else attacked[attacked[other].isna() | attacked[other].eq(snr)]


def seeds(table: pd.DataFrame) -> list[int]:
    """The seeds of the run."""
    return sorted(int(seed) for seed in table["seed"].dropna().unique())


def pooled(table: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Rows of a stage that are pooled over seeds; those of the only seed, or without any, stand for themselves."""
    rows = table.loc[(table["stage"] == stage) & table["value"].notna(), list(USED)]
    together = rows[rows["seed"].isna()]
    return rows if together.empty and rows["seed"].nunique() <= 1 else together


def evaluated(table: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Pooled rows of the evaluation of all tasks of that kind."""
    rows = pooled(table, "evaluate")
    return rows[rows["task"].isin(tasks_of(table, kind))]


def over_air(rows: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Rows that belong into figures over SNR. Where several mask ratios were measured, those of one SNR alone do not:
    they belong into figures over mask ratio; and what the original image gives is no link."""
    rows = rows[rows["selection"].fillna("") != "original"]
    if rows["mask_ratio"].nunique() <= 1:
        return rows
    family = [rows[column].fillna("").astype(str) for column in ("task", "metric", "selection", "mask_ratio", "cell")]
    return rows[rows.groupby(family)[own_snr(kind)].transform("nunique") > 1]


def attacks(table: pd.DataFrame) -> list[str]:
    """Attacks of the run at a PSR of choice, without `none` and `noise`, in the order of the table."""
    names = table.loc[table["attack"].notna() & table["psr_db"].notna(), "attack"].unique()
    return [str(name) for name in names if name not in ("none", "noise")]


def is_clean(rows: pd.DataFrame) -> pd.Series:
    """Rows without attack."""
    return rows["attack"].fillna("none") == "none"


def companions(rows: pd.DataFrame) -> pd.Series:
    """For each row the attack that it, being noise, stands beside; "" where there is none (noise at nominal PSR)."""
    return pd.Series([_beside(params) for params in rows["attack_params"]], index=rows.index, dtype="string")


def _beside(params: object) -> str:
    if not isinstance(params, str):
        return ""
    try:
        parsed = json.loads(params)
    except ValueError:
        return ""
    return str(parsed.get("beside") or "") if isinstance(parsed, dict) else ""


def with_words(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with one text column ``@facet`` for each of `FACETS` and for each swept key, empty where the table says
    nothing; and with a column `air`, the whole channel in words."""
    columns = [*FACETS, "cell"]
    distinct = rows[columns].drop_duplicates()
    named = []
    for values in distinct.itertuples(index=False):
        row = dict(zip(columns, values, strict=True))
        swept = {} if pd.isna(row["cell"]) else words.settings(str(row["cell"]))
        named.append(
            {f"@{facet}": _word(facet, row) for facet in FACETS}
            | {f"@{key}": word for key, word in swept.items()}
            | {"air": words.air(*(_text(row, facet) for facet in AIR))}
        )
    known = pd.DataFrame(named, index=distinct.index).fillna("")
    known = known.reindex(columns=list(dict.fromkeys([*(f"@{facet}" for facet in FACETS), "air", *known.columns])))
    # Rows find their words by the number of their combination of values: NA does not merge with NA everywhere.
    number = rows.groupby(columns, dropna=False, sort=False).ngroup()
    known.index = pd.Index(number.loc[distinct.index])
    return rows.assign(**{column: number.map(known[column]) for column in known.columns})


def _text(row: dict[str, Any], column: str) -> str | None:
    return None if pd.isna(row[column]) else str(row[column])


def _word(facet: str, row: dict[str, Any]) -> str:
    """What the row's column says, in words."""
    value = _text(row, facet)
    if not value:
        return ""
    if facet == "channel":
        return words.CHANNELS.get(value, value)
    if facet == "fading":
        return words.fading(_text(row, "channel"), value)
    if facet == "csi":
        return words.csi(_text(row, "fading"), value)
    if facet == "selection":
        return words.SELECTIONS.get(value, value)
    if facet in ("receiver", "encoder", "aggregator"):
        return value if facet == "receiver" else f"{value} {facet if facet == 'encoder' else 'aggregation'}"
    templates = {
        "channel_uses": words.NC,
        "symbols": "{} symbols",
        "defense": "no defense" if value == "none" else "{} defense",
        "train_snr_db": "trained at {} dB",
        "transport": "{} transport",
        "mask_ratio": "mask ratio {}",
        "adversary_fraction": "{} adversaries",
        "f_assumed": "f = {} assumed",
        "decoder": "{} decoder",
    }
    if facet == "adversary_fraction":
        value = f"{100 * float(value):g} %"
    return templates[facet].format(value)


def facets_of(rows: pd.DataFrame) -> list[str]:
    """`FACETS` and the swept keys (rows of `with_words`)."""
    return [column.removeprefix("@") for column in rows.columns if column.startswith("@")]


def telling(rows: pd.DataFrame, without: Sequence[str] = ()) -> list[str]:
    """The fewest facets that tell the rows' links apart, the most telling kept (rows of `with_words`)."""
    facets = [facet for facet in facets_of(rows) if facet not in without]
    identities = rows[[f"@{facet}" for facet in facets]].drop_duplicates()
    kept = [facet for facet in facets if identities[f"@{facet}"].nunique() > 1]
    for facet in reversed(kept.copy()):
        rest = [f"@{other}" for other in kept if other != facet]
        whole = identities[[f"@{other}" for other in kept]].drop_duplicates()
        if rest and len(whole[rest].drop_duplicates()) == len(whole):
            kept.remove(facet)
    return kept


def common(rows: pd.DataFrame) -> list[str]:
    """The channel, nc and transport of all rows in words, where all have the same."""
    columns = ("air", "@channel_uses", "@transport")
    return [word for column in columns if rows[column].nunique() == 1 and (word := str(rows[column].iloc[0]))]


def airs(rows: pd.DataFrame) -> list[str]:
    """The channels of the rows in words."""
    return [str(word) for word in rows["air"].unique() if word]


def groups(rows: pd.DataFrame, columns: Sequence[str]) -> Iterable[tuple[tuple, pd.DataFrame]]:
    """Groups of equal values in `columns`, in the order of the table; the whole where there are no columns."""
    if not columns:
        return [((), rows)]
    return rows.groupby(list(columns), sort=False, dropna=False)


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most `most` of the values, evenly spread and with both ends; the middle one where only one is wanted."""
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[len(values) // 2]]
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
