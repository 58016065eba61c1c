"""Evaluate a trained link over the scenario's grids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from fedsem.evaluation.air import Air
from fedsem.evaluation.baselines import reference_points
from fedsem.evaluation.point import Point
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.samples import Samples
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.plan import describe
from fedsem.registry import names
from fedsem.scenario import Grid
from fedsem.streams import Stream
from fedsem.units import achieved_psr, energy, from_db, to_db

BUILT_IN = ("none", "noise")
Key = tuple[str, str, str]
"""Receiver group, task, channel."""
Spot = tuple[str, str, str, float]
"""The same and the SNR of the task's kind."""
Progress = Callable[[int, int], None]
"""Called with evaluation points that are done, and their number."""


@dataclass
class Measurement:
    """All that was measured of one trained link: evaluation points and example pictures."""

    points: list[Point] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def evaluate(link: TrainedLink, progress: Progress) -> Measurement:
    """Measure a trained link at every point of every grid, clean, under noise, and under attack.

    Clean figures, noise and attacks are scored over the same channel draws; perturbations are fitted on other draws.
    """
    return _Evaluation(link, progress).run()


@dataclass(frozen=True)
class _Where:
    """Coordinates of an evaluation point."""

    snr_db: float
    sensing_snr_db: float

    def snr(self, sensing: bool) -> float:
        return self.sensing_snr_db if sensing else self.snr_db


@dataclass(frozen=True)
class _Places:
    """Where one perturbation is scored.

    Attributes:
        psr_db: its PSR.
        axes: the SNRs that it depends on.
        snrs: SNRs of communication, and of sensing.
        with_noise: whether noise stands beside it.
    """

    psr_db: float
    axes: dict[str, float]
    snrs: tuple[tuple[float, ...], ...]
    with_noise: bool


def _axis(sensing: bool) -> str:
    """The column that a task of this kind is plotted over."""
    return "sensing_snr_db" if sensing else "snr_db"


class _Evaluation:
    def __init__(self, link: TrainedLink, progress: Progress) -> None:
        self.link, self.progress = link, progress
        self.evaluation = link.plan.scenario.evaluation
        self.air = Air(link)
        self.scorer = Scorer(link, self.air)
        self.samples = Samples(link, self.air, self.evaluation.samples)
        self.points: list[Point] = []
        self.stream = Stream(link.seed).child("evaluate")
        self.clean: dict[Spot, int] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.shown: set[float] = set()
        self.done = 0
        self.total = sum(_count(grid) for grid in self.evaluation.grids)

    def run(self) -> Measurement:
        for grid in self.evaluation.grids:
            for at in _snr_pairs(grid):
                self.score_clean(at)
                self.step()
        for grid in self.evaluation.grids:
            for at in _snr_pairs(grid):
                self.attack(grid, at)
        if self.evaluation.baselines:
            self.points += reference_points(self.link, self.air, self.evaluation.grids)
        return Measurement(self.points, self.samples.rows)

    def step(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)

    def listeners(self, sensing: bool) -> list[Listener]:
        return [listener for listener in self.link.listeners if self.link.is_sensing(listener) == sensing]

    def score_clean(self, at: _Where) -> None:
        for sensing in (False, True):
            listeners = [one for one in self.listeners(sensing) if (*_key(one), at.snr(sensing)) not in self.clean]
            for key, metrics in self.scorer.score(listeners, at.snr(sensing), {}).items():
                self.clean[*key, at.snr(sensing)] = len(self.points)
                self.points.append(
                    Point({**self.columns(key), "attack": "none", _axis(sensing): at.snr(sensing)}, metrics)
                )
        if at.snr_db not in self.shown:
            self.shown.add(at.snr_db)
            self.samples.add(self.scorer.sent({}), {}, at.snr_db, {"attack": "none"})

    def attack(self, grid: Grid, at: _Where) -> None:
        """Every attack of the grid at every PSR; where the grid lists `noise`, beside each of them noise of the energy
        that it achieved, and noise of nominal energy where it lists nothing else.

        A perturbation depends on the SNRs of its objective alone: it is made once, and scored at every SNR of the other
        tasks that any grid pairs with them.
        """
        attacks: dict[str, Any] = {
            name: self.link.plan.scenario.attacks[name] for name in grid.attacks if name not in BUILT_IN
        }
        if "noise" in grid.attacks and not attacks:
            attacks = {"noise": names("attack")["noise"].model_validate({})}
        for name, attack in attacks.items():
            problem = LinkProblem(self.link, self.air, attack, at.snr_db, at.sensing_snr_db)
            axes = self.objective_axes(problem, at)
            for psr_db in grid.psr_db or []:
                point = (name, psr_db, *axes.items())
                if point not in self.seen:
                    self.seen.add(point)
                    problem.psr = from_db(psr_db)
                    delta = attack.perturb(problem, self.stream.child("perturb", name))
                    here = self.places(name, problem, psr_db, axes)
                    twin: dict[Spot, int] = {}
                    if name != "noise" and here.with_noise:
                        twin = self.noise_beside(name, attack, delta, problem, here)
                    self.record(name, attack, delta, problem, here, twin)
                self.step()

    def places(self, name: str, problem: LinkProblem, psr_db: float, axes: dict[str, float]) -> _Places:
        """Where a perturbation is scored: at all points of all grids that hold it."""
        found = []
        with_noise = False
        for grid in self.evaluation.grids:
            alone = "noise" in grid.attacks and all(other in BUILT_IN for other in grid.attacks)
            if (name in grid.attacks or (name == "noise" and alone)) and psr_db in (grid.psr_db or []):
                here = [at for at in _snr_pairs(grid) if self.objective_axes(problem, at) == axes]
                found += here
                with_noise |= bool(here) and "noise" in grid.attacks
        snrs = tuple(tuple(dict.fromkeys(at.snr(sensing) for at in found)) for sensing in (False, True))
        return _Places(psr_db, axes, snrs, with_noise)

    def noise_beside(
        self, name: str, attack: Evasion, delta: Perturbation, problem: LinkProblem, at: _Places
    ) -> dict[Spot, int]:
        """Score noise of the energy that an attack achieved; the numbers of its points."""
        energies = {site: energy(value) for site, value in delta.items()}
        twin = gaussian(problem.sites, energies, self.stream.child("perturb", "noise"))
        return self.record("noise", attack, twin, problem, at, {}, beside=name)

    def record(
        self,
        name: str,
        attack: Evasion,
        delta: Perturbation,
        problem: LinkProblem,
        at: _Places,
        noise: dict[Spot, int],
        beside: str | None = None,
    ) -> dict[Spot, int]:
        """Score a perturbation for every listener and keep the points; their numbers."""
        achieved = [float(achieved_psr(value, problem.sites[site].energy).mean()) for site, value in delta.items()]
        columns: dict[str, Any] = {
            "attack": name,
            "sites": "+".join(attack.sites),
            "psr_db": at.psr_db,
            "psr_achieved_db": to_db(max(achieved)),
            "targeted": bool(attack.targeted),
            **at.axes,
        }
        if name == "noise":
            columns |= {"attack_params": json.dumps({"beside": beside} if beside else {}), "knowledge": "none"}
        else:
            knowledge = attack.knowledge
            columns |= {
                "attack_params": json.dumps({"kind": attack.kind, **attack.model_dump(mode="json")}, sort_keys=True),
                "objective": json.dumps(attack.goals(self.link.plan), sort_keys=True),
                "knowledge": ", ".join(f"{what}: {known}" for what, known in knowledge),
                "norm": attack.norm,
            }
        numbers: dict[Spot, int] = {}
        for sensing in (False, True):
            for snr_db in at.snrs[sensing]:
                axis = {_axis(sensing): snr_db}
                if "air" in attack.sites:
                    axis["pnr_db"] = at.psr_db + snr_db
                for key, metrics in self.scorer.score(self.listeners(sensing), snr_db, delta, attack).items():
                    spot = (*key, snr_db)
                    numbers[spot] = len(self.points)
                    point = Point({**self.columns(key), **columns, **axis}, metrics, self.clean[spot], noise.get(spot))
                    self.points.append(point)
        if name != "noise":
            shown = {"attack": name, "psr_db": at.psr_db}
            self.samples.add(self.scorer.sent(delta), delta, at.snrs[False][0], shown)
        return numbers

    def columns(self, key: Key) -> dict[str, Any]:
        listener = next(one for one in self.link.listeners if _key(one) == key)
        return {
            "stage": "evaluate",
            "round": self.link.plan.scenario.federation.rounds,
            "receiver": listener.group,
            **describe(self.link.plan, listener.branch),
            "decoder": "mlp",
            "draws": self.evaluation.draws.score,
        }

    def objective_axes(self, problem: LinkProblem, at: _Where) -> dict[str, float]:
        """The SNRs that an attack's gradient depends on."""
        axes: dict[str, float] = {}
        for listener in problem.weights:
            sensing = self.link.is_sensing(listener)
            axes[_axis(sensing)] = at.snr(sensing)
        return axes


def _key(listener: Listener) -> Key:
    return listener.group, listener.branch.task, listener.branch.channel


def _snr_pairs(grid: Grid) -> list[_Where]:
    if grid.sensing_snr_db is None:
        return [_Where(snr_db, snr_db) for snr_db in grid.snr_db]
    return [_Where(snr_db, sensing_snr_db) for snr_db, sensing_snr_db in product(grid.snr_db, grid.sensing_snr_db)]


def _count(grid: Grid) -> int:
    attacks = sum(name not in BUILT_IN for name in grid.attacks) or ("noise" in grid.attacks)
    return len(_snr_pairs(grid)) * (1 + attacks * len(grid.psr_db or []))
