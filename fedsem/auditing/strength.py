"""Whether attacks do what attacks must do on a link that is no worse understood than it seems."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsem.auditing.finding import POINT, Family, Outcome, beaten, difference, shown
from fedsem.auditing.subject import CHOSEN, LEAST_DB, MOST_DB, LinkSubject
from fedsem.hooks.evasion_losses import measure, objective
from fedsem.reporting.findings import Verdict
from fedsem.units import to_db

STRENGTH: Family[LinkSubject] = Family(
    "Attacks",
    "PGD is run anew on some test images, at the PSR where it leaves half of the clean accuracy (0 dB where it never "
    "does), and set beside what must be weaker, stronger or harmless (Carlini et al., On Evaluating Adversarial "
    "Robustness, 2019). Differences are paired over images, and every perturbation is heard through the same channel "
    "draws. What does more harm than it should is suspicious where that is more than a point and its interval leaves "
    "out 0, and failed where all of its interval is above a point.",
)
CENTRAL = (0.2, 0.8)
"""Accuracies between which convergence is judged: elsewhere nothing is left to change."""
NEAR = 0.05
"""How far above chance an accuracy may lie to be called chance."""
ROUNDING_DB = 0.01
"""How far a PSR may lie above its budget."""
TRANSFERRED = 2
"""Links that perturbations are transferred from, at most."""


@STRENGTH.check("a gradient and a classification task")
def unbounded(subject: LinkSubject) -> Outcome:
    """With all the power there is (PSR +20 dB: any picture can be made any other) PGD brings accuracy down to chance or
    below. Half of the clean accuracy or more fails: the attack does not find what is certainly there. Between that and
    chance plus five points it is suspicious."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    left = float(subject.climbed(MOST_DB).mean())
    evidence = (
        f"PGD at PSR +{MOST_DB:g} dB leaves {left:.3f} of {subject.clean.mean():.3f}; chance: {subject.chance:.3f}."
    )
    return _down_to_chance(subject, left), evidence


@STRENGTH.check("a gradient and a classification task")
def frozen_noise(subject: LinkSubject) -> Outcome:
    """Without channel noise the link says the same when it is asked again, and PGD at PSR +20 dB succeeds as it must
    with noise. Other answers fail: randomness that belongs to no channel draw makes attacks stray, unless they average
    over it too."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    attack = subject.attack("pgd", steps=subject.effort.steps)
    quiet = subject.problem(MOST_DB, attack).quiet()
    first, second = (measure(quiet, subject.nothing, 0, objective) for _ in range(2))
    moved = float((first != second).double().mean())
    left = float(subject.right(attack.perturb(quiet, subject.stream("quiet")), quiet).mean())
    verdict = "failed" if moved else _down_to_chance(subject, left)
    return verdict, f"{moved:.0%} of the images have another loss when asked again; PGD leaves {left:.3f}."


@STRENGTH.check("a gradient and a classification task")
def negligible(subject: LinkSubject) -> Outcome:
    """At PSR -60 dB an attack changes nothing: what it takes there would be luck with the draws that it is scored by. A
    point or more, beyond its interval, fails."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    gain = difference(subject.clean, subject.climbed(LEAST_DB))
    return beaten(gain), f"PGD at PSR {LEAST_DB:g} dB takes {shown(gain)}."


@STRENGTH.check("a gradient and a classification task")
def last_iterate(subject: LinkSubject) -> Outcome:
    """The last iterate of PGD is no weaker than its first step alone, FGSM. Where it is, the gradient at a point says
    little of what is beside it."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    once = subject.right(subject.perturbation("fgsm", subject.half_db))
    gain = difference(subject.climbed(subject.half_db), once)
    return beaten(gain), f"{_at(subject)} FGSM takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient and a classification task")
def square(subject: LinkSubject) -> Outcome:
    """A black box that only asks, Square, takes no more accuracy than the white box that knows all weights."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    queries = subject.effort.queries
    options: dict[str, Any] = {"queries": queries, "draws": subject.effort.draws}
    asked = subject.right(subject.perturbation("square", subject.half_db, **options))
    gain = difference(subject.climbed(subject.half_db), asked)
    return beaten(gain), f"{_at(subject)} Square with {queries} queries takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient, a classification task, and another link of the run that has the task")
def transfer(subject: LinkSubject) -> Outcome:
    """What was made on another link of the run, such as the undefended one or that of another seed, takes no more
    accuracy here than what was made on this one."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    if not subject.others:
        return "not applicable", "The run has no other link with this task; add a seed or an undefended cell."
    gains = {}
    for name, link in list(subject.others.items())[:TRANSFERRED]:
        there = subject.perturbation("pgd", subject.half_db, link, steps=subject.effort.steps)
        gains[name] = difference(subject.climbed(subject.half_db), subject.right(there))
    name, gain = max(gains.items(), key=lambda item: item[1][0])
    return beaten(gain), f"{_at(subject)} what was made on {name} takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient and a classification task")
def noise(subject: LinkSubject) -> Outcome:
    """Gaussian noise of the same PSR takes no more accuracy than PGD."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    gain = difference(subject.climbed(subject.half_db), subject.right(subject.noise(subject.half_db)))
    return beaten(gain), f"{_at(subject)} noise takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient, a classification task, and an accuracy under PGD of 20 to 80 %")
def more_steps(subject: LinkSubject) -> Outcome:
    """Twice as many steps change the accuracy under PGD by less than a point. It is suspicious where all of the
    interval is above: the figure is then no worst case."""
    if reason := _inapplicable(subject) or _not_central(subject):
        return "not applicable", reason
    steps = subject.effort.steps
    gain = difference(subject.climbed(subject.half_db), subject.climbed(subject.half_db, 2 * steps))
    return _converged(gain), f"{_at(subject)} {2 * steps} steps take {shown(gain)} more than {steps}."


@STRENGTH.check("a gradient, a classification task, and an accuracy under PGD of 20 to 80 %")
def more_restarts(subject: LinkSubject) -> Outcome:
    """A second run of PGD, from a random point of the ball, changes accuracy by less than a point, where each image
    keeps the worse of both, chosen by draws that do not score it."""
    if reason := _inapplicable(subject) or _not_central(subject):
        return "not applicable", reason
    runs = [subject.steepest(subject.half_db)]
    runs.append(subject.perturbation("pgd", subject.half_db, steps=subject.effort.steps, random_start=True))
    chosen = np.stack([subject.right(run, draws=CHOSEN) for run in runs]).argmin(0)
    scored = np.stack([subject.right(run) for run in runs])
    worse = np.take_along_axis(scored, chosen[None], 0)[0]
    gain = difference(scored[0], worse)
    return _converged(gain), f"{_at(subject)} the worse of two runs takes {shown(gain)} more than one."


@STRENGTH.check("a gradient")
def within_budget(subject: LinkSubject) -> Outcome:
    """Every image's perturbation has at most the PSR that it was granted, beyond rounding."""
    if not subject.attached:
        return "not applicable", "There is no gradient."
    psr_db = subject.half_db if subject.classifies else 0.0
    excess = float((to_db(subject.achieved(subject.steepest(psr_db)).double().clamp_min(1e-30)) - psr_db).max())
    verdict: Verdict = "failed" if excess > ROUNDING_DB else "passed"
    return verdict, f"The strongest of PGD at PSR {psr_db:g} dB has {excess:+.4f} dB beside it."


def _inapplicable(subject: LinkSubject) -> str:
    """Why an attack by gradient cannot be judged by accuracy; empty where it can."""
    if not subject.classifies:
        return f"'{subject.task}' has no accuracy."
    return "" if subject.attached else "There is no gradient."


def _not_central(subject: LinkSubject) -> str:
    left = float(subject.climbed(subject.half_db).mean())
    return "" if CENTRAL[0] <= left <= CENTRAL[1] else f"{_at(subject)} PGD leaves {left:.3f}: nothing is in between."


def _down_to_chance(subject: LinkSubject, left: float) -> Verdict:
    if left >= subject.clean.mean() / 2:
        return "failed"
    return "suspicious" if left > subject.chance + NEAR else "passed"


def _converged(gain: tuple[float, float, float]) -> Verdict:
    """What it means that more of the same attack takes more."""
    return "suspicious" if gain[1] > POINT else "passed"


def _at(subject: LinkSubject) -> str:
    return f"At PSR {subject.half_db:g} dB"
