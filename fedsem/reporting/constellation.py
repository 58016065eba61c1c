"""The figure of symbols: what was sent on air and what arrived."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedsem.reporting import words
from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.panels import Array
from fedsem.reporting.rows import spread
from fedsem.reporting.style import CLEAN, FAINT, INK, VERMILLION, Drawing, house_style

MOST_PANELS = 6
SIZE = 2.6
"""Inches of a panel."""


def lacks(samples: pd.DataFrame) -> str:
    """Why there is no figure of symbols; empty where there is one."""
    if {"sent", "received"} <= set(samples["kind"]):
        return ""
    return "the run kept no symbols (evaluation.samples)"


def draw(samples: pd.DataFrame) -> Drawing:
    """One panel for each receiver, SNR and attack that was kept: I and Q for complex symbols; for real ones what
    arrived over what was sent."""
    first = samples[samples["kind"] == "received"].iloc[0]
    same_cell = samples["cell"].isna() if pd.isna(first["cell"]) else samples["cell"] == first["cell"]
    mine = samples[(samples["seed"] == first["seed"]) & same_cell]
    mine = mine.assign(attack=mine["attack"].fillna("none"))
    sent, received = mine[mine["kind"] == "sent"], mine[mine["kind"] == "received"]
    panels = _choose(received)
    who = received[["receiver", "task"]].drop_duplicates()
    is_complex = (received["symbols"].fillna("real") == "complex").any()
    pairs = [_pairs(sent, rows) for _, rows in panels]
    frame = _frame(pairs)
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows_of_panels = -(-len(panels) // columns)
    with house_style():
        figure = Drawing(figsize=(SIZE * columns if columns > 1 else 3.5, SIZE * rows_of_panels))
        grid = figure.subplots(rows_of_panels, columns, squeeze=False)
        handles: dict[str, object] = {}
        outside = 0
        titles = [wrap(figure, _title(key, len(who) > 1), SIZE - 0.55, 8) for key, _ in panels]
        for i, (axes, (key, _), (x, y)) in enumerate(zip(grid.flat, panels, pairs, strict=False)):
            colour = CLEAN if key[2] == "none" else VERMILLION
            outside += _cloud(axes, x, y, is_complex, frame, colour, handles, key[2] != "none")
            axes.set_title(titles[i])
            if i % columns:
                axes.set_ylabel("")
            if i + columns < len(panels):
                axes.set_xlabel("")
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        note = [f"Seed {int(first['seed'])}, {mine['image'].nunique()} images, one channel draw."]
        if len(who) == 1:
            names = [words.plain(str(name)) for name in who.iloc[0] if pd.notna(name)]
            note.insert(0, words.sentence(f"receivers {', task '.join(names)}") if names else "")
        if pd.notna(first["cell"]) and first["cell"]:
            note.append(f"Of the sweep: {words.cell(str(first['cell']))}.")
        if outside:
            note.append(f"{words.count(outside)} symbols lie outside the frames.")
        if not is_complex:
            note.append("Each point is one channel use; on the line, it arrived as it was sent.")
        finish(
            figure,
            handles if is_complex else {},
            " ".join(part for part in note if part),
            (SIZE + 0.16 * max(title.count("\n") + 1 for title in titles)) * rows_of_panels,
        )
        settle(figure)
    return figure


def _choose(received: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """Panels as ((receiver, task, attack, PSR, SNR), rows): few SNRs without attack, then each attack at its highest
    PSR."""
    keys = ["receiver", "task", "attack", "psr_db", "snr_db"]
    found = [(key, rows) for key, rows in received.groupby(keys, dropna=False)]
    clean = [panel for panel in found if panel[0][2] == "none"]
    attacked = [panel for panel in found if panel[0][2] != "none"]
    strongest = {panel[0][2]: panel for panel in attacked}  # of one attack the last, with the highest PSR
    names = [name for name in dict.fromkeys(received["attack"]) if name in strongest][: MOST_PANELS // 2]
    return spread(clean, MOST_PANELS - min(len(names), MOST_PANELS // 2)) + [strongest[name] for name in names]


def _title(key: tuple, name_receiver: bool) -> str:
    receiver, task, attack, psr, snr = key
    parts = [words.plain(str(name)) for name in (receiver, task) if name_receiver and pd.notna(name)]
    if pd.notna(snr):
        parts.append(f"SNR {words.decibel(float(snr))}")
    if attack != "none":
        parts.append(words.attack_name(str(attack)) + (f" at PSR {words.decibel(float(psr))}" if pd.notna(psr) else ""))
    return " · ".join(parts)


def _pairs(sent: pd.DataFrame, received: pd.DataFrame) -> tuple[Array, Array]:
    """Numbers sent and received, (images, nc) each, of the same images; of longer receptions the first nc."""
    xs, ys = [], []
    for _, row in received.drop_duplicates("image").iterrows():
        same = sent[sent["image"] == row["image"]]
        exact = same[same["attack"] == row["attack"]]
        if pd.notna(row["psr_db"]):
            exact = exact[exact["psr_db"] == row["psr_db"]]
        match = exact if not exact.empty else same
        if match.empty:
            continue
        x = np.asarray(match["values"].iloc[0], dtype=np.float64).ravel()
        y = np.asarray(row["values"], dtype=np.float64).ravel()
        size = min(x.size, y.size)
        xs.append(x[:size])
        ys.append(y[:size])
    nothing = np.zeros((0, 2))
    return (np.stack(xs), np.stack(ys)) if xs else (nothing, nothing)


def _frame(pairs: list[tuple[Array, Array]]) -> float:
    """Half the width of all frames: nearly all symbols, not the far outliers of an inverted fade."""
    values = np.abs(np.concatenate([part.ravel() for pair in pairs for part in pair]))
    return float(1.15 * np.quantile(values, 0.98)) if values.size else 1.0


def _cloud(
    axes: Axes,
    x: Array,
    y: Array,
    is_complex: bool,
    frame: float,
    colour: str,
    handles: dict[str, object],
    attacked: bool,
) -> int:
    """Draw one panel; returns how many symbols lie outside."""
    scale = np.sqrt(2) if is_complex else 1.0
    if is_complex:
        name = "Received under attack" if attacked else "Received"
        received = axes.scatter(y[:, 0::2] / scale, y[:, 1::2] / scale, s=7, color=colour, alpha=0.5, lw=0, zorder=2)
        sent = axes.scatter(x[:, 0::2] / scale, x[:, 1::2] / scale, s=6, color=INK, marker="x", lw=0.6, zorder=3)
        handles.setdefault("Sent", sent)
        handles.setdefault(name, received)
        axes.set(xlabel="In phase", ylabel="Quadrature")
    else:
        axes.axline((0, 0), slope=1, color=FAINT, lw=0.8, zorder=1)
        axes.scatter(x, y, s=7, color=colour, alpha=0.55, lw=0, zorder=2)
        axes.set(xlabel="Sent amplitude", ylabel="Received amplitude")
    half = frame / scale
    axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    inside = (np.abs(x) <= frame) & (np.abs(y) <= frame)
    return int((~inside).sum())
