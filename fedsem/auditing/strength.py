"""Whether attacks do what attacks must do on a link that is no worse understood than it seems."""

from __future__ import annotations

from typing import Any

from fedsem.auditing.finding import Family, Outcome, beaten, difference, shown
from fedsem.auditing.subject import LEAST_DB, MOST_DB, LinkSubject
from fedsem.hooks.evasion_losses import measure, objective
from fedsem.reporting.findings import Verdict
from fedsem.units import to_db

STRENGTH: Family[LinkSubject] = Family(
    "Attacks",
    "PGD is run anew on some test images, at the PSR where it leaves half of the clean accuracy (0 dB where it "
    "never does), and set beside what must be weaker, stronger or harmless (Carlini et al., On Evaluating "
    "Adversarial Robustness, 2019). Differences are paired over images, and every perturbation is heard through "
    "the same channel draws. What does more harm than it should passes up to a point on average; above, it is "
    "suspicious, and failed where all of the 95 % interval lies above a point.\n\nBehind a detector that attacks "
    "work around PGD is the worst of three for each image, with weights of 0, 1 and 10 on not being flagged, and "
    "what is flagged counts as right. Behind a vote over receptions the vote is what counts; of noisy copies each"
    " counts by itself. Where a random transform is encoded again for every draw, a quarter of the images is "
    "attacked, with half of the draws.",
)
CENTRAL = (0.2, 0.8)
"""Accuracies between which convergence is judged: elsewhere nothing is left to change."""
LEAST_CLEAN = 2.0
"""Times chance that a link must decide rightly without attack, for its fall to chance to say anything."""
NEAR = 0.05
"""How far above chance an accuracy may lie to be called chance."""
ROUNDING_DB = 0.01
"""How far a PSR may lie above its budget."""
TRANSFERRED = 2
"""Links that perturbations are transferred from, at most."""


@STRENGTH.check("a gradient and a classification task")
def unbounded(subject: LinkSubject) -> Outcome:
    """With all the power there is (PSR +20 dB: any picture can be made any other, which a detector flags no more
    often than it raises false alarms) PGD brings accuracy down to chance or below. Half of the clean accuracy or more
    fails: the attack does not find what is certainly there. Between that and chance plus five points it is suspicious.
    A link that is right less than twice as often as chance without attack says nothing.
    """
    if reason := _inapplicable(subject) or _near_chance(subject):
        return "not applicable", reason
    left = float(subject.overwhelmed.mean())
    evidence = (
        f"PGD at PSR +{MOST_DB:g} dB leaves {left:.3f} of {subject.clean.mean():.3f}; chance: {subject.chance:.3f}."
    )
    return _down_to_chance(subject, left), evidence


@STRENGTH.check("a gradient and a classification task")
def frozen_noise(subject: LinkSubject) -> Outcome:
    """Without channel noise the link says the same when it is asked again, and PGD at PSR +20 dB succeeds as it must
    with noise. Other answers fail: randomness that belongs to no channel draw makes attacks stray, unless they average
    over it too. A link that is right less than twice as often as chance without attack says nothing."""
    if reason := _inapplicable(subject) or _near_chance(subject):
        return "not applicable", reason
    quiet = subject.problem(MOST_DB).quiet()
    first, second = (measure(quiet, subject.nothing, 0, objective) for _ in range(2))
    moved = float((first != second).double().mean())
    left = float(subject.right(subject.steepest(quiet, subject.effort.few_steps), quiet).mean())
    verdict = "failed" if moved else _down_to_chance(subject, left)
    return verdict, f"{moved:.0%} of the images have another loss when asked again; PGD leaves {left:.3f}."


@STRENGTH.check("a gradient and a classification task")
def negligible(subject: LinkSubject) -> Outcome:
    """At PSR -60 dB an attack changes nothing: what it takes there would be luck with the draws that it is scored by.
    More than a point is suspicious, and an interval all above it fails."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    gain = difference(subject.clean, subject.searched(LEAST_DB))
    return beaten(gain), f"PGD at PSR {LEAST_DB:g} dB takes {shown(gain)}."


@STRENGTH.check("a gradient and a classification task")
def last_iterate(subject: LinkSubject) -> Outcome:
    """The last iterate of PGD is no weaker than its first step alone, FGSM. Where it is, the gradient at a point says
    little of what is beside it."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    once = subject.right(subject.perturbation("fgsm", subject.half_db))
    gain = difference(subject.climbed, once)
    return beaten(gain), f"{_at(subject)} FGSM takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient and a classification task")
def square(subject: LinkSubject) -> Outcome:
    """A black box that only asks, Square, takes no more accuracy than the white box that knows all weights."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    queries = subject.effort.queries
    options: dict[str, Any] = {"queries": queries, "draws": subject.effort.draws}
    asked = subject.right(subject.perturbation("square", subject.half_db, **options))
    gain = difference(subject.climbed, asked)
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
        gains[name] = difference(subject.climbed, subject.right(there))
    name, gain = max(gains.items(), key=lambda item: item[1][0])
    return beaten(gain), f"{_at(subject)} what was made on {name} takes {shown(gain)} more than PGD."


@STRENGTH.check("a gradient and a classification task")
def noise(subject: LinkSubject) -> Outcome:
    """Gaussian noise of the same PSR takes no more accuracy than PGD."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    gain = difference(subject.climbed, subject.right(subject.noise(subject.half_db)))
    return beaten(gain), f"{_at(subject)} noise takes {shown(gain)} more than PGD."


@STRENGTH.check("a detector that attacks work around, and a classification task")
def weight(subject: LinkSubject) -> Outcome:
    """An attack that works around a detector minds being flagged as much as does most harm: the worst of PGD with
    weights of 0, 1 and 10 takes no more than PGD with the detector's own `penalty`, which every attack of the
    scenario has but `standard`, that tries several."""
    if reason := _inapplicable(subject):
        return "not applicable", reason
    if not subject.watched:
        return "not applicable", "No detector is worked around."
    if subject.weighs:
        return "not applicable", "The scenario's attack tries several weights itself."
    gain = difference(subject.heeding, subject.climbed)
    return beaten(gain), f"{_at(subject)} the worst of three weights takes {shown(gain)} more than the detector's own."


@STRENGTH.check("a gradient, a classification task, and an accuracy under PGD of 20 to 80 %")
def more_steps(subject: LinkSubject) -> Outcome:
    """Twice as many steps change the accuracy under the scenario's own attack by no more than a point: else the figure
    is no worst case. It is the one of most steps that aims at this task and site and knows most of the defense,
    with its own options (of `standard` the APGD that it begins with); where the scenario has none, PGD of 40 steps (on
    the quickstart's link 40 steps took 1.2 points more than 20, 80 steps 0.2 more than 40). An attack of many steps is
    run again on fewer images, 50 at least."""
    if reason := _inapplicable(subject) or _several(subject) or _not_central(subject):
        return "not applicable", reason
    few, at, attack = subject.repeated, subject.half_db, subject.iterated
    gain = difference(few.right(few.run(at)), few.right(few.run(at, steps=2 * attack.steps)))
    told = f"{2 * attack.steps} steps of {attack.name} take {shown(gain)} more than {attack.steps}"
    return beaten(gain), f"{_at(subject)} {told}{_of_fewer(subject)}."


@STRENGTH.check("a gradient, a classification task, and an accuracy under PGD of 20 to 80 %")
def more_restarts(subject: LinkSubject) -> Outcome:
    """Twice as many runs of the same attack, from other random points of the ball, change accuracy by no more than a
    point, where each image keeps the worse of both halves, chosen by draws that do not score it."""
    if reason := _inapplicable(subject) or _several(subject) or _not_central(subject):
        return "not applicable", reason
    few, at = subject.repeated, subject.half_db
    again = few.run(at, "again", **few.iterated.anywhere)
    gain = difference(few.right(few.run(at)), few.right(few.worst([few.run(at), again])))
    told = f"the worse of two runs of {subject.iterated.name} takes {shown(gain)} more than one"
    return beaten(gain), f"{_at(subject)} {told}{_of_fewer(subject)}."


@STRENGTH.check("a gradient")
def within_budget(subject: LinkSubject) -> Outcome:
    """Every image's perturbation has at most the PSR that it was granted, beyond rounding."""
    if not subject.attached:
        return "not applicable", "There is no gradient."
    achieved = to_db(subject.achieved(subject.strongest).double().clamp_min(1e-30))
    excess = float((achieved - subject.half_db).max())
    verdict: Verdict = "failed" if excess > ROUNDING_DB else "passed"
    return verdict, f"The strongest of PGD at PSR {subject.half_db:g} dB has {excess:+.4f} dB beside it."


def _inapplicable(subject: LinkSubject) -> str:
    """Why an attack by gradient cannot be judged by accuracy; empty where it can."""
    if not subject.classifies:
        return f"'{subject.task}' has no accuracy."
    return "" if subject.attached else "There is no gradient."


def _near_chance(subject: LinkSubject) -> str:
    """Why a fall to chance would say nothing; empty where it would."""
    clean = float(subject.clean.mean())
    if clean >= LEAST_CLEAN * subject.chance:
        return ""
    return f"Without attack {clean:.3f} are right, less than twice chance ({subject.chance:.3f}): a fall says nothing."


def _several(subject: LinkSubject) -> str:
    """Why an attack cannot be repeated by itself; empty where it can."""
    if subject.watched and subject.weighs:
        return "The scenario's attack is the worst of several weights on not being flagged, none of which stands alone."
    return ""


def _not_central(subject: LinkSubject) -> str:
    left = float(subject.climbed.mean())
    if CENTRAL[0] <= left <= CENTRAL[1]:
        return ""
    return f"{_at(subject)} PGD leaves {left:.3f}, which {subject.iterated.name} need not be repeated for."


def _down_to_chance(subject: LinkSubject, left: float) -> Verdict:
    if left >= subject.clean.mean() / 2:
        return "failed"
    return "suspicious" if left > subject.chance + NEAR else "passed"


def _of_fewer(subject: LinkSubject) -> str:
    """On how many images an attack was repeated, where that is not all of them."""
    images = subject.repeated.effort.images
    return "" if images == subject.effort.images else f", of {images} images"


def _at(subject: LinkSubject) -> str:
    return f"At PSR {subject.half_db:g} dB"
