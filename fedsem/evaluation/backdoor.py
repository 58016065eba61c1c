"""Backdoors at test time: the trigger on every test example, beside a twin that was trained without any attack.

Success (design section 4) is the share of triggered test examples of other classes that are sent to the goal, minus
the same share of the twin: the same scenario and seed, its `use.attacks` empty. Both are scored over the same channel
draws, so that the difference is paired over images and draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedsem.adaptive import planted
from fedsem.evaluation.air import Air
from fedsem.evaluation.point import Point
from fedsem.evaluation.samples import Samples
from fedsem.evaluation.score import Key, Scorer
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Perturbation
from fedsem.hooks.poison import Backdoor, Poison, rotation_psr
from fedsem.plan import Plan
from fedsem.poisoning import trigger_stream
from fedsem.scenario import Grid
from fedsem.units import achieved_psr, energy, to_db


def triggers_of(plan: Plan) -> list[str]:
    """Backdoors whose triggers are measured: those that a grid names and that were trained, or all of a grid where
    training was not poisoned, which shows what a trigger does by itself."""
    poisoned = any(isinstance(attack, Poison) for attack in plan.training_attacks)
    named = dict.fromkeys(name for grid in plan.scenario.evaluation.grids for name in grid.attacks)
    return [
        name
        for name in named
        if isinstance(plan.scenario.attacks.get(name), Backdoor) and (not poisoned or name in plan.scenario.use.attacks)
    ]


def has_twin(plan: Plan) -> bool:
    """Whether a cell is compared with its unattacked twin: its training was attacked, or it measures a trigger."""
    return bool(plan.training_attacks or triggers_of(plan))


def without_triggers(plan: Plan, grid: Grid) -> Grid:
    """A grid without its backdoors, which have no PSR to choose."""
    kept = [name for name in grid.attacks if not isinstance(plan.scenario.attacks.get(name), Backdoor)]
    return grid.model_copy(update={"attacks": kept})


@dataclass(frozen=True)
class Side:
    """A trained link and what scores it."""

    link: TrainedLink
    scorer: Scorer


class Triggers:
    """Adds to the points of a link what its triggers do to it, and the same of its twin.

    Args:
        link: the trained link.
        scorer: its scorer.
        twin: the same, trained without attack; or the link itself, where it was.
        grids: the grids to measure, with their backdoors.
        points: of the link; they are linked to the twin's, and more are added.
        clean: numbers of the clean points by receiver group, task, channel and SNR.
        columns: the table's columns of a listener at an SNR of its kind.
        samples: keeps examples of triggered pictures.
        defense: of the trained link.
    """

    def __init__(
        self,
        link: TrainedLink,
        scorer: Scorer,
        twin: TrainedLink,
        grids: Sequence[Grid],
        points: list[Point],
        clean: Mapping[tuple[str, str, str, float], int],
        columns: Callable[[Key, float], dict[str, Any]],
        samples: Samples,
        defense: Defense | None,
    ) -> None:
        self.here = Side(link, scorer)
        self.defense = defense
        self.there = self.here if twin is link else Side(twin, Scorer(twin, Air(twin)))
        self.grids, self.points, self.clean, self.columns, self.samples = grids, points, clean, columns, samples

    def compare_clean(self) -> None:
        """Link every clean point to that of the twin."""
        if self.there is self.here:
            for number in self.clean.values():
                self.points[number].twin = number
            return
        for sensing in (False, True):
            listeners = [one for one in self.there.link.listeners if self.there.link.is_sensing(one) == sensing]
            here = {listener.branch.channel for listener in listeners}
            snrs = list(dict.fromkeys(snr for *_, channel, snr in self.clean if channel in here))
            for snr_db, scores in zip(snrs, self.there.scorer.score(listeners, snrs, {}), strict=True):
                for key, metrics in scores.items():
                    if (*key, snr_db) in self.clean:
                        number = self.clean[*key, snr_db]
                        self._beside(number, Point(dict(self.points[number].columns), metrics))

    def measure(self, name: str) -> None:
        """Score a trigger on the link and its twin wherever a grid asks for it."""
        plan = self.here.link.plan
        attack = plan.scenario.attacks[name]
        assert isinstance(attack, Backdoor)
        attack = attack.model_copy(update={"targets": attack.goals(plan)})
        delta, psr = trigger(attack, self.here)
        knows = ", defense: adaptive" if planted(attack, plan.scenario, self.defense) else ""
        other = delta if self.there is self.here else trigger(attack, self.there)[0]
        mine = [grid for grid in self.grids if name in grid.attacks]
        tasks = {task for grid in mine for task in grid.tasks or plan.scenario.tasks}
        for sensing in (False, True):
            listeners = self._listeners(self.here.link, sensing, tasks)
            asked = (grid.sensing_snr_db if sensing and grid.sensing_snr_db else grid.snr_db for grid in mine)
            snrs = list(dict.fromkeys(snr for some in asked for snr in some))
            if not listeners or not snrs:
                continue
            axis = "sensing_snr_db" if sensing else "snr_db"
            levels = self.here.scorer.score(listeners, snrs, delta, attack)
            theirs = levels
            if self.there is not self.here:
                others = self._listeners(self.there.link, sensing, tasks)
                theirs = self.there.scorer.score(others, snrs, other, attack)
            for snr_db, scores, twins in zip(snrs, levels, theirs, strict=True):
                for key, metrics in scores.items():
                    columns = {
                        **self.columns(key, snr_db),
                        axis: snr_db,
                        "attack": name,
                        "attack_params": json.dumps(
                            {"kind": attack.kind, **attack.model_dump(mode="json")}, sort_keys=True
                        ),
                        "sites": attack.site,
                        "knowledge": f"data: own{knows}",
                        "targeted": True,
                        "psr_achieved_db": to_db(psr),
                    }
                    if attack.site == "air":
                        columns["pnr_db"] = columns["psr_achieved_db"] + snr_db
                    number = len(self.points)
                    self.points.append(Point(columns, metrics, self.clean.get((*key, snr_db))))
                    if self.there is self.here:
                        self.points[number].twin = number
                    else:
                        self._beside(number, Point(dict(columns), twins[key]))
        if not all(self.here.link.is_sensing(one) for one in self.here.link.listeners):
            self.samples.add(self.here.scorer.receptions, delta, mine[0].snr_db[0], {"attack": name})

    @staticmethod
    def _listeners(link: TrainedLink, sensing: bool, tasks: set[str]) -> list[Listener]:
        return [one for one in link.listeners if link.is_sensing(one) == sensing and one.branch.task in tasks]

    def _beside(self, number: int, twin: Point) -> None:
        """Keep a point of the twin, under a stage of its own: it belongs to no cell's results."""
        twin.columns |= {"stage": "twin", "adversary_fraction": 0.0}
        self.points[number].twin = len(self.points)
        self.points.append(twin)


def trigger(attack: Backdoor, side: Side) -> tuple[Perturbation, float]:
    """The trigger on every test example, and its mean PSR (linear).

    The PSR is that of the image's energy at the input, of the transmitted signal's on air, and of a rotation that of
    the difference which it makes.
    """
    link, stream = side.link, trigger_stream(attack, side.link.seed)
    if attack.site == "input":
        delta = attack.triggered(link.images, stream) - link.images
        return {"input": delta}, float(achieved_psr(delta, energy(link.images)).mean())
    if attack.rotation:
        return {"phase": torch.full((len(link.labels),), attack.rotation, device=link.images.device)}, rotation_psr(
            attack.rotation
        )
    x = side.scorer.receptions.sent({}).first
    numbers = torch.arange(len(x), device=x.device)
    delta = attack.waveform(x, link.labels, numbers, stream)
    return {"air": delta}, float(achieved_psr(delta, energy(x)).mean())
