"""The figure of patches ([S0], figure 3): what arrives of an image, what is painted from it, what is found there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedsem.reporting import words
from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.rows import spread
from fedsem.reporting.style import INK, VERMILLION, Drawing, house_style

TILE = 1.25
"""Inches of a picture with the space around it."""
MOST_ROWS = 9
"""Rows beside that of the original image."""
ORDER = ("score", "random", "variance", "oracle", "uniform")
"""Ways of choosing, the first to be shown first."""
MOST_WAYS = 3
COLUMNS = {"kept": "Patches sent", "painted": "Painted", "boxes": "Detected"}


def lacks(samples: pd.DataFrame) -> str:
    """Why there is no figure of patches; empty where there is one."""
    return "" if (samples["kind"] == "painted").any() else "the run sent no patches, or kept no pictures"


def draw(samples: pd.DataFrame) -> Drawing:
    """A row for each mask ratio and way of choosing (or for each SNR, where the channel decides); the first image."""
    first = samples[samples["kind"] == "painted"].iloc[0]
    same_cell = samples["cell"].isna() if pd.isna(first["cell"]) else samples["cell"] == first["cell"]
    mine = samples[(samples["seed"] == first["seed"]) & same_cell & (samples["image"] == first["image"])]
    adapts = mine["mask_ratio"].isna().any()
    over = "snr_db" if adapts else "mask_ratio"
    chosen = mine["selection"].fillna("score")
    values = sorted(float(v) for v in mine.loc[chosen != "original", over].dropna().unique())
    rows: list[tuple[str, pd.DataFrame]] = []
    if (chosen == "original").any():
        rows.append((words.SELECTIONS["original"], mine[chosen == "original"]))
    names = [name for name in ORDER if (chosen == name).any()][:MOST_WAYS]
    for value in spread(values, MOST_ROWS // max(1, len(names))):
        for name in names:
            here = mine[(chosen == name) & (mine[over] == value)]
            if not here.empty:
                where = words.snr(value, False) if adapts else f"mask ratio {words.number(value)}"
                rows.append((f"{words.SELECTIONS[name]}\n{where}", here))
    columns = [kind for kind in COLUMNS if (mine["kind"] == kind).any()]
    with house_style():
        figure = Drawing(figsize=(TILE * (len(columns) + 1), 1))
        grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
        for i, (label, here) in enumerate(rows):
            heading: Axes = grid[i, 0]
            heading.set_axis_off()
            text = "\n".join(wrap(figure, line, TILE - 0.1, 7) for line in label.split("\n"))
            heading.text(1.0, 0.5, text, ha="right", va="center", size=7, transform=heading.transAxes)
            for j, kind in enumerate(columns):
                axes: Axes = grid[i, j + 1]
                axes.set_axis_off()
                if i == 0:
                    axes.set_title(COLUMNS[kind], size=7, loc="center")
                _tile(axes, here, kind)
        parts = [f"Seed {int(first['seed'])}."]
        if not adapts and mine["snr_db"].nunique() == 1:
            parts.insert(0, f"{words.sentence(words.snr(float(mine['snr_db'].iloc[0]), False))}")
        finish(figure, {}, " ".join(parts), len(rows) * TILE + 0.2)
        settle(figure)
    return figure


def _tile(axes: Axes, rows: pd.DataFrame, kind: str) -> None:
    """One picture; for `boxes`, the painted one with the boxes that were found."""
    found = rows[rows["kind"] == ("painted" if kind == "boxes" else kind)]
    if found.empty and kind == "kept":
        found = rows[rows["kind"] == "scene"]
    if found.empty:
        return
    picture = np.moveaxis(np.asarray(found["values"].iloc[0], np.float64), 0, -1)
    picture = np.where(np.isnan(picture), 0.62, np.clip(picture, 0, 1))
    axes.imshow(picture, vmin=0, vmax=1)
    boxes = rows[rows["kind"] == "boxes"]
    if kind != "boxes" or boxes.empty:
        return
    height, width = picture.shape[:2]
    for x1, y1, x2, y2, _, category in np.asarray(boxes["values"].iloc[0]).reshape(-1, 6):
        place: dict[str, Any] = {"fill": False, "ec": VERMILLION, "lw": 0.9}
        axes.add_patch(Rectangle((x1 * width, y1 * height), (x2 - x1) * width, (y2 - y1) * height, **place))
        axes.text(
            x1 * width, y1 * height, f"{int(category)}", size=5, color="white", va="bottom",
            bbox={"fc": INK, "ec": "none", "pad": 0.6},
        )  # fmt: skip
