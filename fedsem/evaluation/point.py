"""One evaluation point, and how points are kept on disk between the stages of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fedsem.files import read_json, reading, replace_file


@dataclass
class Tally:
    """Sums of a metric for each image over draws and listeners.

    Attributes:
        numerator, denominator: (N,) float64.
        receptions: draws times listeners behind each image.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    receptions: int = 0


@dataclass
class Point:
    """Metrics of a receiver group's task at one evaluation point.

    Attributes:
        columns: what stands in the table beside the metrics.
        metrics: tallies by metric.
        clean: number of the clean point with the same channel draws.
        noise: number of the point with noise of the energy that this attack achieved.
    """

    columns: dict[str, Any]
    metrics: dict[str, Tally]
    clean: int | None = None
    noise: int | None = None


def save_points(points: list[Point], folder: Path) -> None:
    """Write points as `points.json` and `tallies.safetensors`, the former last.

    Raises:
        OutputError: the folder cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    index: list[dict[str, Any]] = []
    for i, point in enumerate(points):
        for metric, tally in point.metrics.items():
            arrays[f"{i}/{metric}/numerator"] = np.ascontiguousarray(tally.numerator)
            arrays[f"{i}/{metric}/denominator"] = np.ascontiguousarray(tally.denominator)
        index.append(
            {
                "columns": point.columns,
                "metrics": {metric: tally.receptions for metric, tally in point.metrics.items()},
                "clean": point.clean,
                "noise": point.noise,
            }
        )
    replace_file(folder / "tallies.safetensors", save(arrays))
    replace_file(folder / "points.json", json.dumps(index).encode())


def load_points(folder: Path) -> list[Point]:
    """The inverse of `save_points`.

    Raises:
        OutputError: the files are damaged.
    """
    tallies, index = folder / "tallies.safetensors", folder / "points.json"
    with reading(tallies):
        arrays = load_file(tallies)
    points = []
    entries = read_json(index, list)
    with reading(index):
        for i, entry in enumerate(entries):
            metrics = {
                metric: Tally(arrays[f"{i}/{metric}/numerator"], arrays[f"{i}/{metric}/denominator"], receptions)
                for metric, receptions in entry["metrics"].items()
            }
            points.append(Point(entry["columns"], metrics, entry["clean"], entry["noise"]))
    return points
