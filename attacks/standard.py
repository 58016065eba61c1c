"""The attack that a defense is judged by."""

from __future__ import annotations

import torch
from pydantic import PositiveInt

from fedsem.errors import ScenarioError
from fedsem.hooks.budget import ascent, clip, fill, gaussian, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.hooks.evasion_losses import Loss, log_mean, margin_to, measure, objective
from fedsem.plan import Plan
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius

from .apgd import climb, climb_all, random_surface
from .universal import Universal

OTHER_DRAWS = -1
"""Number of the channel draws that choose among the candidates: the steps' are 0 and more."""
APART = 100_000
"""Steps of draws that are left to each candidate."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Weights on not being flagged that are tried where there is a detector to work around, beside 0."""


@register("attack", "standard")
class Standard(Evasion):
    """The worst of several attacks for each example, by its mean failure over channel draws that none of them has seen
    (after Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020; the expectation over draws after Athalye et al., Synthesizing Robust Adversarial Examples, 2018).

    Candidates: (a) APGD on -log mean_k p_y, `restarts` times `steps`; (b) APGD on the mean margin z_t - z_y towards
    each of the `classes` likeliest other classes; (c) APGD without channel noise; nothing; noise; FGSM; a universal
    perturbation; APGD on the surrogate where there is one. Where the objective is not one classification task, (a) and
    (c) climb the objective, (b) is left out, and the worst is that of the highest objective. Nothing stops early. What
    it reaches is scored over `evaluation.draws.score` further draws: 1000 for a figure to be reported.

    With `knowledge.defense: adaptive` against a detector all of these are made for the link alone, as with `exact`, and
    beside them stands APGD that minds being flagged, with weights from 0.01 to 10 (Carlini and Wagner, Adversarial
    Examples Are Not Easily Detected, 2017; none fits all: Tramer et al., On Adaptive Attacks to Adversarial Example
    Defenses, 2020). A reception that is flagged is then no failure: the worst is the one that errs most without alarm.

    A worst case over ever fresh draws would reward luck; here nothing is chosen by the draws that it is scored with, or
    climbed with, and at a PSR of -60 dB it changes nothing.

    Attributes:
        steps: of (a).
        restarts: of (a).
        classes: target classes of (b).
        other_steps: of (b) and (c), on the surrogate, and with each weight on not being flagged.
        universal_steps: of the universal perturbation.
        judged_by: channel draws that choose among the candidates.
        draws: K, channel draws of each step of APGD, new at its checkpoints; None: 64, or 256 over fading channels.
    """

    steps: PositiveInt = 100
    restarts: PositiveInt = 2
    classes: PositiveInt = 3
    other_steps: PositiveInt = 50
    universal_steps: PositiveInt = 100
    judged_by: PositiveInt = 256

    knows = {"weights": ("all",), "signal": ("exact",), "channel": ("statistics",)}

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if self.targeted:
            raise ScenarioError(
                f"In the scenario, '{path}.targeted': 'standard' asks how often the link fails, not how often it says "
                "something; remove it, or use apgd."
            )

    def expectation(self, plan: Plan) -> int:
        if self.draws is not None:
            return self.draws
        aimed = {task for task, weight in self.goals(plan).items() if weight}
        fades = any(plan.channel(branch).fading_name != "none" for branch in plan.branches if branch.task in aimed)
        return 256 if fades else 64

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        careless = problem.avoiding(0) if problem.watched else problem
        candidates = [*self._simple(careless, stream), *self._climbed(careless, stream)]
        if problem.watched:
            candidates += self._unflagged(problem, stream.child("unflagged"))
        if problem.classifies or problem.watched:
            failures = torch.stack([problem.failures(one, OTHER_DRAWS, self.judged_by) for one in candidates])
        else:
            failures = torch.stack([measure(problem, one, OTHER_DRAWS, objective) for one in candidates])
        # The first of equals: where nothing does harm, nothing is done.
        best = failures.argmax(0)
        rows = torch.arange(len(best), device=best.device)
        return {name: torch.stack([one[name] for one in candidates])[best, rows] for name in candidates[0]}

    def _simple(self, problem: Problem, stream: Stream) -> list[Perturbation]:
        names: list[str] = list(self.sites)
        sites, psr = {name: problem.sites[name] for name in names}, problem.psr
        nothing: Perturbation = {name: torch.zeros_like(site.clean) for name, site in sites.items()}
        full = {name: l2_radius(site.energy, psr).square() for name, site in sites.items()}
        gradient = problem.gradient(nothing, 0)
        step: Perturbation = {}
        for name, site in sites.items():
            up = ascent(gradient[name], self.norm)
            if self.norm == "linf":
                step[name] = clip(radius(site, psr, "linf") * up, site)
            else:
                step[name] = fill(up, site, full[name])
        found = [nothing, step]
        if self.norm == "l2":
            found.append(gaussian(sites, full, stream.child("noise")))
        else:
            found.append({name: random_surface(problem, name, "linf", stream.child("noise", name)) for name in sites})
        found.append(self._universal(problem, stream.child("universal")))
        return found

    def _universal(self, problem: Problem, stream: Stream) -> Perturbation:
        """A universal perturbation, within every example's own budget: the one for all is scaled down where an example
        has less power than the mean."""
        shared = {"sites": self.sites, "norm": self.norm, "steps": self.universal_steps}
        found = Universal.model_validate(shared).perturb(problem, stream)
        for name, delta in found.items():
            site = problem.sites[name]
            mean = site.energy.mean().clamp_min(torch.finfo(delta.dtype).tiny)
            share = (site.energy / mean).sqrt().clamp_max(1.0).view(-1, *[1] * (delta.dim() - 1))
            found[name] = clip(delta * share, site)
        return found

    def _climbed(self, problem: Problem, stream: Stream) -> list[Perturbation]:
        loss: Loss = log_mean if problem.classifies else objective
        found = [climb_all(problem, self.norm, loss, self._starts(problem, stream, self.restarts), self.steps)]
        if problem.classifies:
            found += self._targeted(problem, stream.child("targeted"))
        quiet = self._starts(problem, stream.child("quiet"), 1)
        found.append(climb_all(problem.quiet(), self.norm, loss, quiet, self.other_steps, 2 * APART))
        if (surrogate := problem.surrogate()) is not None:
            start = self._starts(surrogate, stream.child("surrogate"), 1)
            found.append(climb_all(surrogate, self.norm, loss, start, self.other_steps, 3 * APART))
        return found

    def _unflagged(self, problem: Problem, stream: Stream) -> list[Perturbation]:
        loss: Loss = log_mean if problem.classifies else objective
        return [
            climb_all(
                problem.avoiding(penalty), self.norm, loss, self._starts(problem, stream.child(number), 1),
                self.other_steps, (4 + number) * APART,
            )
            for number, penalty in enumerate(PENALTIES)
        ]  # fmt: skip

    def _targeted(self, problem: Problem, stream: Stream) -> list[Perturbation]:
        names: list[str] = list(self.sites)
        nothing = {name: torch.zeros_like(problem.sites[name].clean) for name in names}
        with torch.no_grad():
            parts = [
                problem.logits({name: value[index] for name, value in nothing.items()}, 0, index)
                for index in problem.batches()
            ]
        likely = torch.cat(parts).scatter(1, problem.labels.unsqueeze(1), -torch.inf)
        targets = likely.topk(min(self.classes, likely.shape[1] - 1), dim=1).indices.T
        rows = torch.arange(len(likely), device=likely.device).repeat(len(targets))
        starts = self._starts(problem, stream, len(targets))
        start = {name: torch.cat([one[name] for one in starts]) for name in starts[0]}
        best, _ = climb(problem.select(rows), self.norm, margin_to(targets.flatten()), start, self.other_steps, APART)
        return [{name: value.chunk(len(targets))[i] for name, value in best.items()} for i in range(len(targets))]

    def _starts(self, problem: Problem, stream: Stream, count: int) -> list[Perturbation]:
        names: list[str] = list(self.sites)
        return [
            {name: random_surface(problem, name, self.norm, stream.child(run, name)) for name in names}
            for run in range(count)
        ]
