"""The small print below a figure: what the bands are, how many examples and seeds a point stands for."""

from __future__ import annotations

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.rows import seeds


def evidence(table: pd.DataFrame, shown: pd.DataFrame) -> str:
    """``Bands: 95 % intervals. n = 1 077 per point, 3 seeds, 32 channel draws for each image.``

    Args:
        table: the whole table, which knows the seeds.
        shown: the rows that the figure shows.
    """
    parts = []
    numbers = shown["n"].dropna()
    if not numbers.empty:
        low, high = int(numbers.min()), int(numbers.max())
        parts.append(f"n\u00a0=\u00a0{words.count(low)}{f' to {words.count(high)}' if high > low else ''} per point")
    found = seeds(table[table["stage"] == "evaluate"]) or seeds(table)
    if found:
        parts.append("1 seed" if len(found) == 1 else f"{len(found)} seeds")
    draws = sorted({int(value) for value in shown["draws"].dropna()})
    if draws:
        many = " or ".join(map(str, draws)) if len(draws) < 4 else f"{draws[0]} to {words.count(draws[-1])}"
        parts.append(f"{many} channel draw{'s' if draws != [1] else ''} for each image")
    bands = "Bands: 95\u00a0% intervals. " if (shown["ci_low"] < shown["ci_high"]).any() else ""
    return f"{bands}{', '.join(parts)}." if parts else bands.strip()


def made_for(snr_db: float, sensing: bool) -> str:
    """At which SNR of the other kinds of tasks the perturbations were made that the tasks of this kind are shown under.

    Args:
        snr_db: the SNR of the other kinds.
        sensing: whether the tasks shown are sensing tasks.
    """
    return f"Perturbations made at {words.snr(snr_db, not sensing)}."
