"""Attacks of the library torchattacks, by their name there."""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.errors import ScenarioError, closest
from fedsem.hooks.budget import project, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem, Site, SiteState
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Plan

RADIUS = 0.25
"""Radius of the ball in the library's coordinates, which stay within [0.25, 0.75], far from its clamp to [0, 1]."""

WHOLE_BATCH = ("FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "MIFGSM", "NIFGSM", "UPGD", "PGDL2")
"""Attacks that never pass a part of a batch to the model; all others get one example at a time."""

L2_ONLY = ("PGDL2", "PGDRSL2")


@register("attack", "torchattacks")
class Torchattacks(Evasion):
    """An attack of torchattacks (Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020) on one
    classification task at the encoder input.

    The library clamps images to [0, 1] and takes one radius for all of them. It therefore sees v = 1/2 + (u - u0) r / R
    with r = 1/4 and R the radius of the example: its clamp never acts (this is asserted), every example has its own
    budget, and the image range is kept by the model. It attacks the mean class probability over fixed channel draws.

    Attributes:
        name: class name in torchattacks, such as `PGD`, `MIFGSM`, `APGD`, `Square`; it must take a radius `eps`.
        options: its other arguments; `alpha`, a step size, as a share of the radius (default: the library's share).
    """

    sites: list[Site] = Field(default=["input"], min_length=1, max_length=1)
    name: str
    options: dict[str, Any] = {}

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        known = budgeted()
        if self.name not in known:
            hint = closest(self.name, known)
            raise ScenarioError(f"In the scenario, '{path}.name': unknown attack '{self.name}' of torchattacks.{hint}")
        accepted = [key for key in known[self.name].parameters if key not in ("model", "eps", "norm", "seed")]
        for key in self.options:
            if key not in accepted:
                hint = closest(key, accepted)
                raise ScenarioError(f"In the scenario, '{path}.options': {self.name} takes no option '{key}'.{hint}")
        if self.sites != ["input"]:
            raise ScenarioError(f"In the scenario, '{path}.sites': attacks of torchattacks act at the input only.")
        norm: Literal["l2", "linf"] = "l2" if self.name in L2_ONLY else "linf"
        if "norm" not in known[self.name].parameters and self.norm != norm:
            raise ScenarioError(
                f"In the scenario, '{path}.norm': {self.name} works in the norm {norm}; write norm: {norm}."
            )
        tasks = [task for task, weight in self.goals(plan).items() if weight]
        if len(tasks) != 1 or not isinstance(plan.scenario.tasks[tasks[0]], Classification):
            raise ScenarioError(f"In the scenario, '{path}.objective': name exactly one classification task.")

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        site = problem.sites["input"]
        steps = problem.batches() if self.name in WHOLE_BATCH else [slice(i, i + 1) for i in range(len(site.clean))]
        delta = torch.zeros_like(site.clean)
        with stream.fork(site.clean.device):
            for index in steps:
                delta[index] = self._attack(problem, index, stream.child(index.start).key % 2**31)
        return {"input": project(delta, site, problem.psr, self.norm)}

    def _attack(self, problem: Problem, index: slice, seed: int) -> Tensor:
        import torchattacks

        site = problem.sites["input"]
        here = SiteState(site.clean[index], site.energy[index], site.bounded)
        limit = radius(here, problem.psr, self.norm)
        model = _Model(problem, index, here.clean, limit / RADIUS)
        parameters = budgeted()[self.name].parameters
        arguments: dict[str, Any] = {"eps": RADIUS, **self.options}
        if "alpha" in parameters:
            library = parameters["alpha"].default / parameters["eps"].default
            arguments["alpha"] = RADIUS * float(self.options.get("alpha", library))
        if "norm" in parameters:
            arguments["norm"] = "L2" if self.norm == "l2" else "Linf"
        if "seed" in parameters:
            arguments["seed"] = seed
        if "n_classes" in parameters:
            arguments.setdefault("n_classes", model.classes)
        attack = getattr(torchattacks, self.name)(model, **arguments)
        if self.targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        v = attack(torch.full_like(here.clean, 0.5), problem.labels[index]).detach()
        if not bool(((v > 0) & (v < 1)).all()):
            raise AssertionError(f"torchattacks.{self.name} reached its clamp to [0, 1]; its result cannot be trusted")
        return model.image(v) - here.clean


class _Model(nn.Module):
    """Class scores of the link as a function of the library's coordinates."""

    def __init__(self, problem: Problem, index: slice, clean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.problem, self.index, self.clean, self.scale = problem, index, clean, scale
        # The library asks the first parameter for its device.
        self.anchor = nn.Parameter(torch.zeros((), device=clean.device), requires_grad=False)
        with torch.no_grad():
            self.classes = self(torch.full_like(clean, 0.5)).shape[1]

    def image(self, v: Tensor) -> Tensor:
        return (self.clean + (v - 0.5) * self.scale).clamp(0, 1)

    def forward(self, v: Tensor) -> Tensor:
        if len(v) != len(self.clean):
            raise AssertionError("torchattacks passed a part of the batch to the model: examples cannot be told apart")
        return self.problem.logits({"input": self.image(v) - self.clean}, 0, self.index)


@cache
def budgeted() -> dict[str, inspect.Signature]:
    """Attacks of the library that take a radius `eps`, by name, with their arguments."""
    import torchattacks

    signatures = {name: inspect.signature(getattr(torchattacks, name).__init__) for name in torchattacks.__all__}
    return {name: signature for name, signature in signatures.items() if "eps" in signature.parameters}
