"""From evaluation points of all seeds to rows of the table, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from fedsem.errors import FedsemError
from fedsem.evaluation.average_precision import Ranking
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.statistics import Measured, MeasuredPrecision, bootstrap
from fedsem.units import from_db, to_db

ACHIEVED = "psr_achieved_db"
AIRTIME = ("kept", "bits", "latency_s", "outage")
VARYING = (ACHIEVED, *AIRTIME)
"""Columns of a point that may differ from seed to seed."""


def over_rounds(rounds: Sequence[Sequence[Point]]) -> list[Point]:
    """The points of a link after each of several rounds as one: sums over the rounds, so that a metric is their mean,
    and images and seeds stay what its interval resamples. Rounds are no independent trials.

    Raises:
        ValueError: the rounds did not measure the same points.
    """
    if len(rounds) == 1:
        return list(rounds[0])
    if len({len(points) for points in rounds}) != 1:
        raise ValueError("rounds measured different numbers of points")
    whole = []
    for same in zip(*rounds, strict=True):
        _check_alike(same)
        columns = {**same[-1].columns, **_mean_columns(same), "rounds": len(rounds)}
        metrics: dict[str, Tally | Ranking] = {}
        for metric in same[-1].metrics:
            if all(metric in point.metrics for point in same):
                tallies = [point.metrics[metric] for point in same]
                metrics[metric] = Tally(*(sum(getattr(one, key) for one in tallies) for key in TALLY))
        whole.append(replace(same[-1], columns=columns, metrics=metrics))
    return whole


def _mean_columns(points: Sequence[Point]) -> dict[str, float]:
    """Means of `VARYING`, of powers before they are told in dB."""
    columns: dict[str, float] = {}
    if points[0].columns.get(ACHIEVED) is not None:
        columns[ACHIEVED] = to_db(float(np.mean([from_db(float(str(point.columns[ACHIEVED]))) for point in points])))
    for column in AIRTIME:
        if points[0].columns.get(column) is not None:
            columns[column] = float(np.mean([float(str(point.columns[column])) for point in points]))
    return columns


OVER_BUDGET = "over_budget"
"""Share of the images whose own perturbation has more than the point's PSR. Attacks that keep their budget have none at
every point, so that it stands in the table only where it is above 0."""
TALLY = tuple(field.name for field in fields(Tally))
COMPARED = {
    "change": "clean",
    "vs_noise": "noise",
    "vs_random": "random",
    "vs_variance": "variance",
    "vs_twin": "twin",
    "vs_guess": "guess",
    "vs_receiver": "receiver",
    "vs_undefended": "undefended",
}
"""Ending of a paired difference's name -> the link of a point to the one it is compared with."""


def rows(points: Sequence[Sequence[Point]], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows for each seed and, with `seed` empty, for all seeds together.

    Beside each metric under attack stand `<metric>_change` (minus clean) and `<metric>_vs_noise` (minus Gaussian noise
    of the energy that the attack achieved), and beside what chosen patches give `<metric>_vs_random` and
    `<metric>_vs_variance` (minus what another choice gives), and where training was poisoned `<metric>_vs_twin` (minus
    what the same link gives that was trained with the same seed and no attack), paired over images, channel draws and
    seeds. Beside what leaks stand `<metric>_vs_guess` (minus what someone says who has heard nothing) and
    `<metric>_vs_receiver` (minus what the receivers themselves make of it at the same SNR), paired over images and
    seeds.
    `psr_achieved_db` is the mean PSR over images, and over seeds where they are together, in dB; of an attack at two
    sites, of the larger.

    Args:
        points: the points of each seed, in the same order for every seed.
        seeds: the seeds.

    Raises:
        ValueError: the seeds did not measure the same points.
    """
    if len({len(of_seed) for of_seed in points}) != 1:
        raise ValueError("seeds measured different numbers of points")
    groups: list[tuple[int | None, list[int]]] = [(seed, [i]) for i, seed in enumerate(seeds)]
    groups.append((None, list(range(len(seeds)))))
    for number in range(len(points[0])):
        same = [of_seed[number] for of_seed in points]
        _check_alike(same)
        for seed, members in groups:
            chosen = [points[i] for i in members]
            yield from _point_rows(chosen, number, seed)


ATTACKS_OWN = ("attack", "attack_params", "knowledge", "sites", "targeted", "objective", "norm", "pnr_db", *VARYING)
"""Columns in which two attacks at the same evaluation point may differ."""


def differences(points: Sequence[Sequence[Point]], one: str, other: str) -> Iterator[dict[str, Any]]:
    """One attack minus another, for all seeds together, wherever both were measured at the same receivers, SNRs and
    PSR: each metric's value under either, their difference, and its interval, paired over images, channel draws and
    seeds.

    Args:
        points: the points of each seed, in the same order for every seed.
        one, other: names of attacks.
    """
    compared = [(i, point) for i, point in enumerate(points[0]) if point.columns.get("attack") == other]
    for number, point in enumerate(points[0]):
        if point.columns.get("attack") != one:
            continue
        for there in [i for i, another in compared if _alike(point, another)]:
            mine, theirs = [of_seed[number] for of_seed in points], [of_seed[there] for of_seed in points]
            for metric in point.metrics:
                if any(metric not in some.metrics for some in (*mine, *theirs)):
                    continue
                first, second = _measured(mine, metric), _measured(theirs, metric)
                if first.n == 0 or metric == OVER_BUDGET:
                    continue
                low, high = bootstrap(first.images, len(points)).difference(first, second)
                values = {"value": first.value, "other_value": second.value, "difference": first.value - second.value}
                yield {**point.columns, "metric": metric, **values, "ci_low": low, "ci_high": high, "n": first.n}


def _alike(point: Point, other: Point) -> bool:
    """Whether two attacks were measured at the same receivers, SNRs and PSR. The SNR of the other kind of tasks stands
    with those attacks alone that depend on it."""
    snrs = ("snr_db", "sensing_snr_db")
    for column in (point.columns.keys() | other.columns.keys()) - set(ATTACKS_OWN):
        here, there = point.columns.get(column), other.columns.get(column)
        if here != there and not (column in snrs and None in (here, there)):
            return False
    return True


def _point_rows(points: Sequence[Sequence[Point]], number: int, seed: int | None) -> Iterator[dict[str, Any]]:
    here = [of_seed[number] for of_seed in points]
    columns = {**here[0].columns, "seed": seed, **_mean_columns(here)}
    for metric in here[0].metrics:
        if any(metric not in point.metrics for point in here):  # a seed that drew no empty scene has no threshold
            continue
        measured = _measured(here, metric)
        if measured.n == 0:  # nothing was counted, such as misses where no target was drawn
            continue
        if metric == OVER_BUDGET and measured.value == 0:
            continue
        if not np.isfinite(measured.value):
            where = ", ".join(
                f"{key} {columns[key]}" for key in ("task", "attack", "snr_db", "psr_db") if key in columns
            )
            raise FedsemError(
                f"The metric '{metric}' ({where}) is NaN or infinite: the link diverged in training, or an objective's "
                "weight is too large; lower train.optimizer.lr, federation.server_optimizer.lr or that weight."
            )
        first = here[0].metrics[metric]
        if isinstance(first, Tally) and first.receptions == 0:  # theory: a value without chance
            yield {**columns, "metric": metric, "value": measured.value, "ci_low": measured.value,
                   "ci_high": measured.value}  # fmt: skip
            continue
        replicates = bootstrap(measured.images, len(here))
        low, high = replicates.interval(measured)
        counted = {**columns, "n": measured.n}
        yield {**counted, "metric": metric, "value": measured.value, "ci_low": low, "ci_high": high}
        for suffix, link in COMPARED.items():
            if (reference := getattr(here[0], link)) is None:
                continue
            others = [of_seed[reference] for of_seed in points]
            if any(metric not in point.metrics for point in others):
                continue
            other = _measured(others, metric)
            low, high = replicates.difference(measured, other)
            difference = measured.value - other.value
            yield {
                **counted, "metric": f"{metric}_{suffix}", "value": difference, "ci_low": low, "ci_high": high,
            }  # fmt: skip


def _measured(points: Sequence[Point], metric: str) -> Measured | MeasuredPrecision:
    found = [point.metrics[metric] for point in points]
    rankings = [one for one in found if isinstance(one, Ranking)]
    if rankings:
        return MeasuredPrecision(rankings)
    tallies = [one for one in found if isinstance(one, Tally)]
    return Measured(
        np.stack([tally.numerator for tally in tallies]),
        np.stack([tally.denominator for tally in tallies]),
        single=all(tally.receptions == 1 for tally in tallies),
    )


def _check_alike(points: Sequence[Point]) -> None:
    fixed = [{name: value for name, value in point.columns.items() if name not in VARYING} for point in points]
    if any(columns != fixed[0] for columns in fixed):
        raise ValueError(f"seeds measured different points: {fixed}")
