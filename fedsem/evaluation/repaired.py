"""A trained link after a repair, and what the repair found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.repair import Repair, Trigger
from fedsem.streams import Stream


def repaired(link: TrainedLink, defense: Repair) -> TrainedLink:
    """The link after a repair of its scenario, which is done once for a link in all its modes."""
    name = next(name for name, one in link.plan.scenario.defenses.items() if one is defense)
    if name not in link.repairs:
        link.repairs[name] = defense.repair(link, Stream(link.seed).child("repair", name))
    made = link.repairs[name]
    listeners = tuple(replace(one, decoder=made.decoders[one.name]) for one in link.listeners)
    return replace(link, transmitter=made.transmitter, listeners=listeners)


def findings(link: TrainedLink) -> tuple[list[Point], list[dict[str, Any]]]:
    """What all repairs of a link found, as points of stage `repair`, and their triggers as example pictures."""
    used = link.plan.scenario.use.defenses
    points: list[Point] = []
    pictures: list[dict[str, Any]] = []
    for name, made in link.repairs.items():
        columns = {
            "stage": "repair",
            "round": link.plan.scenario.federation.rounds,
            "attack": "none",
            "defense": "+".join([*used, name]),
        }
        about: dict[tuple[str | None, int | None], dict[str, Tally]] = {}
        for found in made.findings:
            # Nothing is drawn here but by the seed: a value without an interval of its own.
            tally = Tally(np.array([found.value]), np.ones(1), receptions=0)
            about.setdefault((found.task, found.goal), {})[found.metric] = tally
        for (task, goal), metrics in about.items():
            objective = None if goal is None else f'{{"{task}": {goal}}}'
            points.append(Point({**columns, "task": task, "objective": objective}, metrics))
        pictures += [_picture(link, number, trigger) for number, trigger in enumerate(made.triggers)]
    return points, pictures


def _picture(link: TrainedLink, number: int, trigger: Trigger) -> dict[str, Any]:
    """A trigger on black, as a row of the samples."""
    shown = (trigger.mask * trigger.pattern).cpu()
    return {
        "seed": link.seed,
        "image": number,
        "label": link.plan.dataset.classes[trigger.goal],
        "kind": "trigger",
        "task": trigger.task,
        "attack": "none",
        "shape": list(shown.shape),
        "values": [round(value, 3) for value in shown.flatten().tolist()],
    }
