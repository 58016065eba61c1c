"""Attacks of the libraries torchattacks and Foolbox, by their names there."""

from __future__ import annotations

import inspect
import io
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.errors import ScenarioError, closest
from fedsem.hooks.budget import project, radius
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Problem, Site, SiteState
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification

if TYPE_CHECKING:
    from fedsem.plan import Plan

REQUIRED = inspect.Parameter.empty
"""Stands for the default of an option that has none."""


@dataclass(frozen=True)
class _View:
    """How a library sees a site: as images in [0, 1], (K, C, H, W).

    Pixels are shown as they are. A signal y over the air is shown as the image of one row u = (y + R) / 2R, in which
    perturbations are delta / 2R.

    Attributes:
        reach: R; None: pixels.
    """

    reach: float | None

    @classmethod
    def of(cls, site: SiteState, psr: float | Tensor) -> _View:
        """R is twice what the largest perturbation of the largest number can reach: within the budget nothing comes
        nearer to the borders than a quarter of the range."""
        if site.bounded:
            return cls(None)
        return cls(2 * float(site.clean.abs().max() + radius(site, psr, "l2").max()))

    @property
    def scale(self) -> float:
        """What a length becomes for the library."""
        return 1.0 if self.reach is None else 1 / (2 * self.reach)

    def show(self, signal: Tensor) -> Tensor:
        """(K, ...) -> (K, C, H, W)."""
        if self.reach is None:
            return signal.contiguous()
        return ((signal + self.reach) * self.scale).flatten(1)[:, None, None, :]

    def perturbation(self, changed: Tensor, image: Tensor, shape: torch.Size) -> Tensor:
        """What the library's changed images add to a signal of that shape, (K, C, H, W) -> (K, ...)."""
        return ((changed - image) / self.scale).reshape(len(changed), *shape)


class _Model(nn.Module):
    """Class scores of the link for versions of one example, (K, C, H, W) -> (K, classes), and what a library is told
    about the example.

    Attributes:
        image: the example, (1, C, H, W).
        label: its class, or the target's, (1,).
        limit: radius of its ball, in the library's units.
        others: all examples, (B, C, H, W).
        stream: of this example.
    """

    def __init__(self, problem: Problem, name: str, number: int, view: _View, limit: float, stream: Stream) -> None:
        super().__init__()
        self.problem, self.name, self.view, self.stream = problem, name, view, stream
        self.index = slice(number, number + 1)
        self.clean = problem.sites[name].clean
        self.image, self.label = view.show(self.clean[self.index]), problem.labels[self.index]
        self.limit = limit * view.scale
        # The libraries ask the first parameter for its device.
        self.anchor = nn.Parameter(torch.zeros((), device=self.clean.device), requires_grad=False)
        self.eval()

    @property
    def others(self) -> Tensor:
        return self.view.show(self.clean)

    def forward(self, images: Tensor) -> Tensor:
        # Some attacks need the gradient contiguous; the encoder's is channels-last.
        images = images.flatten(1).view(images.shape)
        delta = self.view.perturbation(images, self.image, self.clean.shape[1:])
        return self.problem.logits({self.name: delta}, 0, self.index)


class _Library(Evasion):
    """What the library sees are the log mean class probabilities over fixed channel draws. Every example has its own
    radius, and the library takes one for all: each is attacked alone, as the library would. It clamps to [0, 1], the
    range of images. A signal y over the air is shown to it as the image of one row u = (y + R) / 2R, with R so large
    that its clamp cannot act within the budget.
    """

    sites: list[Site] = Field(default=["input"], min_length=1, max_length=1)
    name: str
    options: dict[str, Any] = {}

    avoids = False
    library: ClassVar[str]
    asks_only: ClassVar[frozenset[str]]
    """Attacks that use no gradient: they need nothing but the link's answers, or not even these."""

    @classmethod
    def levels(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
        return {**cls.knows, "weights": ("none",)} if options.get("name") in cls.asks_only else cls.knows

    @abstractmethod
    def arguments(self, path: str) -> Mapping[str, Any]:
        """Options that the attack takes, each with a value of the kind that it should have, or `REQUIRED`.

        Raises:
            ScenarioError: there is no such attack, or no such library.
        """

    @abstractmethod
    def norms(self) -> tuple[Norm, ...]:
        """Norms that the attack works in."""

    @abstractmethod
    def can_be_targeted(self) -> bool: ...

    @abstractmethod
    def needs_images(self) -> bool:
        """Whether rows, columns or brightness mean something to the attack, which those of a signal do not."""

    @abstractmethod
    def changed(self, model: _Model, classes: int) -> Tensor:
        """The library's perturbed version of one example, (1, C, H, W)."""

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        accepted = self.arguments(path)
        for key, value in self.options.items():
            if key not in accepted:
                hint = closest(key, accepted)
                raise ScenarioError(f"In the scenario, '{path}.options': {self.name} takes no option '{key}'.{hint}")
            if problem := _unlike(value, accepted[key]):
                raise ScenarioError(f"In the scenario, '{path}.options.{key}': should be {problem}, not {value!r}.")
        if missing := [key for key, value in accepted.items() if value is REQUIRED and key not in self.options]:
            raise ScenarioError(f"In the scenario, '{path}.options': {self.name} needs a value for '{missing[0]}'.")
        if self.sites != ["input"] and self.needs_images():
            raise ScenarioError(
                f"In the scenario, '{path}.sites': {self.name} of {self.library} is made for images; use "
                "sites: [input]."
            )
        if self.norm not in self.norms():
            (norm,) = self.norms()
            raise ScenarioError(
                f"In the scenario, '{path}.norm': {self.name} works in the norm {norm}; write norm: {norm}."
            )
        tasks = [task for task, weight in self.goals(plan).items() if weight]
        if len(tasks) != 1 or not isinstance(plan.scenario.tasks[tasks[0]], Classification):
            raise ScenarioError(f"In the scenario, '{path}.objective': name exactly one classification task.")
        with self.sentence():
            able = self.can_be_targeted()
        if self.targeted and not able:
            raise ScenarioError(f"In the scenario, '{path}.targeted': {self.name} cannot be targeted.")

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        (name,) = self.sites
        site = problem.sites[name]
        limits = radius(site, problem.psr, self.norm).flatten().tolist()
        delta, view = torch.zeros_like(site.clean), _View.of(site, problem.psr)
        with torch.no_grad():
            classes = problem.logits({name: delta[:1]}, 0, slice(0, 1)).shape[1]
        with stream.fork(site.clean.device):
            for i, limit in enumerate(limits):
                model = _Model(problem, name, i, view, limit, stream.child(i))
                with self.sentence():
                    found = self.changed(model, classes).detach()
                # Where the gradient is exactly zero some attacks divide by its length: no direction, no perturbation.
                found = torch.where(found.isnan(), model.image, found)
                delta[model.index] = view.perturbation(found, model.image, site.clean.shape[1:])
        return {name: project(delta, site, problem.psr, self.norm)}

    @contextmanager
    def sentence(self) -> Iterator[None]:
        """The libraries check some of their options when they run, and say what is wrong in their own way."""
        try:
            yield
        except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ScenarioError(
                f"{self.name} of {self.library} cannot work with the options {self.options} ({reason}); change them."
            ) from error


# ------------------------------------------------------------------------------------------------------- torchattacks

OURS = ("self", "model", "eps", "norm", "seed", "n_classes", "verbose")
"""Arguments of torchattacks that are not options: they follow from the scenario."""

L2_ONLY = ("PGDL2", "PGDRSL2")

IMAGES_ONLY = ("AutoAttack", "DIFGSM", "PIFGSM", "PIFGSMPP", "SINIFGSM", "Square", "TIFGSM")
"""Attacks of torchattacks that shift, resize, smooth or darken images, or paint squares on them."""


@register("attack", "torchattacks")
class Torchattacks(_Library):
    """An attack of torchattacks (Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020) on one
    classification task, at the input or over the air.

    Attributes:
        name: class name in torchattacks, such as `PGD`, `MIFGSM`, `APGD`, `Square`; it must take a radius `eps`.
        options: its other arguments; `alpha`, a step size, as a share of the radius (default: the library's share).
    """

    library: ClassVar[str] = "torchattacks"
    asks_only: ClassVar[frozenset[str]] = frozenset({"Square"})

    def arguments(self, path: str) -> Mapping[str, Any]:
        known = budgeted()
        if self.name not in known:
            hint = closest(self.name, known)
            raise ScenarioError(f"In the scenario, '{path}.name': unknown attack '{self.name}' of torchattacks.{hint}")
        return {key: value.default for key, value in known[self.name].parameters.items() if key not in OURS}

    def norms(self) -> tuple[Norm, ...]:
        if "norm" in budgeted()[self.name].parameters:
            return ("l2", "linf")
        return ("l2",) if self.name in L2_ONLY else ("linf",)

    def can_be_targeted(self) -> bool:
        # The library's FAB counts the true class and the target: it does nothing when it is told the target alone.
        return self.name != "FAB" and "targeted" in self._build(nn.Linear(1, 1), 1.0, 0, 2).supported_mode

    def needs_images(self) -> bool:
        return self.name in IMAGES_ONLY

    def changed(self, model: _Model, classes: int) -> Tensor:
        attack = self._build(model, model.limit, model.stream.key % 2**31, classes)
        # The library prints when it is told of a target.
        with redirect_stdout(io.StringIO()):
            if self.targeted:
                attack.set_mode_targeted_by_function(lambda images, labels: labels)
            found: Tensor = attack(model.image, model.label)
        return found

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


@cache
def budgeted() -> dict[str, inspect.Signature]:
    """Attacks of the library that take a radius `eps`, by name, with their arguments."""
    import torchattacks

    signatures = {name: inspect.signature(getattr(torchattacks, name).__init__) for name in torchattacks.__all__}
    return {name: signature for name, signature in signatures.items() if "eps" in signature.parameters}


# ------------------------------------------------------------------------------------------------------------ Foolbox

FROM_ELSEWHERE = ("BoundaryAttack", "HopSkipJumpAttack")
"""Attacks of Foolbox that see decisions alone, and begin where the link is wrong already."""

LEFT_OUT = ("GenAttack", "L2BrendelBethgeAttack", "LinfinityBrendelBethgeAttack", "SaltAndPepperNoiseAttack")
"""Attacks of Foolbox that draw from NumPy's global generator, need a compiler, or know no norm."""

AIMED = ("BoundaryAttack", "DDNAttack", "HopSkipJumpAttack", "L2CarliniWagnerAttack", "L2FMNAttack", "LInfFMNAttack")
"""Attacks of Foolbox that search for the smallest perturbation, and can be given a target."""

NOISES = (
    "L2AdditiveGaussianNoiseAttack",
    "L2AdditiveUniformNoiseAttack",
    "L2ClippingAwareAdditiveGaussianNoiseAttack",
    "L2ClippingAwareAdditiveUniformNoiseAttack",
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
    "L2RepeatedAdditiveGaussianNoiseAttack",
    "L2RepeatedAdditiveUniformNoiseAttack",
    "LinfAdditiveUniformNoiseAttack",
    "LinfRepeatedAdditiveUniformNoiseAttack",
)
"""Attacks of Foolbox that add noise, once or until the link is wrong."""

BRIGHTNESS = ("L2ContrastReductionAttack",)
"""Attacks of Foolbox to which the brightness of images means something."""

NOT_OPTIONS = ("self", "abs_stepsize", "constraint", "init_attack", "tensorboard")
"""Arguments of Foolbox that are not options: they follow from the scenario, or are no values of YAML."""


@register("attack", "foolbox")
class Foolbox(_Library):
    """An attack of Foolbox (Rauber, Zimmermann, Bethge and Brendel, Foolbox Native: Fast Adversarial Attacks to
    Benchmark the Robustness of Machine Learning Models in PyTorch, TensorFlow, and JAX, 2020) on one classification
    task, at the input or over the air. It comes with `pip install 'fedsem[peers]'`.

    Attacks with a radius run with each example's own. Attacks that search for the smallest
    perturbation which changes the decision (`L2CarliniWagnerAttack`, `L2DeepFoolAttack`, `HopSkipJumpAttack`, ...) are
    run without a limit; what they find is kept where it lies within the budget, and is otherwise shortened to it (in
    L-inf clipped), after which the decision may be right again. What is decided wrongly without any perturbation, and
    what they find nothing for, stays as it is. Their perturbation ends just behind the border that the attack's own
    channel draws show: with other draws about half of the decisions are right again.

    `BoundaryAttack` and `HopSkipJumpAttack` see only which class is the largest, and begin at another example that is
    decided wrongly in this one's place.

    Attributes:
        name: class name in `foolbox.attacks` or its short form, such as `LinfPGD`, `L2PGD`, `FGM`,
            `L2CarliniWagnerAttack`, `L2DeepFoolAttack`, `HopSkipJumpAttack`, `BoundaryAttack`; in the norm l2 or linf.
        options: its arguments; step sizes are relative to the radius where the library has them so (`rel_stepsize`),
            others in units of the range from 0 to 1 that it sees.
    """

    library: ClassVar[str] = "Foolbox"
    distributions: ClassVar[tuple[str, ...]] = ("foolbox",)
    asks_only: ClassVar[frozenset[str]] = frozenset({*FROM_ELSEWHERE, *NOISES, *BRIGHTNESS})

    def arguments(self, path: str) -> Mapping[str, Any]:
        try:
            known = with_a_norm()
        except ModuleNotFoundError as error:
            raise ScenarioError(
                f"In the scenario, '{path}.kind': Foolbox is not installed ({error}); run pip install 'fedsem[peers]'."
            ) from error
        if self.name not in known:
            hint = closest(self.name, known)
            raise ScenarioError(f"In the scenario, '{path}.name': unknown attack '{self.name}' of Foolbox.{hint}")
        return {
            key: float(value.default) if value.annotation is float and value.default is not REQUIRED else value.default
            for key, value in inspect.signature(known[self.name]).parameters.items()
            if key not in NOT_OPTIONS and value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
        }

    def norms(self) -> tuple[Norm, ...]:
        cls = with_a_norm()[self.name]
        if "constraint" in inspect.signature(cls).parameters:
            return ("l2", "linf")
        return (_norm_of(cls),)

    def can_be_targeted(self) -> bool:
        from foolbox.attacks.fast_gradient_method import L2FastGradientAttack, LinfFastGradientAttack
        from foolbox.attacks.gradient_descent_base import BaseGradientDescent

        cls = with_a_norm()[self.name]
        one_step = (L2FastGradientAttack, LinfFastGradientAttack)
        return self.name in AIMED or (issubclass(cls, BaseGradientDescent) and not issubclass(cls, one_step))

    def needs_images(self) -> bool:
        return self.name in BRIGHTNESS

    def changed(self, model: _Model, classes: int) -> Tensor:
        import foolbox

        cls = with_a_norm()[self.name]
        constraint = {"constraint": self.norm} if "constraint" in inspect.signature(cls).parameters else {}
        attack = cls(**constraint, **self.options)
        criterion = (
            foolbox.criteria.TargetedMisclassification if self.targeted else foolbox.criteria.Misclassification
        )(model.label)
        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=model.image.device)
        with _untouched_logging():
            if issubclass(cls, foolbox.attacks.base.FixedEpsilonAttack):
                # Without any room some attacks divide by it.
                return attack(seen, model.image, criterion, epsilons=model.limit)[1] if model.limit else model.image
            if bool(self._wrong(model, model.image)):
                return model.image
            more = {}
            if self.name in FROM_ELSEWHERE:
                if (start := self._elsewhere(model)) is None:
                    return model.image
                more["starting_points"] = start
            found, _, reached = attack(seen, model.image, criterion, epsilons=None, **more)
        return found if bool(reached) else model.image

    def _wrong(self, model: _Model, images: Tensor) -> Tensor:
        """Whether each version of an example is decided wrongly, or for the target, (K,)."""
        with torch.no_grad():
            decided = model(images).argmax(-1)
        return decided == model.label if self.targeted else decided != model.label

    def _elsewhere(self, model: _Model) -> Tensor | None:
        """Another example, at random, that is decided wrongly in this one's place; None: of `TRIED` there is none."""
        order = torch.randperm(len(model.clean), generator=model.stream.torch())[:TRIED]
        images = model.others[order.to(model.clean.device)]
        wrong = self._wrong(model, images).nonzero()
        return images[wrong[0]] if len(wrong) else None


TRIED = 100
"""Examples among which a starting point is sought."""


@cache
def with_a_norm() -> dict[str, type]:
    """Attacks of Foolbox on classes in the norm l2 or linf, by name."""
    from foolbox import attacks

    base = attacks.base
    found = {name: value for name, value in vars(attacks).items() if isinstance(value, type)}
    return {
        name: cls
        for name, cls in sorted(found.items())
        if issubclass(cls, (base.FixedEpsilonAttack, base.MinimizationAttack))
        and not issubclass(cls, base.FlexibleDistanceMinimizationAttack)
        and name not in LEFT_OUT
        and ("constraint" in inspect.signature(cls).parameters or _norm_of(cls) in ("l2", "linf"))
    }


def _norm_of(cls: type) -> Any:
    """Norm of an attack of Foolbox; None where it has none of ours, or one that is an option."""
    from foolbox.distances import l2, linf

    distance = getattr(cls, "distance", None)
    if isinstance(distance, property) and distance.fget is not None:
        distance = distance.fget(cls)
    return "l2" if distance is l2 else "linf" if distance is linf else None


@contextmanager
def _untouched_logging() -> Iterator[None]:
    """Foolbox logs by `logging.info`, which gives the root logger a handler for good where it has none."""
    silent = logging.NullHandler()
    logging.root.addHandler(silent)
    try:
        yield
    finally:
        logging.root.removeHandler(silent)


def _unlike(value: Any, default: Any) -> str | None:
    """What an option should be, where its value is not of its default's kind."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if fits else "a positive whole number"
    if default is REQUIRED:
        return None
    if default is None or isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
        return None if fits else "a number, 0 or larger"
    return None if isinstance(value, type(default)) else f"a {type(default).__name__}"
