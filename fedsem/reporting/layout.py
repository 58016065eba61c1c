"""What stands around the panels of a figure: wrapped text, the legend and the caption below them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend

from fedsem.reporting.style import Drawing

MARGIN = 0.06
"""Inches between the edge and what stands next to it."""
CAPTION_SIZE = 6.8
LEGEND_SIZE = 7


def text_width(figure: Drawing, text: str, size: float) -> float:
    """Width of a line of text in inches."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    width, _, _ = canvas.get_renderer().get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / figure.dpi


def wrap(figure: Drawing, text: str, width: float, size: float) -> str:
    """The text with line breaks, so that no line is wider than `width` inches (but for words that are)."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(figure, f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def finish(figure: Drawing, handles: dict[str, Any], caption: str, panel_height: float) -> None:
    """Set the figure's height to panels + legend + caption, and put legend and caption below the panels.

    Args:
        figure: of the final width; its axes are laid out by the constrained layout engine above the rest.
        handles: legend label -> artist, in order.
        caption: may be empty.
        panel_height: inches that all rows of panels take together.
    """
    width = float(figure.get_figwidth())
    note = wrap(figure, caption, width - 3 * MARGIN, CAPTION_SIZE) if caption else ""
    note_height = (note.count("\n") + 1) * CAPTION_SIZE * 1.32 / 72 + MARGIN if note else 0.0
    legend = _legend(figure, handles, width) if handles else None
    legend_height = legend.get_window_extent().height / figure.dpi + MARGIN if legend else 0.0
    below = MARGIN + note_height + legend_height
    height = panel_height + below
    figure.set_size_inches(width, height)
    figure.set_layout_engine(
        "constrained", rect=(0, below / height, 1, 1 - below / height), w_pad=0.05, h_pad=0.05, wspace=0.03
    )
    if legend:
        legend.set_bbox_to_anchor((0.5, (MARGIN + note_height) / height))
    if note:
        text = figure.text(1.5 * MARGIN / width, MARGIN / height, note, size=CAPTION_SIZE, color="#555555", va="bottom")
        text.set(linespacing=1.32, in_layout=False)


def settle(figure: Drawing) -> None:
    """Lay the figure out once and for all, in our fonts: what shows it later need not know our style."""
    figure.draw_without_rendering()
    # In our style None is no engine at all: saving then draws once instead of twice.
    figure.set_layout_engine(None)


def _legend(figure: Drawing, handles: dict[str, Any], width: float) -> Legend:
    """A legend with as many columns as fit into the width, evenly filled."""
    labels = list(handles)
    # Of each entry, in font sizes: handle, space to the text, space to the next column.
    around = (2.6 + 0.8 + 1.4) * LEGEND_SIZE / 72
    lengths = [text_width(figure, label, LEGEND_SIZE) + around for label in labels]
    for rows in range(1, len(labels) + 1):
        columns = -(-len(labels) // rows)
        if sum(float(part.max()) for part in np.array_split(lengths, columns)) <= width:
            break
    legend = figure.legend(
        list(handles.values()), labels, ncols=columns, loc="lower center", borderaxespad=0, borderpad=0.1
    )
    legend.set_in_layout(False)
    return legend
