"""The audit of a finished run: which of its robustness figures cannot be trusted, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fedsem.auditing.gradients import GRADIENTS
from fedsem.auditing.strength import STRENGTH, TRANSFERRED
from fedsem.auditing.subject import Effort, LinkSubject
from fedsem.errors import OutputError
from fedsem.evaluation.defended import defended
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.engine import finished, single_thread
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.transform import Transform
from fedsem.plan import Plan
from fedsem.reporting.findings import Finding, write_findings
from fedsem.reporting.results import Results
from fedsem.scenario import check_scenario
from fedsem.scenario_file import read_tree
from fedsem.stages import Unit, plans_of, records_of, surrogate_links, trained_link, units_of
from fedsem.store import Store

Progress = Callable[[str, int, int], None]
"""Called as (link, done, total): checks of a link that are done."""


@dataclass(frozen=True)
class Target:
    """Where a link is attacked in its scenario.

    Attributes:
        defense: what stands before it at test time.
        task, site, norm, snr_db, sensing_snr_db: see `LinkSubject`.
        known: whether an attack of the scenario knows the defense and works around it.
    """

    defense: str
    task: str
    site: str
    norm: str
    snr_db: float
    sensing_snr_db: float
    known: bool


def audit(
    folder: str | Path, effort: Effort | None = None, progress: Progress = lambda link, done, total: None
) -> list[Finding]:
    """Look at what a finished run has recorded, and attack each of its links anew: every cell and seed, behind every
    defense, at every task and site that an attack of its scenario aims at. The findings go into ``audit.json`` and the
    report, which is drawn again.

    Args:
        folder: the run's folder.
        effort: how much is done; None: as `Effort` says.
        progress: told how far it is.

    Raises:
        OutputError: the folder holds no finished run, or another version of fedsem made it.
    """
    store = Store.open(Path(folder).resolve())
    results = Results(store.folder)
    scenario = check_scenario(read_tree(store.folder / "scenario.yaml"))
    units = units_of(scenario, plans_of(scenario), store)
    for unit in units:
        if not all(finished(job) for _, job in unit.jobs):
            raise OutputError(
                f"The run in '{folder}' is not finished, or another version of fedsem made it; finish it with: fedsem "
                f"run --resume {folder}"
            )
    with store.locked(), single_thread():
        findings = list(records_of(units, results.table))
        for unit in units:
            findings += _attacked(unit, units, effort or Effort(), progress)
        write_findings(findings, store.folder)
        Results(store.folder).report()
    return findings


def _attacked(unit: Unit, units: Sequence[Unit], effort: Effort, progress: Progress) -> Iterator[Finding]:
    """What attacks find of a unit's link, behind each of its defenses."""
    plain = trained_link(unit)
    for target in targets_of(unit.plan):
        link = defended(plain, unit.plan.scenario.defenses.get(target.defense), target.known)
        subject = LinkSubject(
            link,
            target.task,
            target.site,  # type: ignore[arg-type]
            target.norm,  # type: ignore[arg-type]
            target.snr_db,
            target.sensing_snr_db,
            dict(islice(_others(unit, units, plain, target), TRANSFERRED)),
            effort,
        )
        where: dict[str, Any] = {"cell": unit.cell, "seed": unit.job.seed, "defense": target.defense}
        where["target"] = f"{target.task} at the {target.site}"
        families = (GRADIENTS, STRENGTH)
        total, done = sum(len(family.checks) for family in families), 0
        for family in families:
            for finding in family.examine(subject):
                done += 1
                yield (found := replace(finding, **where))
                progress(found.link, done, total)


def targets_of(plan: Plan) -> list[Target]:
    """Where attacks of the scenario disturb the trained link, each task and site behind each defense once: in the norm
    and at the SNR at which it comes first. Detectors, and votes over receptions, change nothing that an attack follows:
    behind them stands the link without."""
    found: dict[tuple[str, str, str], Target] = {}
    for grid in plan.scenario.evaluation.grids:
        attacks = [plan.scenario.attacks[name] for name in grid.attacks if name not in ("none", "noise")]
        for defense in grid.defenses:
            if defense != "none" and not isinstance(plan.scenario.defenses[defense], Transform):
                continue
            for attack in attacks:
                if not isinstance(attack, Evasion) or not _aims(attack):
                    continue
                snr_db = grid.snr_db[0]
                sensing_snr_db = (grid.sensing_snr_db or grid.snr_db)[0]
                known = defense != "none" and attack.knowledge.defense == "adaptive"
                for task in (task for task, weight in attack.goals(plan).items() if weight):
                    for site in attack.sites:
                        target = Target(defense, task, site, attack.norm, snr_db, sensing_snr_db, known)
                        before = found.setdefault((defense, task, site), target)
                        if known and not before.known:
                            found[defense, task, site] = replace(before, known=True)
    return list(found.values())


def _aims(attack: Evasion) -> bool:
    """Whether the attack knows anything that it could aim with; a jammer does not."""
    return (attack.knowledge.weights, attack.knowledge.signal) != ("none", "statistics")


def _others(unit: Unit, units: Sequence[Unit], plain: TrainedLink, target: Target) -> Iterator[tuple[str, TrainedLink]]:
    """Links that perturbations may come from, the likeliest to succeed first: the same one without its defense, those
    that adversaries trained, undefended ones, others."""

    def fits(link: TrainedLink) -> bool:
        same = link.plan.dataset.test.fingerprint == unit.plan.dataset.test.fingerprint
        heard = any(listener.branch.task == target.task for listener in link.listeners)
        return same and heard and (target.site == "input" or link.plan.channel_uses == unit.plan.channel_uses)

    if target.defense != "none":
        yield "the link without its defense", plain
    for name, link in surrogate_links(unit).items():
        if fits(link):
            yield f"the surrogate of '{name}'", link
    rest = [other for other in units if other is not unit]
    for other in sorted(rest, key=lambda one: (bool(one.plan.scenario.use.defenses), one.job.seed != unit.job.seed)):
        link = trained_link(other)
        if fits(link):
            yield f"the link of seed {other.job.seed}" + (f" ({other.cell})" if other.cell else ""), link
