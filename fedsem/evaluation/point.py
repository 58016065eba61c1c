"""One evaluation point, and how points are kept on disk between the stages of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fedsem.evaluation.average_precision import Ranking
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
        metrics: tallies by metric; average precisions as rankings.
        clean: number of the clean point with the same channel draws.
        noise: number of the point with noise of the energy that this attack achieved.
        twin: number of the same point of the model that was trained with the same seed and no attack.
        random, variance: number of the point whose patches are chosen at random, or by their variance, all else alike.
        guess: number of the point of someone who has heard nothing.
        receiver: number of the point of the receivers that the signal was meant for, at the same SNR.
        undefended: number of the same point of the trained link without its defense at test time.
    """

    columns: dict[str, Any]
    metrics: Mapping[str, Tally | Ranking]
    clean: int | None = None
    noise: int | None = None
    random: int | None = None
    variance: int | None = None
    twin: int | None = None
    guess: int | None = None
    receiver: int | None = None
    undefended: int | None = None


LINKS = ("clean", "noise", "random", "variance", "twin", "guess", "receiver", "undefended")
"""Other points that a point is compared with."""


def save_points(points: list[Point], folder: Path) -> None:
    """Write points as `points.json` and `tallies.safetensors`, the former last.

    Raises:
        OutputError: the folder cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    index: list[dict[str, Any]] = []
    for i, point in enumerate(points):
        receptions = {}
        for metric, tally in point.metrics.items():
            receptions[metric] = tally.receptions if isinstance(tally, Tally) else None
            for field in fields(tally):
                if field.name != "receptions":
                    arrays[f"{i}/{metric}/{field.name}"] = np.ascontiguousarray(getattr(tally, field.name))
        links = {name: getattr(point, name) for name in LINKS}
        index.append({"columns": point.columns, "metrics": receptions, **links})
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
            metrics: dict[str, Tally | Ranking] = {}
            for metric, receptions in entry["metrics"].items():
                kind = Ranking if receptions is None else Tally
                names = [field.name for field in fields(kind) if field.name != "receptions"]
                kept = {name: arrays[f"{i}/{metric}/{name}"] for name in names}
                metrics[metric] = Ranking(**kept) if receptions is None else Tally(**kept, receptions=receptions)
            points.append(Point(entry["columns"], metrics, **{name: entry.get(name) for name in LINKS}))
    return points
