"""Which attack gets which name and stroke, and the curves of attacks and of the noise beside them."""

from __future__ import annotations

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.panels import Curve
from fedsem.reporting.rows import attacks, beside
from fedsem.reporting.style import GREY, Stroke, attack_strokes, noise_stroke

NOISE_BESIDE = "Gaussian noise (same achieved PSR)"
NOISE = "Gaussian noise"


class Attackers:
    """The attacks of a run.

    Attributes:
        strokes: attack -> stroke, the same in every figure of the run.
        labels: attack -> legend label: its name, and of norm, site and goal what differs between the attacks.
        common: what is the same for all attacks, as a sentence for the caption; may be empty.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        names = attacks(table)
        self.strokes = attack_strokes(names)
        described = {name: _description(table[table["attack"] == name]) for name in names}
        facets = list(zip(*described.values(), strict=True))
        same = [len(set(facet)) == 1 for facet in facets]
        self.labels: dict[str, str] = {}
        for name, description in described.items():
            differing = [word for word, shared in zip(description, same, strict=True) if word and not shared]
            self.labels[name] = words.attack_name(name) + (f" ({', '.join(differing)})" if differing else "")
        shared_words = [facet[0] for facet, shared in zip(facets, same, strict=True) if shared and facet[0]]
        self.common = f"Attacks: {', '.join(shared_words)}." if shared_words else ""

    def curves(self, rows: pd.DataFrame, x: str, scale: float) -> list[Curve]:
        """One curve for each attack in the rows, and dashed ones for noise: the rows of one panel, one metric."""
        noise = rows[rows["attack"] == "noise"]
        companions = noise["attack_params"].map(beside, na_action=None).astype("object")
        companions = companions.where(companions.notna(), None)
        partners = [name for name in self.strokes if (companions == name).any()]
        curves = []
        if (alone := noise[~companions.isin(partners)]).size:
            curves.append(Curve.of(alone, x, scale, noise_stroke(None), NOISE))
        for name in partners:
            stroke = noise_stroke(self.strokes[name] if 1 < len(partners) <= 6 else None)
            curves.append(Curve.of(noise[companions == name], x, scale, stroke))
        if partners:
            # The legend has one grey entry for all of them.
            empty = pd.DataFrame({x: [], "value": [], "ci_low": [], "ci_high": []}, dtype="Float64")
            curves.append(Curve.of(empty, x, scale, Stroke(GREY, noise_stroke(None).line, "", 1.0), NOISE_BESIDE))
        for name, stroke in self.strokes.items():
            mine = rows[rows["attack"] == name]
            if not mine.empty:
                curves.append(Curve.of(mine, x, scale, stroke, self.labels[name]))
        return curves


def _description(rows: pd.DataFrame) -> tuple[str, str, str]:
    """Norm, site and goal of an attack in words; empty where it has none, or (in a sweep) several."""

    def only(column: str) -> str:
        found = rows[column].dropna().unique()
        return str(found[0]) if len(found) == 1 else ""

    norm, site, goal = only("norm"), only("sites"), only("targeted")
    return (
        words.NORMS.get(norm, norm),
        words.SITES.get(site, site),
        {"True": "targeted", "False": "untargeted", "": ""}[goal],
    )
