"""The audit of a finished run or ablation: which of its robustness figures cannot be trusted, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import Generator

from fedsem.auditing.gradients import GRADIENTS
from fedsem.auditing.strength import STRENGTH, TRANSFERRED
from fedsem.auditing.subject import Effort, Iterated, LinkSubject
from fedsem.errors import OutputError
from fedsem.evaluation.defended import defended
from fedsem.evaluation.flagging import Alarms
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.engine import single_thread
from fedsem.hooks.certificate import DecoderBounds
from fedsem.hooks.defense import Defense
from fedsem.hooks.detector import Detector
from fedsem.hooks.evasion import Evasion, Knowledge, Norm, Site
from fedsem.hooks.transform import Transform
from fedsem.joined import parts_of
from fedsem.plan import Plan
from fedsem.registry import find
from fedsem.reporting.findings import Finding, write_findings
from fedsem.reporting.results import Results
from fedsem.stages import Unit, records_of, surrogate_links, trained_link, units_behind
from fedsem.store import Store
from fedsem.tasks.classification import Classification

Progress = Callable[[str, int, int], None]
"""Called as (link, done, total): checks of a link that are done."""


Level = Literal["none", "exact", "adaptive"]
LEVELS: tuple[Level, ...] = ("none", "exact", "adaptive")
"""What attacks know of a defense, the least first."""
SUITE = "standard"
"""The attack that is made of several, and tries weights of its own on not being flagged."""


@dataclass(frozen=True)
class Target:
    """Where a link is attacked in its scenario.

    Attributes:
        defense: what stands before it at test time.
        task, site, norm, snr_db, sensing_snr_db: see `LinkSubject`.
        known: what the scenario's attacks know of the defense, those that know most of it.
        attack: name of the one of them that takes most steps, or of the first.
        weighs: whether one of them tries weights of its own on not being flagged.
    """

    defense: str
    task: str
    site: Site
    norm: Norm
    snr_db: float
    sensing_snr_db: float
    known: Level
    attack: str
    weighs: bool

    @property
    def told(self) -> str:
        """In words."""
        where = f"{self.task} at the {self.site}"
        return where if self.defense == "none" else f"{where}, defense: {self.known}"


def audit(
    folder: str | Path, effort: Effort | None = None, progress: Progress = lambda link, done, total: None
) -> list[Finding]:
    """Look at what a finished run has recorded, and attack each of its links anew: every cell and seed, behind every
    defense, at every task and site that an attack of its scenario aims at. Of an ablation those of all runs that
    finished, under their names in its table. The findings go into ``audit.json`` and the report, which is drawn again.

    Args:
        folder: of the run, or of the ablation.
        effort: how much is done; None: as `Effort` says.
        progress: told how far it is.

    Raises:
        OutputError: the folder holds no finished run, or another version of fedsem made it.
    """
    store = Store.open(Path(folder).resolve())
    units: list[Unit] = []
    for part in parts_of(store):
        units += (own := units_behind(part))
        if not all(unit.trained for unit in own):
            run = part.store.folder
            raise OutputError(
                f"The run in '{run}' is not finished, or another version of fedsem made it; finish it with: fedsem "
                f"run --resume {run}"
            )
    with store.locked(), single_thread():
        findings = list(records_of(units, Results(store.folder).table))
        known: dict[Hashable, list[Finding]] = {}
        for unit in units:
            if (key := _decisive(unit)) not in known:
                known[key] = list(_attacked(unit, units, effort or Effort(), progress))
            findings += [replace(finding, cell=unit.cell) for finding in known[key]]
        write_findings(findings, store.folder)
        Results(store.folder).report()
    return findings


def _decisive(unit: Unit) -> Hashable:
    """What decides which attacks find what of a unit's link; two cells that differ in nothing but their grids may have
    the same."""
    content = json.loads(unit.job.text)
    content["evaluation"].pop("grids")
    parts = [content[part] for part in ("link", "tasks", "attacks", "defenses", "evaluation")]
    return unit.job.folder.name, json.dumps(parts), *targets_of(unit.plan)


def _attacked(unit: Unit, units: Sequence[Unit], effort: Effort, progress: Progress) -> Iterator[Finding]:
    """What attacks find of a unit's link, behind each of its defenses."""
    plain, families = trained_link(unit), (GRADIENTS, STRENGTH)
    total = sum(len(family.checks) for family in families)
    for target in targets_of(unit.plan):
        where: dict[str, Any] = {"cell": unit.cell, "seed": unit.job.seed, "defense": target.defense}
        where["target"] = target.told
        if target.known == "none":
            reason = "No attack of the scenario knows this defense: what it leaves supports no claim."
            for family in families:
                yield from (Finding(one.name, "not applicable", reason, family.name, **where) for one in family.checks)
            continue
        subject, done = _subject(unit, units, plain, target, effort), 0
        for family in families:
            for finding in family.examine(subject):
                done += 1
                yield (found := replace(finding, **where))
                progress(found.link, done, total)


def _subject(unit: Unit, units: Sequence[Unit], plain: TrainedLink, target: Target, effort: Effort) -> LinkSubject:
    """A unit's link as attacks of its scenario meet it."""
    plan, adaptive = unit.plan, target.known == "adaptive"
    defense = plan.scenario.defenses.get(target.defense)
    link = defended(plain, defense, adaptive)
    alarms = None
    if isinstance(defense, Detector):
        assert plan.dataset.reserve is not None, "checked with the scenario"
        alarms = Alarms(link, defense, plan.dataset.reserve)
    random = link.transform is not None and link.transform.draw((1, 1), plan.images.shape, Generator()) is not None
    return LinkSubject(
        link,
        target.task,
        target.site,
        target.norm,
        target.snr_db,
        target.sensing_snr_db,
        dict(islice(_others(unit, units, plain, target), TRANSFERRED)),
        effort.of_chance if random else effort,
        declared=adaptive and isinstance(defense, Transform),
        alarms=alarms,
        weighs=target.weighs,
        own=_own(plan, target),
    )


def targets_of(plan: Plan) -> list[Target]:
    """Where attacks of the scenario disturb the trained link, each task and site behind each defense once: in the norm
    and at the SNR of the attack of most steps, or of the first, among those that know most of the defense. Detectors
    that no attack works around, and bounds of decoders, change nothing that an attack meets: behind them stands the
    link without."""
    found: dict[tuple[str, str, str], list[Target]] = {}
    for grid in plan.scenario.evaluation.grids:
        snrs = grid.snr_db[0], (grid.sensing_snr_db or grid.snr_db)[0]
        for defense in grid.defenses:
            for name in grid.attacks:
                attack = plan.scenario.attacks.get(name)
                if not isinstance(attack, Evasion) or not _aims(attack):
                    continue
                met = defense if _meets(plan.scenario.defenses.get(defense), attack.knowledge.defense) else "none"
                known = "exact" if met == "none" else attack.knowledge.defense
                for task in (task for task, weight in attack.goals(plan).items() if weight):
                    for site in attack.sites:
                        one = Target(met, task, site, attack.norm, *snrs, known, name, attack.kind == SUITE)
                        found.setdefault((met, task, site), []).append(one)
    return [_leading(plan, targets) for targets in found.values()]


def _leading(plan: Plan, targets: Sequence[Target]) -> Target:
    """Of targets at one task and site the one that is looked at."""
    known = max((one.known for one in targets), key=LEVELS.index)
    knowing = [one for one in targets if one.known == known]

    def length(target: Target) -> int:
        own = _own(plan, target)
        return 0 if own is None else own.length

    return replace(max(knowing, key=length), weighs=any(one.weighs for one in knowing))


def _meets(defense: Defense | None, known: Level) -> bool:
    """Whether what an attack with this knowledge meets is not just the link without the defense."""
    if isinstance(defense, Detector):
        return known == "adaptive"
    return defense is not None and not isinstance(defense, DecoderBounds)


def _own(plan: Plan, target: Target) -> Iterated | None:
    """The scenario's attack at a target, if it goes in steps and sees weights and signals."""
    attack = plan.scenario.attacks[target.attack]
    assert isinstance(attack, Evasion)
    sees = (attack.knowledge.weights, attack.knowledge.signal) == ("all", "exact")
    if not sees or attack.minimal or "steps" not in type(attack).model_fields:
        return None
    return Iterated(f"'{target.attack}'", _alone(plan, attack, target))


def _alone(plan: Plan, attack: Evasion, target: Target) -> Evasion:
    """An attack with its options, at one task and site; for a suite of them, the first of its attacks in steps."""
    aim: dict[str, Any] = {"sites": [target.site], "objective": {target.task: 1.0}, "targeted": {}}
    aim["knowledge"] = Knowledge()
    if attack.kind != SUITE:
        return attack.model_copy(update=aim)
    climb = {name: getattr(attack, name) for name in ("norm", "steps", "restarts")}
    loss = "log_mean" if isinstance(plan.scenario.tasks[target.task], Classification) else "ce"
    options = {**aim, **climb, "loss": loss, "draws": attack.expectation(plan)}
    alone: Evasion = find("attack", "apgd").model_validate(options)  # type: ignore[assignment]
    return alone


def _aims(attack: Evasion) -> bool:
    """Whether the attack knows anything that it could aim with; a jammer does not."""
    return (attack.knowledge.weights, attack.knowledge.signal) != ("none", "statistics")


def _others(unit: Unit, units: Sequence[Unit], plain: TrainedLink, target: Target) -> Iterator[tuple[str, TrainedLink]]:
    """Links that perturbations may come from, the likeliest to succeed first: the same one without its defense, those
    that adversaries trained, undefended ones that nobody attacked in training, others."""

    def fits(link: TrainedLink) -> bool:
        same = link.plan.dataset.test.fingerprint == unit.plan.dataset.test.fingerprint
        heard = any(listener.branch.task == target.task for listener in link.listeners)
        return same and heard and (target.site == "input" or link.plan.channel_uses == unit.plan.channel_uses)

    if target.defense != "none":
        yield "the link without its defense", plain
    for name, link in surrogate_links(unit).items():
        if fits(link):
            yield f"the surrogate of '{name}'", link
    # Cells that differ in what is measured alone have the same link.
    trained = {other.job.folder.name: other for other in units if other.job.folder.name != unit.job.folder.name}

    def unlikely(other: Unit) -> tuple[bool, bool, bool]:
        use = other.plan.scenario.use
        return bool(use.defenses), bool(use.attacks), other.job.seed != unit.job.seed

    for other in sorted(trained.values(), key=unlikely):
        link = trained_link(other)
        if fits(link):
            yield f"the link of seed {other.job.seed}" + (f" ({other.cell})" if other.cell else ""), link
