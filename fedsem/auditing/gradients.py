"""Whether attacks by gradient have a gradient to follow."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.auditing.finding import Family, Outcome
from fedsem.auditing.subject import LinkSubject, Slope
from fedsem.evaluation.problem import LinkProblem
from fedsem.hooks.evasion import Perturbation, Problem
from fedsem.hooks.evasion_losses import Loss, margin_to, objective
from fedsem.reporting.findings import Verdict

GRADIENTS: Family[LinkSubject] = Family(
    "Gradients",
    "White-box attacks follow the gradient that automatic differentiation gives them. Where that is none, wrong or "
    "lost, they fail, and the link looks robust without being so (Athalye, Carlini and Wagner, Obfuscated Gradients "
    "Give a False Sense of Security, 2018).",
)
DIFFERENCES_DB = (-90.0, -80.0)
"""PSRs of the steps of finite differences: small beside what a coarse quantiser notices, large beside float32."""
AGREE = 0.05
"""Relative error up to which a finite difference agrees with a gradient."""
FEW, MANY = 0.1, 0.5
"""Shares of the images from which a finding is suspicious, and failed."""
DECLARED = "The attack goes by the defense's own stand-in; Square and transfer tell whether it is a good one."
RESOLUTION = -24 * 0.6931471805599453
"""log(1 - p) of the largest p below 1 in float32."""


@GRADIENTS.check("a link")
def attached(subject: LinkSubject) -> Outcome:
    """The loss depends on the signal, as far as automatic differentiation knows, and its gradient is not merely carried
    straight through an operation that has none. A detached gradient fails. It is suspicious where the outputs of 10 %
    of the images do not change at all over a tiny step along a gradient that is not zero: a straight-through estimate
    (BPDA) may be the right tool of an adaptive attack, but the figure then holds against that estimate alone; look at
    Square and transfer. It is not judged where the scenario's attack declares such an estimate, `defense: adaptive`."""
    if not subject.attached:
        return "failed", f"The loss of '{subject.task}' does not depend on the signal for automatic differentiation."
    if subject.declared:
        return "passed", DECLARED
    slope, differences = _compared(subject, _outputs(subject))
    share = _share((slope.norms > 0) & (differences[0] == 0))
    verdict: Verdict = "suspicious" if share >= FEW else "passed"
    return verdict, f"{share:.0%} of the images have a gradient although a step along it changes nothing."


@GRADIENTS.check("a gradient")
def finite(subject: LinkSubject) -> Outcome:
    """The gradient of the loss is finite for every image. One NaN or infinity fails: what an attack makes of it is
    undefined."""
    if not subject.attached:
        return "not applicable", "There is no gradient."
    share = _share(~subject.loss_slope.gradient.flatten(1).isfinite().all(1))
    return ("failed" if share else "passed"), f"{share:.0%} of the images have a gradient that is NaN or infinite."


@GRADIENTS.check("a gradient")
def non_zero(subject: LinkSubject) -> Outcome:
    """The gradient of the loss is not exactly zero: an operation that is flat nearly everywhere, such as rounding, or a
    loss that underflows leaves an attack where it began. From 10 % of the images on it is suspicious, from 50 % failed.
    """
    if not subject.attached:
        return "not applicable", "There is no gradient."
    norms = subject.loss_slope.norms
    share = _share(norms == 0)
    return _by_share(share), f"{share:.0%} of the images have a zero gradient; its median norm is {_median(norms):.2g}."


@GRADIENTS.check("a gradient")
def equal_to_differences(subject: LinkSubject) -> Outcome:
    """Along the gradient the outputs change as it says: the central difference of the margin between the true and the
    likeliest other class (of the loss, for tasks without classes) over a step of PSR -80 or -90 dB is within 5 % of the
    gradient's norm. It is suspicious where that is not so for 10 % of the images, failed from 50 % on. Images whose
    outputs do not change at all belong to `attached`."""
    if not subject.attached:
        return "not applicable", "There is no gradient."
    if subject.declared:
        return "not applicable", DECLARED
    slope, differences = _compared(subject, _outputs(subject))
    wrong = _off(slope, differences)
    moving = (slope.norms > 0) & (differences[0] != 0) & wrong.isfinite()
    if not bool(moving.any()):
        return "not applicable", "No step changes any output."
    share = _share(wrong[moving] > AGREE)
    evidence = f"{share:.0%} of {int(moving.sum())} images are off by more than {AGREE:.0%}"
    evidence += f", {_median(wrong[moving]):.1%} in the median."
    return _by_share(share), evidence


@GRADIENTS.check("a classification task")
def unsaturated(subject: LinkSubject) -> Outcome:
    """The loss has not been lost in rounding. Where the probability of the true class is 1 to float32 in every channel
    draw, the gradient of its cross-entropy is zero or holds rounding errors, while the margin still has a good one. It
    is suspicious from 10 % of the images on, failed from 50 %."""
    if not subject.classifies:
        return "not applicable", f"'{subject.task}' has no class scores."
    surprise = -subject.values(_least_sure, subject.nothing)
    share = _share(surprise < RESOLUTION)
    median = _median(surprise) / torch.log(torch.tensor(10.0)).item()
    return _by_share(share), f"{share:.0%} of the images; 1 - p of the true class is 10^{median:.1f} in the median."


@GRADIENTS.check("a detector that attacks work around")
def alarm(subject: LinkSubject) -> Outcome:
    """What an attack works around is what raises the alarm: the detector's score depends on the signal, and its
    gradient is finite, not zero, and equal to its central differences within 5 %. A score without gradient, or one that
    is not finite for any image, fails; otherwise it is suspicious where 10 % of the images have none or another, and
    failed from 50 % on. What gets past such an alarm says nothing of what could."""
    if not subject.watched:
        return "not applicable", "No detector is worked around."
    slope, differences = _compared(subject, _suspicion)
    if not slope.attached:
        return "failed", "The detector's score does not depend on the signal for automatic differentiation."
    if lost := _share(~slope.gradient.flatten(1).isfinite().all(1)):
        return "failed", f"{lost:.0%} of the images have a gradient of the score that is NaN or infinite."
    wrong = _off(slope, differences)
    share = _share((slope.norms == 0) | ~(wrong <= AGREE))
    evidence = f"{share:.0%} of the images have a gradient of the score that is zero or off by more than {AGREE:.0%}"
    return _by_share(share), f"{evidence}; its median norm is {_median(slope.norms):.2g}."


def _off(slope: Slope, differences: list[Tensor]) -> Tensor:
    """Relative error of the best of the differences, (N,)."""
    return torch.stack([(found / slope.norms.clamp_min(1e-300) - 1).abs() for found in differences]).amin(0)


def _suspicion(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """How far a detector's score lies above its threshold, (B,)."""
    assert isinstance(problem, LinkProblem)
    return problem.suspicion(delta, step, index)


def _compared(subject: LinkSubject, of: Loss) -> tuple[Slope, list[Tensor]]:
    """Slope of what an attack follows, off the ties of the clean signal, and central differences along it, for each
    step."""
    at = subject.lifted
    slope = subject.slope(of, at)
    unit = slope.gradient.double() / slope.norms.clamp_min(1e-300).view(-1, *[1] * (slope.gradient.dim() - 1))
    differences = []
    for psr_db in DIFFERENCES_DB:
        length = subject.radius(psr_db)
        move = (unit * length.view(-1, *[1] * (unit.dim() - 1))).float()
        ahead: Perturbation = {subject.site: at[subject.site] + move}
        back: Perturbation = {subject.site: at[subject.site] - move}
        change = subject.values(of, ahead).double() - subject.values(of, back).double()
        differences.append(change / (2 * length))
    return slope, differences


def _outputs(subject: LinkSubject) -> Loss:
    """What is differentiated: the margin to the likeliest other class, or the loss of a task without classes."""
    if not subject.classifies:
        return objective
    with torch.no_grad():
        scores = subject.values(_scores, subject.lifted)
    rival = scores.scatter(1, subject.labels.unsqueeze(1), -torch.inf).argmax(1)
    return margin_to(rival)


def _scores(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """Mean class scores over draws, (B, classes)."""
    return problem.scores(delta, step, index).mean(0)


def _least_sure(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """-log(1 - p) of the true class, where p is least of all draws, (B,)."""
    scores = problem.scores(delta, step, index).double()
    place = problem.labels[index].expand(scores.shape[:-1]).unsqueeze(-1)
    others = scores.scatter(-1, place, -torch.inf).logsumexp(-1)
    return (scores.logsumexp(-1) - others).amin(0)


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _median(values: Tensor) -> float:
    return float(values.double().median())


def _by_share(share: float) -> Verdict:
    return "failed" if share >= MANY else "suspicious" if share >= FEW else "passed"
