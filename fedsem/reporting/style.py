"""How figures look: fonts, colours, line styles, and how they become files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from matplotlib import style as matplotlib_style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

INK = "#222222"
GREY = "#7f7f7f"
FAINT = "#b5b5b5"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
CLEAN = BLUE
"""Without attack. Blue is never an attack's colour."""
ATTACKS = (VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
CATEGORIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito, Color Universal Design, 2008, without the yellow that white paper swallows."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
LINES: tuple[Any, ...] = ("-", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (7, 1, 1, 1, 1, 1)))
"""Line styles that tell curves of one colour apart; dashes belong to the noise baselines."""
DASHED: Any = (0, (4, 2))

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "figure.dpi": 120,
    "savefig.dpi": 220,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType, embedded: text stays text
    "ps.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style, whatever the user's own settings are, and leave those as they were."""
    with matplotlib_style.context(STYLE, after_reset=True), warnings.catch_warnings():
        # A class name in a script that the font lacks is no reason to bother anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        subsetter = logging.getLogger("fontTools.subset")  # tells of every table of every font that it embeds
        level = subsetter.level
        subsetter.setLevel(logging.WARNING)
        try:
            yield
        finally:
            subsetter.setLevel(level)


class Drawing(Figure):
    """A figure that keeps our style when it is saved, and shows itself in a notebook without pyplot."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As matplotlib's, in our style."""
        with house_style():
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> bytes:
        return encode(self, "png")


def encode(figure: Figure, kind: Literal["png", "pdf"]) -> bytes:
    """The figure as a file of that kind; equal figures give equal bytes: no date, no version, no random names."""
    metadata: dict[str, None] = (
        {"Software": None} if kind == "png" else {"CreationDate": None, "Creator": None, "Producer": None}
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn.

    Attributes:
        colour: of line, markers and interval.
        line: matplotlib line style, "" for markers alone.
        marker: matplotlib marker, "" for none.
        width: of the line, in points.
    """

    colour: str
    line: Any = "-"
    marker: str = "o"
    width: float = 1.4

    def but(self, **changes: Any) -> Stroke:
        """The same stroke with some changes."""
        return replace(self, **changes)


def attack_strokes(attacks: Sequence[str]) -> dict[str, Stroke]:
    """One stroke for each attack of a run. In every figure of the run, an attack keeps it."""
    return {
        name: Stroke(ATTACKS[i % len(ATTACKS)], LINES[i // len(ATTACKS) % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(attacks)
    }


def noise_stroke(beside: Stroke | None) -> Stroke:
    """Noise: dashed and grey, with a tint of the attack that it stands beside."""
    colour = GREY if beside is None or beside.colour == INK else mix(beside.colour, GREY, 0.6)
    return Stroke(colour, DASHED, "", 1.0)


def mix(one: str, other: str, share: float) -> str:
    """A colour between two, `share` of the way to the other."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(one), to_rgb(other), strict=True))
    return to_hex((red, green, blue))


def ramp(steps: int) -> list[str]:
    """Colours for ordered values, from dark to light: viridis, whose order the colour-blind see too."""
    from matplotlib import colormaps

    scale = colormaps["viridis"]
    return [to_hex(scale(0.08 + 0.72 * i / max(steps - 1, 1))) for i in range(steps)]
