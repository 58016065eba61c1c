"""The figure of samples: pictures as sent, as perturbed and as reconstructed, and what the decoders said of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from fedsem.reporting import words
from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.rows import spread
from fedsem.reporting.style import GREY, INK, VERMILLION, Drawing, house_style

TILE = 0.98
"""Inches of a picture with the space around it."""
MOST_IMAGES = 6
MOST_ATTACKS = 3
PICTURES = ("original", "perturbed", "reconstruction")


@dataclass(frozen=True)
class Column:
    """A column of pictures: their kind, and under which attack (`none`: without one)."""

    kind: str
    attack: str = "none"
    psr_db: float | None = None

    def title(self) -> str:
        """The heading."""
        what = {"original": "Original", "perturbed": "Perturbed", "reconstruction": "Reconstructed"}[self.kind]
        if self.attack == "none":
            return what
        psr = "" if self.psr_db is None else f", {words.decibel(self.psr_db)}"
        return f"{what}\n{words.attack_name(self.attack)}{psr}"


def lacks(samples: pd.DataFrame) -> str:
    """Why there is no figure of samples; empty where there is one."""
    return "" if samples["kind"].isin(PICTURES).any() else "the run kept no pictures (evaluation.samples)"


def draw(samples: pd.DataFrame) -> Drawing:
    """A row for each image; columns for the original, the clean reconstruction, and up to three attacks."""
    first = samples.loc[samples["kind"].isin(PICTURES), ["seed", "cell"]].iloc[0]
    same_cell = samples["cell"].isna() if pd.isna(first["cell"]) else samples["cell"] == first["cell"]
    mine = samples[(samples["seed"] == first["seed"]) & same_cell]
    mine = mine.assign(attack=mine["attack"].fillna("none"))
    pictures = mine[mine["kind"].isin(PICTURES)]
    most = pictures["snr_db"].value_counts()
    snr = float(most[most == most.max()].index.max()) if len(most) else None
    pictures = pictures[pictures["snr_db"].isna() | (pictures["snr_db"] == snr)] if snr is not None else pictures
    images = list(dict.fromkeys(pictures["image"]))[:MOST_IMAGES]
    columns = _columns(pictures)
    with house_style():
        figure = Drawing(figsize=(max(TILE * len(columns), 3.5), 1))
        grid = figure.subplots(len(images), len(columns), squeeze=False)
        for i, image in enumerate(images):
            for j, column in enumerate(columns):
                axes = grid[i, j]
                axes.set_axis_off()
                if i == 0:
                    title = "\n".join(wrap(figure, line, TILE - 0.08, 7) for line in column.title().split("\n"))
                    axes.set_title(title, size=7, loc="center")
                # A decision stands once for each attack, below its first picture.
                decides = (column.attack, column.psr_db) not in [(left.attack, left.psr_db) for left in columns[:j]]
                _tile(axes, pictures[pictures["image"] == image], mine[mine["image"] == image], column, decides)
        lines = max(column.title().count("\n") + 1 for column in columns)
        height = len(images) * (TILE + 0.2) + 0.15 * lines
        finish(figure, {}, _caption(pictures, str(first["cell"]) if pd.notna(first["cell"]) else "", snr), height)
        settle(figure)
    return figure


def _columns(pictures: pd.DataFrame) -> list[Column]:
    """The original and the clean reconstruction, then for each attack (at few PSRs) what it did to both."""
    kinds = set(pictures.loc[pictures["attack"] == "none", "kind"])
    columns = [Column(kind) for kind in ("original", "reconstruction") if kind in kinds]
    attacked = pictures[pictures["attack"] != "none"]
    names = spread(list(dict.fromkeys(attacked["attack"])), MOST_ATTACKS)
    for name in names:
        rows = attacked[attacked["attack"] == name]
        ratios: list[float | None] = [float(psr) for psr in sorted(rows["psr_db"].dropna().unique())]
        for psr in spread(ratios or [None], MOST_ATTACKS // len(names)):
            here = _under(rows, str(name), psr)
            columns += [
                Column(kind, str(name), psr) for kind in ("perturbed", "reconstruction") if (here["kind"] == kind).any()
            ]
    return columns


def _tile(axes: Axes, pictures: pd.DataFrame, rows: pd.DataFrame, column: Column, decides: bool) -> None:
    """One picture, and below it the truth, and what the decoder says where this column `decides`."""
    found = _under(pictures[pictures["kind"] == column.kind], column.attack, column.psr_db)
    if found.empty:
        axes.text(0.5, 0.5, "not kept", ha="center", va="center", size=6.5, color=GREY)
        return
    picture = np.clip(np.moveaxis(found["values"].iloc[0], 0, -1), 0, 1)
    axes.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    labels = pictures["label"].dropna()
    truth = str(labels.iloc[0]) if not labels.empty else ""
    said = (
        [str(name) for name in _under(rows, column.attack, column.psr_db)["decision"].dropna()[:1]] if decides else []
    )
    below = [(truth, INK)] if truth and column.kind == "original" else []
    below += [(f"read as {name}", VERMILLION if truth and name != truth else INK) for name in said]
    for line, (text, colour) in enumerate(below):
        place = {"xy": (0.5, 0), "xycoords": "axes fraction", "xytext": (0, -2 - 8.5 * line)}
        axes.annotate(text, **place, textcoords="offset points", ha="center", va="top", size=6.5, color=colour)  # type: ignore[arg-type]


def _under(rows: pd.DataFrame, attack: str, psr_db: float | None) -> pd.DataFrame:
    """Rows under that attack."""
    here = rows[rows["attack"] == attack]
    return here if psr_db is None else here[here["psr_db"] == psr_db]


def _caption(pictures: pd.DataFrame, cell: str, snr: float | None) -> str:
    reconstructed = pictures[pictures["kind"] == "reconstruction"]
    parts = []
    if not reconstructed.empty:
        receiver, task = reconstructed["receiver"].iloc[0], reconstructed["task"].iloc[0]
        by = f" by receivers {words.plain(str(receiver))}" if pd.notna(receiver) else ""
        of = f" (task {words.plain(str(task))})" if pd.notna(task) else ""
        at = f" at SNR {words.decibel(snr)}" if snr is not None else ""
        parts.append(f"Reconstructed{by}{of}{at}.")
    parts.append(f"Seed {int(pictures['seed'].iloc[0])}, one channel draw.")
    if cell:
        parts.append(f"Of the sweep: {words.cell(cell)}.")
    if pictures["psr_db"].notna().any():
        parts.append("dB above pictures: PSR.")
    parts.append("In colour: a wrong decision.")
    return " ".join(parts)
