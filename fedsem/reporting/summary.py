"""The numbers that the report prints: clean results, results under attack, and what the federation went through."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.attackers import NOISE, Attackers
from fedsem.reporting.rows import (
    attacks,
    common,
    companions,
    evaluated,
    groups,
    is_clean,
    operating_points,
    other_snr,
    own_snr,
    pooled,
    select_made_at,
    spread,
    task_kinds,
    with_words,
)
from fedsem.reporting.strokes import Links
from fedsem.reporting.words import REFERENCES, Kind, quantity

METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "reconstruction": ("mse", "psnr_db", "ssim", "lpips"),
    "sensing": ("accuracy", "detection_at_pfa_0.1"),
    "detection": ("f1", "ap50", "ap"),
    "segmentation": ("dice",),
    "keypoints": ("pck",),
}
ATTACKED: dict[Kind, str] = {
    "classification": "accuracy",
    "reconstruction": "psnr_db",
    "sensing": "accuracy",
    "detection": "f1",
    "segmentation": "dice",
    "keypoints": "pck",
}
ALARMS = ("undetected_error", "flagged")
"""What the report prints of detectors."""
MOST_COLUMNS = 9
MOST_SNR = 4


@dataclass(frozen=True)
class Cell:
    """A printed number.

    Attributes:
        value: in the unit that the table's title names.
        interval: ``[low, high]``, or what supports the number; may be empty.
        note: a remark, such as the PSR that was achieved; may be empty.
    """

    value: str = "–"
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A printed table: one line for each row label, one cell for each column."""

    title: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    note: str = ""
    quiet: set[str] = field(default_factory=set)
    """Row labels of references, to be printed in grey."""


@dataclass(frozen=True)
class Training:
    """What the federation of one cell went through, all seeds together.

    Attributes:
        untrained: receivers with a decoder that no valid update reached: it is as it was initialised.
    """

    cell: str
    rounds: int
    asked: int
    failed: int
    rejected: int
    untrained: int
    bytes_up: int
    bytes_down: int


def clean(table: pd.DataFrame) -> list[Grid]:
    """For each task and metric a grid of links (and references) over SNR, without attack."""
    grids = []
    for task, kind in task_kinds(table).items():
        x = own_snr(kind)
        rows = with_words(evaluated(table, kind))
        rows = rows[(rows["task"] == task) & is_clean(rows) & rows[x].notna()]
        references = pooled(table, "reference")
        references = references[references["task"].fillna(task).eq(task) & references[x].notna()]
        if rows.empty:
            continue
        links = Links(rows)
        for metric in METRICS[kind]:
            mine = rows[rows["metric"] == metric]
            if mine.empty:
                continue
            at = spread([float(value) for value in sorted(mine[x].unique())], MOST_COLUMNS)
            lines = [
                (links.label(link) or "Learned link", _line(link, x, at, metric, kind))
                for _, link in groups(mine, links.columns)
            ]
            quiet = set()
            # With several links each has references of its own: those are in the figure.
            for decoder, rival in references[references["metric"] == metric].groupby("decoder", sort=False):
                if links.facets or decoder == "chance":
                    continue
                label = words.REFERENCES.get(str(decoder), words.plain(str(decoder)))
                quiet.add(label)
                lines.append((label, _line(rival, x, at, metric, kind)))
            title = f"{words.plain(task)}: {quantity(metric, kind).label}"
            last = metric == [name for name in METRICS[kind] if (rows["metric"] == name).any()][-1]
            note = words.sentence(", ".join(common(rows))) if last else ""
            corner = "Sensing SNR" if kind == "sensing" else "SNR"
            grids.append(Grid(title, corner, [words.decibel(snr) for snr in at], lines, note, quiet))
    return grids


def under_attack(table: pd.DataFrame) -> list[Grid]:
    """For each task, link and SNR a grid of attacks over nominal PSR, each with the noise beside it; and where there
    was a detector, what got past it and what it flagged."""
    grids = []
    attackers = Attackers(table)
    for task, kind in task_kinds(table).items():
        x, other = own_snr(kind), other_snr(kind)
        whole = with_words(evaluated(table, kind))
        whole = whole[whole["task"] == task]
        under = whole[~is_clean(whole) & whole["psr_db"].notna()]
        links = Links(under)
        for metric in (ATTACKED[kind], *ALARMS):
            rows, attacked = whole[whole["metric"] == metric], under[under["metric"] == metric]
            if attacked.empty:
                continue
            for _, family in groups(attacked, links.columns):
                points = operating_points(family, kind)
                for own, made in spread(points, MOST_SNR):
                    here = select_made_at(family[family[x] == own], kind, made)
                    calm = rows[is_clean(rows) & (rows[x] == own)]
                    for column in links.columns:
                        calm = calm[calm[column] == family[column].iloc[0]]
                    snrs = words.snr(own, kind == "sensing")
                    if here[other].notna().any():
                        snrs += f" · {words.snr(float(here[other].dropna().iloc[0]), kind != 'sensing')}"
                    grids.append(_attack_grid(task, kind, metric, here, calm, attackers, links.label(family), snrs))
    return grids


LEAKED = ("accuracy", "psnr_db", "ssim")


def leaks(table: pd.DataFrame) -> list[Grid]:
    """For each task and metric a grid of eavesdroppers over their SNR, and one of pictures out of updates, each with
    what someone would have said who has seen nothing."""
    rows = with_words(pooled(table, "leakage"))
    guesses = set(REFERENCES) & set(rows["decoder"].dropna())
    heard = rows[rows["snr_db"].notna()]
    grids = []
    for (task, cell), family in groups(heard.assign(cell=heard["cell"].fillna("")), ["task", "cell"]):
        for metric in (metric for metric in LEAKED if (family["metric"] == metric).any()):
            mine = family[family["metric"] == metric]
            at = spread([float(value) for value in sorted(mine["snr_db"].unique())], MOST_COLUMNS)
            lines = [
                (words.attack_name(str(attack)), _line(one, "snr_db", at, metric, "classification"))
                for (attack,), one in groups(mine, ["attack"])
            ]
            beside = rows[rows["decoder"].isin(guesses) & rows["attack"].isin(mine["attack"])]
            beside = beside[(beside["metric"] == metric) & (beside["cell"].fillna("") == cell)]
            noted = [
                f"{REFERENCES[str(row['decoder'])]}: {found.value} {found.interval}."
                for row in beside.drop_duplicates("decoder").to_dict("records")
                for found in [_cell(row, metric, "classification")]
            ]
            title = " · ".join(part for part in (words.plain(str(task)), words.cell(str(cell))) if part)
            title += f": {quantity(metric).label}"
            grids.append(Grid(title, "Its SNR", [words.decibel(snr) for snr in at], lines, " ".join(noted)))
    looked = rows[rows["attack"].isin(rows.loc[rows["metric"] == "gradient_distance", "attack"])]
    for (cell,), family in groups(looked.assign(cell=looked["cell"].fillna("")), ["cell"]):
        metrics = [metric for metric in ("psnr_db", "ssim", "gradient_distance") if (family["metric"] == metric).any()]
        lines, quiet = [], set()
        for (attack, decoder, number), one in groups(family, ["attack", "decoder", "round"]):
            moment = "untrained model" if number == 0 else "trained model"
            what = REFERENCES[str(decoder)].lower() if decoder in guesses else moment
            label = f"{words.attack_name(str(attack))}, {what}"
            found = {row["metric"]: row for row in one.to_dict("records")}
            lines.append((label, [_cell(found[m], m, "reconstruction") if m in found else Cell() for m in metrics]))
            if decoder in guesses:
                quiet.add(label)
        title = " · ".join(part for part in ("Pictures out of updates", words.cell(str(cell))) if part)
        grids.append(Grid(title, "Attack", [quantity(metric).label for metric in metrics], lines, "", quiet))
    return grids


def _attack_grid(
    task: str,
    kind: Kind,
    metric: str,
    here: pd.DataFrame,
    calm: pd.DataFrame,
    attackers: Attackers,
    link: str,
    snrs: str,
) -> Grid:
    at = spread([float(value) for value in sorted(here["psr_db"].unique())], MOST_COLUMNS)
    partner = companions(here)
    noise = here["attack"] == "noise"
    lines, quiet = [], set()
    for name in attacks(here):
        mine = here[here["attack"] == name]
        lines.append((attackers.labels[name], _line(mine, "psr_db", at, metric, kind)))
        rival = here[noise & (partner == name)]
        if not rival.empty:
            label = f"noise beside {words.attack_name(name)}"
            quiet.add(label)
            lines.append((label, _line(rival, "psr_db", at, metric, kind)))
    alone = here[noise & ~partner.isin(attacks(here))]
    if not alone.empty:
        quiet.add(NOISE)
        lines.append((NOISE, _line(alone, "psr_db", at, metric, kind)))
    parts = [words.plain(task), link, snrs]
    title = f"{' · '.join(part for part in parts if part)}: {quantity(metric, kind).label}"
    note = ""
    if not calm.empty:
        without = _cell(calm.iloc[0].to_dict(), metric, kind)
        note = f"Without attack {without.value} {without.interval}."
    note = " ".join(part for part in (note, attackers.common, "Small print: PSR achieved, where it differs.") if part)
    return Grid(title, "PSR", [words.decibel(psr) for psr in at], lines, note, quiet)


def _line(rows: pd.DataFrame, x: str, at: Sequence[float], metric: str, kind: Kind) -> list[Cell]:
    """The rows at those values of `x`, printed; of several rows with one value, the first."""
    found = {float(row[x]): row for row in reversed(rows.to_dict("records"))}
    return [_cell(found[value], metric, kind) if value in found else Cell() for value in at]


def _cell(row: Mapping[Hashable, Any], metric: str, kind: Kind) -> Cell:
    """One row, printed."""
    shown = quantity(metric, kind)

    def text(column: str) -> str:
        return words.number(shown.scale * float(row[column]), shown.digits)

    interval = ""
    if pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        sure = row["ci_low"] == row["ci_high"]
        interval = "" if sure else f"[{text('ci_low')}, {text('ci_high')}]"
    elif pd.notna(row["n"]):
        interval = f"n\u00a0=\u00a0{words.count(float(row['n']))}"
    note = ""
    if pd.notna(row["psr_achieved_db"]) and abs(row["psr_achieved_db"] - row["psr_db"]) >= 0.05:
        achieved = float(row["psr_achieved_db"])
        note = "nothing" if achieved == -math.inf else f"{words.number(achieved, 1)}\u00a0dB"
    return Cell(text("value"), interval, note)


def federation(table: pd.DataFrame) -> list[Training]:
    """What the federation of each cell went through."""
    rows = table[(table["stage"] == "federate") & table["round"].notna()]
    found = []
    for (cell,), mine in groups(rows.assign(cell=rows["cell"].fillna("")), ["cell"]):
        # Traffic stands in every row of a round: count each round once.
        traffic = mine.groupby(["seed", "round"], dropna=False)[["bytes_up", "bytes_down"]].max().fillna(0).sum()
        at_the_end = mine[(mine["metric"] == "untrained_receivers") & (mine["round"] == mine["round"].max())]
        lost = {name: mine[mine["metric"] == name] for name in ("failed_receivers", "rejected_updates")}
        found.append(
            Training(
                words.cell(str(cell)),
                int(mine["round"].max()),
                max(_total(rows["n"]) for rows in lost.values()),
                _total(lost["failed_receivers"]["value"]),
                _total(lost["rejected_updates"]["value"]),
                _total(at_the_end["value"]),
                int(traffic["bytes_up"]),
                int(traffic["bytes_down"]),
            )
        )
    return found


def _total(values: pd.Series) -> int:
    return int(values.fillna(0).sum())


def headlines(table: pd.DataFrame, most: int = 6) -> list[tuple[str, str, str]]:
    """A few (what, value, interval) that sum a run up: each task's first metric at the highest SNR, of few links."""
    found: list[tuple[str, str, str]] = []
    kinds = task_kinds(table)
    shown = {words.plain(task): quantity(METRICS[kind][0], kind) for task, kind in kinds.items()}
    for grid in clean(table):
        task, _, metric = grid.title.partition(": ")
        if metric != shown[task].label:
            continue
        lines = [row for row in grid.rows if row[0] not in grid.quiet]
        for label, cells in spread(lines, max(1, most // len(kinds))):
            link = f" ({label})" if len(lines) > 1 else ""
            unit = f"\u00a0{shown[task].unit}" if shown[task].unit else ""
            what = (
                f"{task}{link}: {shown[task].short} at {grid.corner.replace('Sensing', 'sensing')} {grid.columns[-1]}"
            )
            found.append((what, f"{cells[-1].value}{unit}", cells[-1].interval))
    return found[:most]
