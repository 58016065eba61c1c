"""Attacks of the library torchattacks, by their name there."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.errors import ScenarioError, closest
from fedsem.hooks.budget import project, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem, Site
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Plan

OURS = ("self", "model", "eps", "norm", "seed", "n_classes", "verbose")
"""Arguments of the library that are not options: they follow from the scenario."""

L2_ONLY = ("PGDL2", "PGDRSL2")


@register("attack", "torchattacks")
class Torchattacks(Evasion):
    """An attack of torchattacks (Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020) on one
    classification task at the encoder input.

    The library takes one radius for all images and clamps what it makes to [0, 1], the range of our images. Every
    example has its own radius, so it is attacked alone, as the library would. What the library sees are the log mean
    class probabilities over fixed channel draws.

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
        accepted = {key: value.default for key, value in known[self.name].parameters.items() if key not in OURS}
        for key, value in self.options.items():
            if key not in accepted:
                hint = closest(key, accepted)
                raise ScenarioError(f"In the scenario, '{path}.options': {self.name} takes no option '{key}'.{hint}")
            if problem := _unlike(value, accepted[key]):
                raise ScenarioError(f"In the scenario, '{path}.options.{key}': should be {problem}, not {value!r}.")
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
        # The library's FAB counts the true class and the target: it does nothing when it is told the target alone.
        with self._sentence():
            modes = () if self.name == "FAB" else self._build(nn.Linear(1, 1), 1.0, 0, 2).supported_mode
        if self.targeted and "targeted" not in modes:
            raise ScenarioError(f"In the scenario, '{path}.targeted': {self.name} cannot be targeted.")

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        site = problem.sites["input"]
        limits = radius(site, problem.psr, self.norm).flatten().tolist()
        delta = torch.zeros_like(site.clean)
        with torch.no_grad():
            classes = problem.logits({"input": delta[:1]}, 0, slice(0, 1)).shape[1]
        # The library prints when it is told of a target.
        with stream.fork(site.clean.device), redirect_stdout(io.StringIO()):
            for i, limit in enumerate(limits):
                one = slice(i, i + 1)
                clean = site.clean[one].contiguous()
                attack = self._build(_Model(problem, one, clean), limit, stream.child(i).key % 2**31, classes)
                if self.targeted:
                    attack.set_mode_targeted_by_function(lambda images, labels: labels)
                with self._sentence():
                    found = attack(clean, problem.labels[one]).detach()
                # Where the gradient is exactly zero some attacks divide by its length: no direction, no perturbation.
                delta[one] = torch.where(found.isnan(), clean, found) - clean
        return {"input": project(delta, site, problem.psr, self.norm)}

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        """The library checks some of its options when it runs, and says what is wrong in its own way."""
        try:
            yield
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ScenarioError(
                f"{self.name} of torchattacks cannot work with the options {self.options} ({reason}); change them."
            ) from error

    def _build(self, model: nn.Module, limit: float, seed: int, classes: int) -> Any:
        import torchattacks

        parameters = budgeted()[self.name].parameters
        arguments: dict[str, Any] = {"eps": limit, **self.options}
        if "alpha" in parameters:
            library = parameters["alpha"].default / parameters["eps"].default
            arguments["alpha"] = limit * float(self.options.get("alpha", library))
        if "norm" in parameters:
            arguments["norm"] = "L2" if self.norm == "l2" else "Linf"
        if "seed" in parameters:
            arguments["seed"] = seed
        if "n_classes" in parameters:
            arguments["n_classes"] = classes
        return getattr(torchattacks, self.name)(model, **arguments)


class _Model(nn.Module):
    """Class scores of the link for versions of one test image, (K, C, H, W) -> (K, classes)."""

    def __init__(self, problem: Problem, index: slice, clean: Tensor) -> None:
        super().__init__()
        self.problem, self.index, self.clean = problem, index, clean
        # The library asks the first parameter for its device.
        self.anchor = nn.Parameter(torch.zeros((), device=clean.device), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        # Some attacks need the gradient contiguous; the encoder's is channels-last.
        images = images.flatten(1).view(images.shape)
        return self.problem.logits({"input": images - self.clean}, 0, self.index)


@cache
def budgeted() -> dict[str, inspect.Signature]:
    """Attacks of the library that take a radius `eps`, by name, with their arguments."""
    import torchattacks

    signatures = {name: inspect.signature(getattr(torchattacks, name).__init__) for name in torchattacks.__all__}
    return {name: signature for name, signature in signatures.items() if "eps" in signature.parameters}


def _unlike(value: Any, default: Any) -> str | None:
    """What an option should be, where its value is not of its default's kind."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if fits else "a positive whole number"
    if isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
        return None if fits else "a number, 0 or larger"
    return None if isinstance(value, type(default)) else f"a {type(default).__name__}"
