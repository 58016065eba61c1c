"""Which figure a defense is judged by: the worst that attacks of a threat left, those that know it among them.

A *threat* is a budget: the norm, the sites and the PSR of what is perturbed, in each image or on average, or the share
of malicious receivers, who spoil what the link says or plant a trigger. Of a trigger is left the share of triggered
examples of other classes that are not taken for its goal. Where no attack of a threat knows the defense, nothing is
claimed of it: an attack that is not aware of a defense may fail for reasons that a real adversary would find a way
around.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pandas as pd

from fedsem import registry
from fedsem.reporting import words
from fedsem.reporting.rows import groups, pooled, task_kinds
from fedsem.reporting.summary import ATTACKED
from fedsem.scenario import ADAPTIVE

AVERAGING = ("none", "fedavg", "fedprox")
"""Aggregators that defend against nobody."""
ATTACKS, DEFENSES = ("attacks", "use.attacks"), ("defenses", "use.defenses")
"""Swept keys whose values are the attacks, and the defenses, of a training."""
JUDGED, NO_CLAIM = "judged", "no claim"
"""Values of the table's column `verdict`."""
DECIDING: tuple[words.Kind, ...] = ("classification", "sensing")
"""Tasks of which triggers reach a share of the examples."""
PLACE = ("task", "receiver", "channel", "fading", "csi", "snr_db", "sensing_snr_db", "selection", "mask_ratio")
"""Columns that are the same where two attacks are compared."""
THREAT = ("link", "threat", *PLACE)
"""Columns of `described` that are the same for all attacks on a link under one threat at one place."""


def with_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its column `verdict`, of every task's first metric under attack and of `reached` under triggers:
    `judged` stands with the least that any attack of a threat left of a link, `no claim` with all of them where none
    knows the link's defenses."""
    marked = table.copy()
    rows = described(table[table["stage"] == "evaluate"])
    rows = rows[rows["column"] != CLEAN]
    for _, same in groups(rows, [*THREAT, "seed"]):
        if claimed(same):
            marked.loc[same["value"].astype(float).idxmin(), "verdict"] = JUDGED
        else:
            marked.loc[same.index, "verdict"] = NO_CLAIM
    return marked


def claimed(rows: pd.DataFrame) -> bool:
    """Whether rows of one link and threat (of `described`) support a claim: it has no defense, or an attack knows
    it."""
    return bool((~rows["defended"] | rows["knows"]).any())


@dataclass(frozen=True)
class Verdict:
    """What a link is judged by under one threat.

    Attributes:
        link, task: which.
        attacks: all of the threat, in words.
        worst: the one that left the least.
        value, interval: what it left.
        defended: whether the link has a defense.
        unsupported: whether no attack of the threat knows it.
    """

    link: str
    task: str
    attacks: list[str]
    worst: str
    value: str
    interval: str
    defended: bool
    unsupported: bool


def verdicts(table: pd.DataFrame) -> list[Verdict]:
    """What each link is judged by under each threat, all seeds together; empty where nothing was defended."""
    rows = described(table.loc[pooled(table, "evaluate").index])
    attacked = rows[rows["column"] != CLEAN]
    if not attacked["defended"].any():
        return []
    found = []
    for _, same in groups(attacked, THREAT):
        least = same.sort_values("value", kind="stable").iloc[0]
        shown = words.quantity(str(least["metric"]), least["kind"])
        value, low, high = (
            words.number(shown.scale * float(least[name]), shown.digits) for name in ("value", "ci_low", "ci_high")
        )
        found.append(
            Verdict(
                str(least["link"]),
                words.plain(str(least["task"])),
                list(dict.fromkeys(same["column"])),
                str(least["column"]),
                f"{value}\u00a0{shown.unit}".strip(),
                f"[{low}, {high}]",
                bool(least["defended"]),
                not claimed(same),
            )
        )
    return found


CLEAN = "no attack"


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of each task's first metric under an attack with a budget, or under none, and of triggers that were planted
    (their value is what they leave), with what a matrix is made of.

    Added columns: `kind` of the task; `link`, what is defended how, and `defended`; `column`, the attack in words, and
    `base`, the same without PSR; `threat`; and `knows`, whether the attack knows the link's defenses.
    """
    kinds = task_kinds(rows.assign(stage="evaluate"))
    rows = _noticed(rows)
    # As text: of no row at all pandas would make numbers.
    kind = rows["task"].map(kinds).astype("string")
    first = kind.map(ATTACKED).astype("string")
    # Attacks on privacy have no budget; noise is what attacks are compared with.
    attack = rows["attack"].fillna("none")
    budgeted = rows["metric"].eq(first).fillna(False) & (
        (attack == "none") | (rows["psr_db"].notna() & (attack != "noise"))
    )
    # How near a picture is to the one that is aimed at is no share.
    planted = (rows["metric"] == "reached") & kind.isin(DECIDING) & (rows["adversary_fraction"].fillna(0) > 0)
    planted &= rows["psr_db"].isna()
    mine = rows[budgeted | planted].copy()
    trigger = planted[mine.index]
    mine.loc[trigger, ["value", "ci_low", "ci_high"]] = 1 - mine.loc[trigger, ["value", "ci_high", "ci_low"]].to_numpy()
    mine.loc[trigger, "metric"] = first[mine.index][trigger]
    mine["kind"] = mine["task"].map(kinds)
    mine["attack"] = mine["attack"].fillna("none")
    mine["defense"], mine["aggregator"] = mine["defense"].fillna("none"), mine["aggregator"].fillna("none")
    mine["defended"] = (mine["defense"] != "none") | ~mine["aggregator"].isin(AVERAGING)
    trained = {cell: _trained_under(str(cell)) for cell in mine["cell"].fillna("").unique()}
    training = mine["cell"].fillna("").map(trained)
    mine["link"] = _links(mine)
    evasion = (mine["attack"] != "none") & ~trigger
    names = {name: _attack(name) for name in mine["attack"].unique()}
    decibels = [
        words.decibel(float(psr)) if acts else "" for psr, acts in zip(mine["psr_db"].fillna(0), evasion, strict=True)
    ]
    tested = mine["attack"].map(names).mask(trigger, "trigger")
    mine["base"] = [", ".join(word for word in pair if word) for pair in zip(training, tested, strict=True)]
    whole = [" ".join(word for word in pair if word) for pair in zip(mine["base"], decibels, strict=True)]
    mine["column"] = [name or CLEAN for name in whole]
    sites, norm, psr = (mine[column].astype("string").fillna("") for column in ("sites", "norm", "psr_db"))
    budget = sites + " " + norm + " " + psr
    share = mine["adversary_fraction"].astype("string").fillna("")
    mine["threat"] = budget.where(evasion, "") + share.where((training != "") | trigger, "")
    mine["threat"] += pd.Series("", index=mine.index).mask(trigger, " trigger")
    mine["threat"] += pd.Series("", index=mine.index).mask(mine["attack_params"].map(_on_average), " on average")
    known = mine["knowledge"].fillna("").str.contains(r"defense: adaptive(?:,|$)", regex=True)
    mine["knows"] = known | ((training == ADAPTIVE) & ~trigger)
    return _strongest(mine, trigger)


def _strongest(rows: pd.DataFrame, trigger: pd.Series) -> pd.DataFrame:
    """The rows, of several triggers that one training planted only the one that leaves the least; it stands for all of
    them, also for one that knows the defenses."""
    same = ["link", "column", "seed", *PLACE]
    planted = rows[trigger].sort_values("value", kind="stable")
    planted["knows"] = planted.groupby(same, dropna=False)["knows"].transform("any")
    least = planted.drop_duplicates(same)
    others = rows.drop(planted.index.difference(least.index))
    return others.assign(knows=others["knows"].where(~others.index.isin(least.index), least["knows"]).astype(bool))


def _noticed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows; behind a detector an attack has failed where it was flagged, and the link where it gave a false alarm:
    its accuracy is 1 - `undetected_error` under attack, and `passed_right` without."""
    of = ["seed", "cell", "defense", "attack", "attack_params", "norm", "sites", "psr_db", *PLACE]
    attacked = rows["attack"].fillna("none") != "none"
    told = rows[rows["metric"].eq("undetected_error").where(attacked, rows["metric"] == "passed_right")]
    if told.empty:
        return rows
    rows = rows.copy()
    found = {tuple(one[key] if pd.notna(one[key]) else None for key in of): one for one in told.to_dict("records")}
    for index, one in rows[rows["metric"] == "accuracy"].iterrows():
        other = found.get(tuple(one[key] if pd.notna(one[key]) else None for key in of))
        if other is not None:
            made = [float(other[name]) for name in ("value", "ci_low", "ci_high")]
            if other["metric"] == "undetected_error":
                made = [1 - made[0], 1 - made[2], 1 - made[1]]
            rows.loc[index, ["value", "ci_low", "ci_high"]] = made
    return rows


def _on_average(params: object) -> bool:
    """Whether an attack with these options, of the table's column `attack_params`, keeps its budget on average over
    images only."""
    kind = json.loads(params).get("kind") if isinstance(params, str) else None
    return bool(getattr(registry.names("attack").get(str(kind)), "mean_power", False))


def _settings(cell: str) -> dict[str, str]:
    """Keys and values of the table's column `cell`."""
    pairs = [setting.partition("=") for setting in cell.split("; ") if setting]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _trained_under(cell: str) -> str:
    """The attack in training that a cell's settings name; empty for none."""
    for key, value in _settings(cell).items():
        if key in ATTACKS:
            found = json.loads(value) if value.startswith("[") else [] if value == "none" else value.split("+")
            return " + ".join(words.attack_name(str(name)) for name in found)
    return ""


def _attack(name: str) -> str:
    if name.startswith(f"{ADAPTIVE}_"):
        return f"{ADAPTIVE} ({words.attack_name(name.removeprefix(f'{ADAPTIVE}_'))})"
    return "" if name == "none" else words.attack_name(name)


def _links(rows: pd.DataFrame) -> pd.Series:
    """What is defended, and how: in words what the cells' settings say but for attacks, as short as tells them
    apart."""
    cells = rows["cell"].fillna("")
    several = rows.groupby(cells)["defense"].nunique().max() > 1  # defenses of a trained link: not the cells' alone
    known: dict[tuple[str, ...], str] = {}
    for cell, defense, aggregator in zip(cells, rows["defense"], rows["aggregator"], strict=True):
        settings = {key: value for key, value in _settings(cell).items() if key not in ATTACKS}
        parts = [] if not several else [_defense(defense)]
        parts += [_setting(key, value) for key, value in settings.items() if not (several and key in DEFENSES)]
        if not settings and not several:
            parts = [_defense(defense), *([aggregator] if aggregator not in AVERAGING else [])]
        known[cell, defense, aggregator] = ", ".join(part for part in parts if part) or _defense(defense)
    bare = {label: re.sub(r" \([^()]*\)", "", label) for label in known.values()}
    short = bare if len(set(bare.values())) == len(bare) else {label: label for label in bare}
    keys = zip(cells, rows["defense"], rows["aggregator"], strict=True)
    return pd.Series([short[known[key]] for key in keys], index=rows.index, dtype="object")


def _defense(name: str) -> str:
    return "no defense" if name == "none" else words.plain(name).replace("+", " + ")


def _setting(key: str, value: str) -> str:
    if key in DEFENSES or key.endswith("aggregators"):
        if value.startswith("["):
            listed = [one if isinstance(one, str) else str(one["kind"]) for one in json.loads(value)]
            value = "+".join(listed) or "none"
        return _defense(value) if key in DEFENSES else "" if value == "none" else f"with {words.plain(value)}"
    if key.endswith("aggregator") or "." not in key:
        return words.plain(value)
    return words.cell(f"{key}={value}")
