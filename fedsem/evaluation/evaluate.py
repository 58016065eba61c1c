"""Evaluate a trained link over the scenario's grids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsem.adaptive import knowing, knows
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime, most_patches
from fedsem.evaluation.backdoor import Triggers, triggers_of, without_triggers
from fedsem.evaluation.baselines import reference_points
from fedsem.evaluation.certified_decoder import certified_accuracy
from fedsem.evaluation.defended import defended
from fedsem.evaluation.flagging import Alarms
from fedsem.evaluation.leakage import measure_leakage, steps, without_leakage
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.repaired import findings
from fedsem.evaluation.samples import Samples
from fedsem.evaluation.score import Key, Scorer, key_of
from fedsem.evaluation.tabulate import OVER_BUDGET
from fedsem.evaluation.trained import Listener, Mode, TrainedLink
from fedsem.evaluation.voting import together
from fedsem.hooks.budget import gaussian
from fedsem.hooks.certificate import DecoderBounds
from fedsem.hooks.defense import Defense
from fedsem.hooks.detector import Detector
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.hooks.repair import Repair
from fedsem.hooks.transform import Transform
from fedsem.hooks.vote import NoisyCopies, Vote
from fedsem.models.mae_encoder import MaeEncoder
from fedsem.plan import describe
from fedsem.registry import names
from fedsem.scenario import Grid
from fedsem.streams import Stream
from fedsem.units import achieved_psr, energy, from_db, to_db

BUILT_IN = ("none", "noise")
ROUNDING = 1e-3
"""Share by which an image's PSR may lie above its budget."""
MOST_MADE = 2**30
"""Bytes of perturbations that are kept for other defenses at most."""
Spot = tuple[str, str, str, float]
"""Receiver group, task, channel, and the SNR of the task's kind."""
Progress = Callable[[int, int], None]
"""Called with evaluation points that are done, and their number."""


@dataclass
class Measurement:
    """All that was measured of one trained link: evaluation points and example pictures."""

    points: list[Point] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    link: TrainedLink,
    progress: Progress,
    twin: TrainedLink | None = None,
    surrogates: Mapping[str, TrainedLink] | None = None,
) -> Measurement:
    """Measure a trained link at every point of every grid, clean, under noise, and under attack, and what leaks; with a
    twin, that was trained without attack, also the triggers of backdoors, on both.

    Clean figures, noise and attacks are scored over the same channel draws; perturbations are fitted on other draws.

    Args:
        link: the trained link.
        progress: told how many points are done.
        twin: the link that was trained with the same seed and without attack; itself where nothing attacked it; None
            where there is nothing to compare.
        surrogates: links that adversaries have trained, by the attack's name.
    """
    ways = list(dict.fromkeys(way for grid in link.plan.scenario.evaluation.grids for way in _ways(link, grid)))
    whole = Measurement()
    total = sum(_count(grid) * len(_ways(link, grid)) for grid in _grids(link)) + steps(link.plan)
    triggers = [] if twin is None else triggers_of(link.plan)
    counter = _Counter(progress, total + len(triggers) * max(1, len(ways)))
    made: dict[Mode, _Made] = {}
    for way in ways or [(Mode(), "none")]:
        grids = [grid for grid in _grids(link) if way in _ways(link, grid)]
        mode, defense = way
        first_of_mode = mode not in made
        again = made.setdefault(mode, _Made() if sum(other == mode for other, _ in ways) > 1 else _Made(0))
        evaluation = _Evaluation(link.in_mode(mode), defense, grids, counter, surrogates or {}, again, first_of_mode)
        part = evaluation.run()
        if twin is not None:
            other = defended(twin.in_mode(mode), evaluation.defense) if twin is not link else evaluation.link
            asked = [grid for grid in link.plan.scenario.evaluation.grids if way in _ways(link, grid)]
            evaluation.compare(other, asked, triggers)
        first = len(whole.points)
        for point in part.points:
            point.clean = None if point.clean is None else first + point.clean
            point.noise = None if point.noise is None else first + point.noise
            point.twin = None if point.twin is None else first + point.twin
        whole.points += part.points
        whole.samples += part.samples
    found, triggers_found = findings(link)
    whole.points += found
    whole.samples += triggers_found
    leaks, pictures = measure_leakage(link, whole.points, counter.step)
    whole.points += leaks
    whole.samples += pictures
    if link.plan.scenario.evaluation.baselines:
        whole.points += reference_points(link, Air(link), _grids(link))
    _compare_choices(whole.points)
    _compare_defenses(whole.points)
    return whole


def _grids(link: TrainedLink) -> list[Grid]:
    plan = link.plan
    return [without_leakage(plan, without_triggers(plan, grid)) for grid in plan.scenario.evaluation.grids]


def _modes(link: TrainedLink, grid: Grid) -> list[Mode]:
    """Mask ratios and selections of a grid; `original` has no ratio."""
    if not isinstance(link.transmitter.encoder, MaeEncoder):
        return [Mode()]
    options = link.transmitter.encoder.options
    ratios: Sequence[float | None] = grid.mask_ratio or [None if options.latency_budget_s else options.mask_ratio]
    modes = product(ratios, grid.selection or [options.selection])
    return list(dict.fromkeys(Mode(0.0 if name == "original" else ratio, name) for ratio, name in modes))


def _ways(link: TrainedLink, grid: Grid) -> list[tuple[Mode, str]]:
    """Modes and defenses of a grid: each pair is a link of its own."""
    return list(product(_modes(link, grid), grid.defenses))


def _compare_defenses(points: Sequence[Point]) -> None:
    """Link every point behind a defense of the trained link to the same point without it."""
    left_out = {"defense", "knowledge", "psr_achieved_db", "attack_params", "draws"}

    def place(point: Point) -> str:
        columns = {key: value for key, value in point.columns.items() if key not in left_out}
        beside = point.columns["attack_params"] if point.columns.get("attack") == "noise" else None
        return json.dumps([columns, beside], sort_keys=True)

    plain = {place(point): i for i, point in enumerate(points) if "defense" not in point.columns}
    for point in points:
        if "defense" in point.columns:
            point.undefended = plain.get(place(point))


def _compare_choices(points: Sequence[Point]) -> None:
    """Link every point whose patches are chosen to those where they are chosen at random, and by their variance, and
    all else is alike."""
    left_out = {"selection", "psr_achieved_db", "kept", "bits", "latency_s", "outage"}

    def place(point: Point) -> str:
        return json.dumps({key: value for key, value in point.columns.items() if key not in left_out}, sort_keys=True)

    for other in ("random", "variance"):
        there = {place(point): i for i, point in enumerate(points) if point.columns.get("selection") == other}
        for point in points:
            if point.columns.get("selection") not in (None, "random", other):
                setattr(point, other, there.get(place(point)))


class _Counter:
    """Counts evaluation points over all modes."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)


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
        tasks: what is scored.
        with_noise: whether noise stands beside it.
    """

    psr_db: float
    axes: dict[str, float]
    snrs: tuple[tuple[float, ...], ...]
    tasks: frozenset[str]
    with_noise: bool


def _axis(sensing: bool) -> str:
    """The column that a task of this kind is plotted over."""
    return "sensing_snr_db" if sensing else "snr_db"


class _Made:
    """Perturbations that were made for the undefended link: one serves every defense that its adversary does not see.

    Args:
        most: bytes that are kept at most; what does not fit is made again.
    """

    def __init__(self, most: int = MOST_MADE) -> None:
        self.left = most
        self.kept: dict[tuple[Any, ...], Perturbation] = {}

    def keep(self, key: tuple[Any, ...], delta: Perturbation) -> None:
        size = sum(value.numel() * value.element_size() for value in delta.values())
        if size <= self.left:
            self.left -= size
            self.kept[key] = delta


class _Evaluation:
    """One mode of a link behind one defense.

    Args:
        plain: the link without the defense.
        name: of the defense, or `none`.
        grids: what is measured.
        counter: of points.
        surrogates: links that adversaries have trained, by the attack's name.
        made: perturbations of the link without a defense.
        shows: whether examples are kept for the report.
    """

    def __init__(
        self,
        plain: TrainedLink,
        name: str,
        grids: Sequence[Grid],
        counter: _Counter,
        surrogates: Mapping[str, TrainedLink],
        made: _Made,
        shows: bool,
    ) -> None:
        self.plain, self.name, self.grids, self.counter, self.surrogates = plain, name, grids, counter, surrogates
        self.defense: Defense | None = plain.plan.scenario.defenses.get(name)
        self.made = made
        self.link = link = defended(plain, self.defense)
        self.evaluation = link.plan.scenario.evaluation
        self.air = Air(link)
        self.scorer = Scorer(link, self.air)
        self.surrogate_alarms: dict[str, Alarms] = {}
        # A receiver of noisy copies decides by all of them, and one says little.
        shows = shows and not isinstance(link.vote, NoisyCopies)
        self.samples = Samples(link, self.air, self.evaluation.samples if shows else 0)
        self.points: list[Point] = []
        self.stream = Stream(link.seed).child("evaluate")
        self.clean: dict[Spot, int] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.shown: set[float] = set()

    def run(self) -> Measurement:
        for grid in self.grids:
            places = _snr_pairs(grid)
            for some in [places] if self.scorer.receptions.together else [[at] for at in places]:
                self.score_clean(some, self.tasks(grid))
                for _ in some:
                    self.counter.step()
            self.certify(grid)
        for grid in self.grids:
            for at in _snr_pairs(grid):
                self.attack(grid, at)
        return Measurement(self.points, self.samples.rows)

    def compare(self, twin: TrainedLink, grids: Sequence[Grid], triggers: Sequence[str]) -> None:
        """Compare with the unpoisoned twin, clean and with the triggers of backdoors.

        Args:
            twin: the twin, behind the same defense.
            grids: those of this evaluation, with their backdoors.
            triggers: names of backdoors.
        """
        both = Triggers(
            self.link, self.scorer, twin, grids, self.points, self.clean, self.columns, self.samples, self.defense
        )
        both.compare_clean()
        for name in triggers:
            if any(name in grid.attacks for grid in grids):
                both.measure(name)
            self.counter.step()

    def tasks(self, grid: Grid) -> frozenset[str]:
        """What a grid scores."""
        return frozenset(grid.tasks or self.link.plan.scenario.tasks)

    def listeners(self, sensing: bool, tasks: frozenset[str]) -> list[Listener]:
        return [
            listener
            for listener in self.link.listeners
            if self.link.is_sensing(listener) == sensing and listener.branch.task in tasks
        ]

    def score_clean(self, places: Sequence[_Where], tasks: frozenset[str]) -> None:
        for sensing in (False, True):
            listeners = self.listeners(sensing, tasks)
            lacking: dict[tuple[Listener, ...], list[float]] = {}
            for snr in dict.fromkeys(at.snr(sensing) for at in places):
                missing = tuple(one for one in listeners if (*key_of(one), snr) not in self.clean)
                lacking.setdefault(missing, []).append(snr)
            for some, snrs in lacking.items():
                for snr_db, scores in zip(snrs, self.scorer.score(some, snrs, {}), strict=True):
                    for key, metrics in scores.items():
                        self.clean[*key, snr_db] = len(self.points)
                        columns = {**self.columns(key, snr_db), "attack": "none", _axis(sensing): snr_db}
                        self.points.append(Point(columns, metrics))
        for at in places:
            if at.snr_db not in self.shown:
                self.shown.add(at.snr_db)
                self.samples.add(self.scorer.receptions, {}, at.snr_db, {"attack": "none"})

    def certify(self, grid: Grid) -> None:
        """What a defense certifies at every PSR of the grid; of votes, for clean receptions that have been scored."""
        if not isinstance(self.defense, (Vote, DecoderBounds)):
            return
        site = self.defense.site
        for at, sensing in product(_snr_pairs(grid), (False, True)):
            groups: dict[Key, list[Listener]] = {}
            for listener in self.listeners(sensing, self.tasks(grid)):
                groups.setdefault(key_of(listener), []).append(listener)
            snr_db = at.snr(sensing)
            for key, listeners in groups.items():
                wanted = [psr for psr in grid.psr_db or [] if ("certificate", *key, snr_db, psr) not in self.seen]
                for psr_db, metrics in self.certified(listeners, snr_db, wanted).items():
                    self.seen.add(("certificate", *key, snr_db, psr_db))
                    columns = {
                        **self.columns(key, snr_db),
                        "stage": "certificate",
                        "attack": "none",
                        "sites": site,
                        "norm": self.defense.norm,
                        "psr_db": psr_db,
                        _axis(sensing): snr_db,
                    }
                    if site == "air":
                        columns["pnr_db"] = psr_db + snr_db
                    self.points.append(Point(columns, metrics))

    def certified(
        self, listeners: Sequence[Listener], snr_db: float, psrs_db: Sequence[float]
    ) -> dict[float, dict[str, Tally]]:
        """What is certified for these listeners together at each PSR."""
        if (ballots := self.scorer.ballots) is not None:
            return {psr_db: ballots.certified(listeners, snr_db, psr_db) for psr_db in psrs_db}
        bounds = [certified_accuracy(self.link, self.air, one, snr_db, psrs_db) for one in listeners]
        return {psr_db: together([{"certified_accuracy": one[psr_db]} for one in bounds]) for psr_db in psrs_db}

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
            problem = self.problem(name, attack, at)
            axes = self.objective_axes(problem, at)
            for psr_db in grid.psr_db or []:
                point = (name, psr_db, *axes.items())
                if point not in self.seen:
                    self.seen.add(point)
                    problem.psr = from_db(psr_db)
                    delta = self.perturbation(name, attack, problem, point)
                    here = self.places(name, problem, psr_db, axes)
                    noise: dict[Spot, int] = {}
                    if name != "noise" and here.with_noise:
                        noise = self.noise_beside(name, attack, delta, problem, here)
                    self.record(name, attack, delta, problem, here, noise)
                self.counter.step()

    def perturbation(self, name: str, attack: Evasion, problem: LinkProblem, point: tuple[Any, ...]) -> Perturbation:
        """What an attack does at a point; made once for all defenses that it does not see."""
        blind = problem.link is self.plain and not problem.watched
        if blind and point in self.made.kept:
            return self.made.kept[point]
        seen = problem.surrogate() if attack.knowledge.weights == "surrogate" else problem
        assert seen is not None
        delta = attack.perturb(seen, self.stream.child("perturb", name))
        if blind:
            self.made.keep(point, delta)
        return delta

    def problem(self, name: str, attack: Evasion, at: _Where) -> LinkProblem:
        """What an attack sees of the link and of its defense, and its surrogate, behind the same defense if it knows
        of it."""
        level, snrs = attack.knowledge.defense, (at.snr_db, at.sensing_snr_db)
        # A vote on receptions as they are decides otherwise, but what it hears is what every receiver hears.
        heard = isinstance(self.defense, Transform) or self.link.averaged > 1
        met = self.defense if heard and level != "none" else None
        detector = self.defense if isinstance(self.defense, Detector) and level == "adaptive" else None
        surrogate = None
        if name in self.surrogates:
            stolen, reserve = self.surrogates[name].in_mode(self.link.mode), self.link.plan.dataset.reserve
            if detector is not None and name not in self.surrogate_alarms:
                assert reserve is not None, "checked with the scenario"
                self.surrogate_alarms[name] = Alarms(stolen, detector, reserve)
            stolen = defended(stolen, met, known=level == "adaptive")
            alarms = self.surrogate_alarms.get(name)
            surrogate = LinkProblem(stolen, Air(stolen), attack, *snrs, alarms=alarms)
        # Whoever knows the link's weights knows those that it has after a repair.
        mended = self.defense if isinstance(self.defense, Repair) and level != "none" else met
        seen = defended(self.plain, mended, known=level == "adaptive")
        alike = seen.transform is self.link.transform and seen.averaged == self.link.averaged
        air = self.air if alike else Air(seen)
        alarms = None if detector is None else self.scorer.alarms
        return LinkProblem(seen, air, attack, *snrs, surrogate, alarms)

    def places(self, name: str, problem: LinkProblem, psr_db: float, axes: dict[str, float]) -> _Places:
        """Where a perturbation is scored: at all points of all grids that hold it."""
        found = []
        tasks: frozenset[str] = frozenset()
        with_noise = False
        for grid in self.grids:
            alone = "noise" in grid.attacks and all(other in BUILT_IN for other in grid.attacks)
            if (name in grid.attacks or (name == "noise" and alone)) and psr_db in (grid.psr_db or []):
                here = [at for at in _snr_pairs(grid) if self.objective_axes(problem, at) == axes]
                found += here
                tasks |= self.tasks(grid) if here else frozenset()
                with_noise |= bool(here) and "noise" in grid.attacks
        snrs = tuple(tuple(dict.fromkeys(at.snr(sensing) for at in found)) for sensing in (False, True))
        return _Places(psr_db, axes, snrs, tasks, with_noise)

    def noise_beside(
        self, name: str, attack: Evasion, delta: Perturbation, problem: LinkProblem, at: _Places
    ) -> dict[Spot, int]:
        """Score noise of the energy that an attack achieved; the numbers of its points."""
        energies = {site: energy(value) for site, value in delta.items()}
        noise = gaussian(problem.sites, energies, self.stream.child("perturb", "noise"))
        return self.record("noise", attack, noise, problem, at, {}, beside=name)

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
        achieved = []
        for site, value in delta.items():
            clean = problem.sites[site].energy
            clean = clean.mean().expand_as(clean) if attack.mean_power else clean
            achieved.append(float(achieved_psr(value, clean).mean()))
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
                "knowledge": ", ".join(
                    f"{what}: {known}" for what, known in knowledge if what != "defense" or self.defense is not None
                ),
            }
            content = self.link.plan.scenario
            trained = [content.defenses[defense] for defense in content.use.defenses]
            if self.defense is None and knows(attack, trained):
                columns["knowledge"] += ", defense: adaptive"
            elif self.defense is not None and knowing(trained, attack) is None:
                columns["knowledge"] += " but for training"
            if knowledge.weights != "none" and knowledge.signal == "statistics":
                held = "reserve" if self.link.plan.dataset.reserve else "training images"
                columns["knowledge"] += f", images: {held}"
            # Who knows neither the link nor the signal, as a jammer, aims at nothing.
            if (knowledge.weights, knowledge.signal) != ("none", "statistics"):
                aim = "joint" if attack.objective == "joint" else attack.goals(self.link.plan)
                columns |= {"objective": json.dumps(aim, sort_keys=True), "norm": attack.norm}
        numbers: dict[Spot, int] = {}
        bounded = name != "noise" and not attack.mean_power and not attack.minimal
        excess = {OVER_BUDGET: _over_budget(delta, problem, from_db(at.psr_db))} if bounded else {}
        for sensing in (False, True):
            levels = self.scorer.score(
                self.listeners(sensing, at.tasks), at.snrs[sensing], problem.shaped(delta), attack
            )
            for snr_db, scores in zip(at.snrs[sensing], levels, strict=True):
                axis = {_axis(sensing): snr_db}
                if "air" in attack.sites:
                    axis["pnr_db"] = at.psr_db + snr_db
                for key, metrics in scores.items():
                    spot = (*key, snr_db)
                    if spot not in self.clean:  # of two grids' tasks and SNRs, a pair that neither has
                        continue
                    numbers[spot] = len(self.points)
                    if attack.minimal and name != "noise" and attack.goals(self.link.plan).get(key[1]):
                        metrics |= _least_power(delta, problem)
                    told = {**self.columns(key, snr_db), **columns, **axis}
                    point = Point(told, {**metrics, **excess}, self.clean[spot], noise.get(spot))
                    self.points.append(point)
        if name != "noise":
            shown = {"attack": name, "psr_db": at.psr_db}
            self.samples.add(self.scorer.receptions, problem.shaped(delta), at.snrs[False][0], shown)
        return numbers

    def columns(self, key: Key, snr_db: float) -> dict[str, Any]:
        listener = next(one for one in self.link.listeners if key_of(one) == key)
        used, ballots = self.link.plan.scenario.use.defenses, self.scorer.ballots
        return {
            **({} if self.defense is None else {"defense": "+".join([*used, self.name])}),
            "stage": "evaluate",
            "round": self.link.plan.scenario.federation.rounds,
            "receiver": listener.group,
            **describe(self.link.plan, listener.branch),
            "decoder": self.link.plan.task(listener.branch).kind if encoder_paints(self.link, listener) else "mlp",
            "draws": self.evaluation.draws.score if ballots is None else ballots.receptions(listener),
            **self.sent(listener, snr_db),
        }

    def sent(self, listener: Listener, snr_db: float) -> dict[str, Any]:
        """What a transmitter of patches sends: columns of the table."""
        encoder = self.link.transmitter.encoder
        if not isinstance(encoder, MaeEncoder):
            return {}
        options, mode = encoder.options, self.link.mode
        if mode.selection == "original":
            return {"selection": "original", "mask_ratio": 0.0}
        time = airtime(self.link, self.air, listener, snr_db)
        times = 1 if self.scorer.ballots is None else self.scorer.ballots.receptions(listener)
        nominal = time.nominal_latency_s
        uses = {} if options.digital else {"channel_uses": encoder.mae.width * (1 + most_patches(self.link))}
        return {
            **uses,
            "selection": mode.selection,
            "transport": options.transport,
            "mask_ratio": mode.mask_ratio,
            "kept": float(time.received.double().mean()),
            "bits": times * float(time.bits.mean()),
            "latency_s": times * float(time.latency_s.mean()),
            "nominal_latency_s": None if nominal is None else times * nominal,
            "outage": float((~time.arrived).double().mean()),
        }

    def objective_axes(self, problem: LinkProblem, at: _Where) -> dict[str, float]:
        """The SNRs that an attack's gradient depends on."""
        axes: dict[str, float] = {}
        for listener in problem.weights:
            sensing = self.link.is_sensing(listener)
            axes[_axis(sensing)] = at.snr(sensing)
        return axes


def _least_power(delta: Perturbation, problem: LinkProblem) -> dict[str, Tally]:
    """PSR in dB of the examples that an attack of least power breaks, and their share."""
    psr = _largest_psr(delta, problem)
    broken = (psr > 0).double().cpu().numpy()
    levels = to_db(psr.double().clamp_min(1e-30)).cpu().numpy() * broken
    return {
        "least_psr_db": Tally(levels, broken, receptions=1),
        "broken": Tally(broken, np.ones_like(broken), receptions=1),
    }


def _over_budget(delta: Perturbation, problem: LinkProblem, psr: float) -> Tally:
    """Whether each image's perturbation has more than this PSR, beyond rounding (of one for each reception, how many
    do): the mean over images may hide it."""
    over = ~(_largest_psr(delta, problem) <= psr * (1 + ROUNDING)).view(-1, len(problem.link.labels)).cpu().numpy()
    return Tally(over.sum(0, dtype=float), np.full(over.shape[1], float(len(over))), receptions=len(over))


def _largest_psr(delta: Perturbation, problem: LinkProblem) -> Tensor:
    """PSR of each row's perturbation, of two sites the larger, (B,)."""
    return torch.stack([achieved_psr(value, problem.sites[site].energy) for site, value in delta.items()]).amax(0)


def encoder_paints(link: TrainedLink, listener: Listener) -> bool:
    """Whether the listener decodes a painted picture."""
    return link.plan.decoder_format(listener.branch).paints


def _snr_pairs(grid: Grid) -> list[_Where]:
    if grid.sensing_snr_db is None:
        return [_Where(snr_db, snr_db) for snr_db in grid.snr_db]
    return [_Where(snr_db, sensing_snr_db) for snr_db, sensing_snr_db in product(grid.snr_db, grid.sensing_snr_db)]


def _count(grid: Grid) -> int:
    attacks = sum(name not in BUILT_IN for name in grid.attacks) or ("noise" in grid.attacks)
    return len(_snr_pairs(grid)) * (1 + attacks * len(grid.psr_db or []))
