"""Figures of what leaks: an eavesdropper over its SNR, and private pictures beside what adversaries made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedsem.reporting import words
from fedsem.reporting.captions import evidence
from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.over_snr import REFERENCE_LINES
from fedsem.reporting.panels import Curve, Level, Panel, compose
from fedsem.reporting.rows import groups, is_clean, pooled, spread, with_words
from fedsem.reporting.style import CLEAN, GREY, Drawing, Stroke, attack_strokes, house_style
from fedsem.reporting.words import quantity

METRICS = ("accuracy", "psnr_db", "ssim")
MOST_CELLS = 4
MOST_ROWS = 3
MOST_COLUMNS = 6
TILE = 0.98
"""Inches of a picture with the space around it."""


def lacks(table: pd.DataFrame) -> str:
    """Why there is no figure over an eavesdropper's SNR; empty where there is one."""
    return "" if len(_heard(table)) else "no eavesdropper was measured"


def _heard(table: pd.DataFrame) -> pd.DataFrame:
    rows = pooled(table, "leakage")
    return rows[rows["snr_db"].notna() & rows["metric"].isin(METRICS)]


def draw(table: pd.DataFrame) -> Drawing:
    """One panel for each task and metric: eavesdroppers over their SNR, the receivers over theirs, and what someone
    would say who has heard nothing."""
    leaks, clean = with_words(pooled(table, "leakage")), with_words(pooled(table, "evaluate"))
    heard, clean = leaks[leaks["snr_db"].notna()], clean[is_clean(clean)]
    names = _names(heard)
    strokes = attack_strokes(list(dict.fromkeys(names.values())))
    cells = spread(list(dict.fromkeys(heard["cell"].fillna(""))), MOST_CELLS)
    panels = []
    for (task,), family in groups(heard, ["task"]):
        for cell in cells:
            for metric in METRICS:
                here = family[(family["metric"] == metric) & (family["cell"].fillna("") == cell)]
                if here.empty:
                    continue
                shown = quantity(metric)
                same = (clean["task"] == task) & (clean["metric"] == metric) & (clean["cell"].fillna("") == cell)
                curves = [
                    Curve.of(link, "snr_db", shown.scale, Stroke(CLEAN), _who("Receivers", link))
                    for _, link in groups(clean[same & clean["snr_db"].notna()], ["receiver", "air"])
                ]
                for (attack,), mine in groups(here, ["attack"]):
                    name = names[str(task), str(attack)]
                    curves.append(Curve.of(mine, "snr_db", shown.scale, strokes[name], name))
                guesses = leaks[
                    (leaks["metric"] == metric)
                    & leaks["attack"].isin(here["attack"])
                    & (leaks["cell"].fillna("") == cell)
                    & leaks["snr_db"].isna()
                ].drop_duplicates("decoder")
                levels = [
                    Level(
                        words.REFERENCES.get(str(row["decoder"]), words.plain(str(row["decoder"]))),
                        shown.scale * float(row["value"]),
                        Stroke(GREY, REFERENCE_LINES["mean_image"], "", 1.1),
                    )
                    for _, row in guesses.iterrows()
                ]
                title = [words.plain(str(task)), *([words.cell(cell)] if len(cells) > 1 else [])]
                bounds = (0.0, 100.0) if shown.share else None
                panels.append(Panel(" · ".join(title), "SNR of each (dB)", shown.label, curves, levels, bounds))
    return compose(panels, f"Eavesdroppers have decoders of their own. {evidence(table, heard)}")


def _names(heard: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Task and attack -> legend label: the eavesdropper's channel, and where that does not tell those of a task apart
    its name."""
    names = {}
    for (task, attack), mine in groups(heard, ["task", "attack"]):
        air = mine["air"].iloc[0]
        alike = heard.loc[(heard["task"] == task) & (heard["air"] == air), "attack"].nunique()
        who = f"Eavesdropper {words.plain(str(attack))}" if alike > 1 else "Eavesdropper"
        names[str(task), str(attack)] = _who(who, mine)
    return names


def _who(what: str, rows: pd.DataFrame) -> str:
    air = str(rows["air"].iloc[0])
    return f"{what}, {air}" if air else what


def lacks_pictures(samples: pd.DataFrame) -> str:
    """Why there is no figure of leaked pictures; empty where there is one."""
    return "" if (samples["kind"] == "leaked").any() else "no picture leaked, or none was kept (evaluation.samples)"


@dataclass(frozen=True)
class _Point:
    """Where an adversary made pictures: at one SNR, or of updates in one round."""

    attack: str
    snr_db: float | None
    round: int | None

    def title(self) -> str:
        """The heading."""
        if self.snr_db is not None:
            return f"Leaked\n{words.decibel(self.snr_db)}"
        return f"Leaked\n{'untrained' if self.round == 0 else 'trained'} model"

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Its rows."""
        snr = rows["snr_db"].isna() if self.snr_db is None else rows["snr_db"] == self.snr_db
        here = rows[(rows["attack"] == self.attack) & snr]
        return here if self.round is None else here[here["round"] == self.round]


@dataclass(frozen=True)
class _Tile:
    """A picture with its heading, which may be empty."""

    title: str
    values: np.ndarray


def draw_pictures(samples: pd.DataFrame) -> Drawing:
    """For each adversary the private pictures and what it made of them: a row for each picture, or, where it made
    fewer of each than there are, a column."""
    mine = samples[samples["kind"].isin(("private", "leaked"))]
    first = mine.iloc[0]
    same = mine["cell"].isna() if pd.isna(first["cell"]) else mine["cell"] == first["cell"]
    mine = mine[same & (mine["seed"] == first["seed"])]
    lines = [line for (attack,), rows in groups(mine, ["attack"]) for line in _block(str(attack), rows)]
    columns, titled = max(map(len, lines)), sum(any(tile.title for tile in line) for line in lines)
    with house_style():
        figure = Drawing(figsize=(max(TILE * columns, 3.5), 1))
        grid = figure.subplots(len(lines), columns, squeeze=False)
        for i, line in enumerate(lines):
            for axes, tile in zip(grid[i], [*line, *[None] * (columns - len(line))], strict=True):
                axes.set_axis_off()
                if tile is not None:
                    title = "\n".join(wrap(figure, text, TILE - 0.08, 7) for text in tile.title.split("\n"))
                    axes.set_title(title, size=7, loc="center")
                    _draw(axes, tile.values)
        caption = f"Of an eavesdropper one channel draw at its own SNR. Seed {int(first['seed'])}."
        if pd.notna(first["cell"]) and first["cell"]:
            caption += f" Of the sweep: {words.cell(str(first['cell']))}."
        finish(figure, {}, caption, len(lines) * TILE + 0.3 * titled)
        settle(figure)
    return figure


def _block(attack: str, rows: pd.DataFrame) -> list[list[_Tile]]:
    """Lines of pictures of one adversary."""
    points = _points(attack, rows)
    images = list(dict.fromkeys(rows["image"]))
    kinds = [(f"{words.attack_name(attack)}:\nprivate", "private", points[0])]
    kinds += [(point.title(), "leaked", point) for point in points]

    def tile(title: str, kind: str, point: _Point, image: int) -> _Tile:
        found = point.of(rows[(rows["image"] == image) & (rows["kind"] == kind)])
        return _Tile(title, found["values"].iloc[0])

    if len(kinds) <= len(images):
        return [
            [tile(title if i == 0 else "", kind, point, image) for i, image in enumerate(images[: MOST_COLUMNS + 1])]
            for title, kind, point in kinds
        ]
    return [
        [tile(title if i == 0 else "", kind, point, image) for title, kind, point in kinds]
        for i, image in enumerate(images[:MOST_ROWS])
    ]


def _points(attack: str, rows: pd.DataFrame) -> list[_Point]:
    """Where this adversary made pictures, evenly spread over its SNRs or rounds."""
    found = [
        _Point(attack, None if pd.isna(snr) else float(snr), None if pd.isna(number) else int(number))
        for snr, number in rows[["snr_db", "round"]].drop_duplicates().itertuples(index=False)
    ]
    return spread(sorted(found, key=lambda one: (one.snr_db or 0.0, one.round or 0)), MOST_COLUMNS)


def _draw(axes: Axes, values: np.ndarray) -> None:
    picture = np.clip(np.moveaxis(values, 0, -1), 0, 1)
    axes.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
