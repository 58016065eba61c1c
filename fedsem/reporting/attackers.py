"""Which attack gets which name and stroke, and the curves of attacks and of the noise beside them."""

from __future__ import annotations

import json

import pandas as pd

from fedsem.reporting import words
from fedsem.reporting.panels import Curve
from fedsem.reporting.rows import attacks, companions
from fedsem.reporting.style import attack_strokes, noise_stroke

NOISE_BESIDE = "Gaussian noise (same achieved PSR)"
NOISE = "Gaussian noise"


class Attackers:
    """The attacks of a run.

    Attributes:
        strokes: attack -> stroke, the same in every figure of the run.
        labels: attack -> legend label: its name, and of norm, site, goal and aim what differs between the attacks.
        common: what is the same for all attacks, as a sentence for the caption; may be empty.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        names = attacks(table)
        self.strokes = attack_strokes(names)
        described = {name: _description(table[table["attack"] == name]) for name in names}
        norms, sites, goals, aims = zip(*described.values(), strict=True) if described else ((), (), (), ())
        self.labels: dict[str, str] = {}
        for name, (norm, site, goal, aim) in described.items():
            differing = [words.NORMS.get(norm, norm)] if len(set(norms)) > 1 else []
            differing += [words.SHORT_SITES.get(site, site)] if len(set(sites)) > 1 else []
            differing += ["targeted"] if len(set(goals)) > 1 and goal == "True" else []
            differing += [f"on {aim}"] if len(set(aims)) > 1 and aim else []
            said = ", ".join(word for word in differing if word)
            self.labels[name] = words.attack_name(name) + (f" ({said})" if said else "")
        shared = [words.NORMS.get(norms[0], norms[0])] if len(set(norms)) == 1 else []
        shared += [words.SITES.get(sites[0], sites[0])] if len(set(sites)) == 1 else []
        shared += [{"True": "targeted", "False": "untargeted"}.get(goals[0], "")] if len(set(goals)) == 1 else []
        shared += [f"on the loss of {aims[0]}"] if len(set(aims)) == 1 and aims[0] else []
        said = ", ".join(word for word in shared if word)
        self.common = f"Attacks: {said}." if said else ""

    def curves(self, rows: pd.DataFrame, x: str, scale: float) -> list[Curve]:
        """One curve for each attack in the rows, and dashed ones for noise: the rows of one panel, one metric."""
        noise = rows[rows["attack"] == "noise"]
        partner = companions(noise)
        partners = [name for name in self.strokes if (partner == name).any()]
        curves = []
        if (alone := noise[~partner.isin(partners)]).size:
            curves.append(Curve.of(alone, x, scale, noise_stroke(None), NOISE))
        for name in partners:
            stroke = noise_stroke(self.strokes[name] if 1 < len(partners) <= 6 else None)
            curves.append(Curve.of(noise[partner == name], x, scale, stroke))
        if partners:
            # Attacks achieve different PSRs: beside several of them it must be said whose the noise has.
            whose = len(partners) == 1 and rows["attack"].isin({*self.strokes} - {*partners}).any()
            label = f"Gaussian noise (achieved PSR of {words.attack_name(partners[0])})" if whose else NOISE_BESIDE
            curves.append(Curve.only_legend(label, noise_stroke(None)))
        for name, stroke in self.strokes.items():
            mine = rows[rows["attack"] == name]
            if not mine.empty:
                curves.append(Curve.of(mine, x, scale, stroke, self.labels[name]))
        return curves


def _description(rows: pd.DataFrame) -> tuple[str, str, str, str]:
    """Norm, site, whether it has a goal, and the tasks that it aims at, as the table has them; empty where it has none,
    or (in a sweep) several."""
    found = [rows[column].dropna().unique() for column in ("norm", "sites", "targeted", "objective")]
    norm, site, goal, objective = (str(values[0]) if len(values) == 1 else "" for values in found)
    told = json.loads(objective or "{}")
    if told == "joint":
        return norm, site, goal, "all tasks jointly"
    aims = [words.plain(task) for task, weight in told.items() if weight]
    return norm, site, goal, words.listed(aims)
