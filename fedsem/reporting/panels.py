"""Small multiples: panels of curves with intervals, over a common horizontal axis, composed into one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fedsem.reporting.layout import finish, settle, wrap
from fedsem.reporting.style import Drawing, Stroke, house_style
from fedsem.reporting.words import number

Array = NDArray[np.float64]
WIDTH, HEIGHT = 3.5, 2.45
"""Inches of a panel: one column of a two-column page. Beyond two columns panels are narrower."""
NARROW = 2.75


@dataclass(frozen=True)
class Curve:
    """Values over x with an interval, NaN where there is none.

    Attributes:
        label: in the legend; None: not in it.
        x, y, low, high: (points,), x rising.
        stroke: how it is drawn.
    """

    label: str | None
    x: Array
    y: Array
    low: Array
    high: Array
    stroke: Stroke

    @classmethod
    def of(cls, rows: pd.DataFrame, x: str, scale: float, stroke: Stroke, label: str | None = None) -> Curve:
        """The curve of table rows over the column `x`.

        Raises:
            ValueError: one x has several values: the rows are not of one curve.
        """
        rows = rows.dropna(subset=[x]).drop_duplicates([x, "value"]).sort_values(x)
        if rows[x].duplicated().any():
            raise ValueError(f"several values at one {x}: {rows[[x, 'value']].to_dict('records')}")
        names = (x, "value", "ci_low", "ci_high")
        at, value, low, high = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names)
        return cls(label, at, scale * value, scale * low, scale * high, stroke)

    @classmethod
    def only_legend(cls, label: str, stroke: Stroke) -> Curve:
        """One entry in the legend for several curves that have none."""
        nothing = np.zeros(0)
        return cls(label, nothing, nothing, nothing, nothing, stroke)


@dataclass(frozen=True)
class Level:
    """A horizontal reference with an interval, NaN where there is none; without a label it is not in the legend."""

    label: str | None
    y: float
    stroke: Stroke
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: what this panel shows that its neighbours do not.
        x_label, y_label: with units; panels with one y_label share their limits.
        curves, levels: what is drawn.
        bounds: y never extends beyond these (such as 0 to 100 %).
        above: label of a second horizontal axis, above, and what is added to x there; None: there is none.
    """

    title: str
    x_label: str
    y_label: str
    curves: list[Curve]
    levels: list[Level] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    above: tuple[str, float] | None = None


def compose(panels: Sequence[Panel], caption: str, group: int = 1, alike: bool = True) -> Drawing:
    """A figure of all panels, with one legend and one caption below them.

    Args:
        panels: in reading order.
        caption: what holds for all panels.
        group: panels that belong side by side (metrics of one task); the first bears the title.
        alike: panels with the same y label have the same limits.
    """
    columns = _columns(len(panels), group)
    places = _places(len(panels), group, columns)
    rows = places[-1] // columns + 1
    with house_style():
        figure = Drawing(figsize=((WIDTH if columns <= 2 else NARROW) * columns, HEIGHT * rows))
        grid = figure.subplots(rows, columns, squeeze=False)
        x_limits = _x_limits(panels)
        y_limits = [_y_limits([other for other in panels if other.y_label == panel.y_label]) for panel in panels]
        found: list[tuple[int, str, Any]] = []
        panel_width = float(figure.get_figwidth()) / columns
        for place in set(range(rows * columns)) - set(places):
            grid.flat[place].remove()
        for i, panel in enumerate(panels):
            axes = grid.flat[places[i]]
            found += _draw(axes, panel)
            axes.set_title(wrap(figure, panel.title, panel_width - 0.65, 8) if i % group == 0 else "")
            axes.set_ylabel(wrap(figure, panel.y_label, HEIGHT - 0.5, 8))
            if places[i] + columns not in places:
                axes.set_xlabel(panel.x_label)
            axes.set_xlim(x_limits[panel.x_label])
            axes.set_ylim(y_limits[i] if alike else _y_limits([panel]))
            _ticks(axes, panel, panel_width - 0.8)
            if panel.above is not None:
                _second_axis(axes, *panel.above, named=places[i] < columns)
        handles: dict[str, Any] = {}
        for _, label, handle in sorted(found, key=lambda entry: entry[0]):
            handles.setdefault(label, handle)
        finish(figure, handles if len(handles) > 1 else {}, caption, HEIGHT * rows)
        settle(figure)
    return figure


def _columns(panels: int, group: int) -> int:
    if group == 1 or panels == group:
        return {1: 1, 2: 2, 3: 3, 4: 2}.get(panels, 3 if panels <= 12 else 4)
    if group == 2:
        return 4 if panels > 6 else 2
    return group if group <= 4 else 3


def _places(panels: int, group: int, columns: int) -> list[int]:
    """Where each panel goes in the grid: groups that are wider than a row start on a row of their own."""
    room = group if group <= columns else -(-group // columns) * columns
    return [i // group * room + i % group for i in range(panels)]


def _draw(axes: Axes, panel: Panel) -> list[tuple[int, str, Any]]:
    """Draw a panel; returns (rank, label, artist) for the legend: the links and attacks first, references last."""
    found: list[tuple[int, str, Any]] = []
    for level in panel.levels:
        stroke = level.stroke
        handle: Any = axes.axhline(level.y, color=stroke.colour, ls=stroke.line, lw=stroke.width, zorder=1.5)
        if level.low < level.high:
            axes.axhspan(level.low, level.high, color=stroke.colour, alpha=0.1, lw=0, zorder=1)
        if level.label is not None:
            found.append((0 if stroke.line == "-" else 3, level.label, handle))
    crowded = len(panel.curves) > 8
    for curve in panel.curves:
        stroke = curve.stroke
        (handle,) = axes.plot(
            curve.x,
            curve.y,
            color=stroke.colour,
            ls=stroke.line,
            lw=stroke.width,
            marker=stroke.marker if len(curve.x) <= 30 else "",
            mec="white",
            mew=0.4,
            zorder=3 if stroke.marker else 2,
        )
        if len(curve.x) > 1:
            # Many bands are mud: those of noise and theory go first.
            shade = (0.07 if crowded else 0.16) if stroke.marker else (0.0 if crowded else 0.1)
            axes.fill_between(curve.x, curve.low, curve.high, color=stroke.colour, alpha=shade, lw=0, zorder=1.2)
        else:
            axes.vlines(curve.x, curve.low, curve.high, color=stroke.colour, lw=1, zorder=2.5)
            if not stroke.marker:
                dash = {"color": stroke.colour, "ls": stroke.line, "lw": stroke.width, "zorder": 2.5}
                axes.hlines(curve.y, curve.x - 1.5, curve.x + 1.5, **dash)
        if curve.label is not None:
            found.append((1 if stroke.width > 1.2 else 2, curve.label, handle))
    return found


def _x_limits(panels: Sequence[Panel]) -> dict[str, tuple[float, float]]:
    """Common x limits of all panels with the same x label."""
    limits = {}
    for label in dict.fromkeys(panel.x_label for panel in panels):
        points = np.concatenate([curve.x for panel in panels if panel.x_label == label for curve in panel.curves])
        low, high = (float(points.min()), float(points.max())) if points.size else (0.0, 1.0)
        air = 0.045 * (high - low) or 5.0
        limits[label] = (low - air, high + air)
    return limits


def _y_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Limits that hold all data and intervals of the panels, with a little air; all of 0 to 100 where most is used."""
    parts = [part for panel in panels for curve in panel.curves for part in (curve.y, curve.low, curve.high)]
    parts += [np.array([level.y, level.low, level.high]) for panel in panels for level in panel.levels]
    values = np.concatenate(parts) if parts else np.zeros(0)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    bounds = panels[0].bounds
    if bounds is not None and high - low > 0.6 * (bounds[1] - bounds[0]):
        low, high = bounds
    air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - air, high + air
    if bounds is not None:
        room = 0.03 * (bounds[1] - bounds[0])
        low, high = max(low, bounds[0] - room), min(high, bounds[1] + room)
    return low, high


def _ticks(axes: Axes, panel: Panel, width: float) -> None:
    """Ticks at the measured points where there is room for them in `width` inches."""
    points = np.unique(np.concatenate([curve.x for curve in panel.curves])) if panel.curves else np.zeros(0)
    low, high = axes.get_xlim()
    if points.size == 1 or (points.size and np.diff(points).min() / (high - low) * width > 0.25):
        axes.set_xticks(points)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _second_axis(axes: Axes, label: str, shift: float, named: bool) -> None:
    """An axis above, with x + shift at the ticks of x; named in the first row of panels only."""

    def there(x: Any) -> Any:
        return x + shift

    def back(x: Any) -> Any:
        return x - shift

    second = axes.secondary_xaxis("top", functions=(there, back))
    second.set_xticks([float(x) + shift for x in axes.get_xticks()])
    second.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    if named:
        second.set_xlabel(label)
