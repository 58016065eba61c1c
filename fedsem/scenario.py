"""The scenario: what a person writes in YAML, typed, frozen and checked.

Every model here refuses unknown keys. `load_scenario` reads a file, applies ``--set`` overrides and returns a
`Scenario`; what can only be checked with the data or the plug-ins at hand is checked by `fedsem.plan`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fedsem.errors import ScenarioError, closest
from fedsem.registry import Plugin
from fedsem.strict import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Decibel = Annotated[float, Field(ge=-200, le=200)]


class Uniform(Strict):
    """A value drawn anew for each example, uniform in [low, high] dB."""

    uniform: tuple[Decibel, Decibel]

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.uniform[0] >= self.uniform[1]:
            raise ValueError(f"the range {list(self.uniform)} is empty or negative; write [low, high] with low < high")
        return self


class Compute(Strict):
    """Where and how the arithmetic runs; all of it is part of the scenario, never chosen silently."""

    engine: Literal["ray", "local"] = "ray"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="of the encoder in training; everything else, and all evaluation, is float32"
    )
    execution: Literal["sequential"] = "sequential"
    workers: PositiveInt | None = Field(
        None, description="Ray actors, one torch thread each; default: one per CPU core"
    )


class Link(Strict):
    """The transmitter: encoder, symbol alphabet and power constraint (design section 4)."""

    encoder: Annotated[Any, Plugin("encoder")] = Field({"kind": "cnn"}, validate_default=True)
    symbols: Literal["real", "complex"] = "real"
    power: Literal["per_example", "batch_average"] = "per_example"


class Receivers(Strict):
    """A group of `count` receivers with the same tasks, channel and decoder policy.

    `channel` names one entry of `channels`, or maps each task to one. `decoder: local` keeps a receiver's decoders on
    it; `group` averages them over all receivers that hold the same task.
    """

    count: PositiveInt
    tasks: list[Name] = Field(min_length=1)
    channel: Name | dict[Name, Name]
    decoder: Literal["local", "group"] = "local"

    def channel_of(self, task: str) -> str | None:
        return self.channel if isinstance(self.channel, str) else self.channel.get(task)


class Optimizer(Strict):
    """Local optimiser; its state starts afresh in every round, as in FedAvg, and is kept by `federation: none`."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "constant",
        description="learning rate over the whole run; one_cycle: linear rise for 30 %, then cosine fall",
    )

    @model_validator(mode="after")
    def _momentum_is_sgd(self) -> Optimizer:
        if self.momentum and self.kind != "sgd":
            raise ValueError("'momentum' belongs to kind: sgd; remove it or change the kind")
        return self


class Train(Strict):
    """Local training of one receiver in one round."""

    epochs: PositiveInt = 1
    batch: PositiveInt = 64
    optimizer: Optimizer = Optimizer()
    snr_db: Decibel | Uniform = 10.0
    sensing_snr_db: Decibel | Uniform | None = Field(None, description="for sensing channels; default: snr_db")
    draws: PositiveInt = Field(1, description="channel draws per image and step; the encoder runs once for all of them")
    augment: list[Literal["flip", "crop"]] = []


class Federation(Strict):
    """Who trains together. `kind: none` is the centralised reference: one learner with all data and all tasks."""

    kind: Literal["flower", "none"] = "flower"
    rounds: PositiveInt = 10
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_receivers: PositiveInt | None = Field(
        None, description="valid updates that a round needs; default: half of the receivers that were asked"
    )
    round_timeout_s: PositiveFloat = Field(3600.0, description="replies that take longer count as failed")
    aggregator: Annotated[Any, Plugin("aggregator")] = Field({"kind": "fedavg"}, validate_default=True)
    server_optimizer: None = None


class Draws(Strict):
    """Channel draws per test image: `attack` for the gradient of an expectation, `score` for every reported number."""

    attack: PositiveInt = 8
    score: PositiveInt = 32


class Grid(Strict):
    """A grid of evaluation points. A sensing task is scored over `sensing_snr_db` (default: `snr_db`)."""

    attacks: list[Name] = ["none"]
    snr_db: list[Decibel] = Field(min_length=1)
    sensing_snr_db: list[Decibel] | None = Field(None, min_length=1)
    psr_db: list[Decibel] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _budget(self) -> Grid:
        if any(name != "none" for name in self.attacks) and self.psr_db is None:
            raise ValueError("attacks need 'psr_db', the list of perturbation-to-signal ratios in dB")
        for key in ("attacks", "snr_db", "sensing_snr_db", "psr_db"):
            values = getattr(self, key) or []
            if len(set(values)) != len(values):
                raise ValueError(f"'{key}' lists a value twice")
        return self


class Evaluation(Strict):
    """What is measured after training."""

    draws: Draws = Draws()
    grids: list[Grid] = Field([], description="without grids, only training is reported")
    batch: PositiveInt = Field(512, description="images per forward pass; results do not depend on it beyond rounding")
    baselines: bool = Field(True, description="detector theory, PCA coding and the mean image beside the tasks")
    samples: NonNegativeInt = Field(4, description="example pictures kept for the report")


class Use(Strict):
    """What is active in training."""

    attacks: list[Name] = []
    defenses: list[Name] = []


def _shorthand_none(value: Any) -> Any:
    return {"kind": "none"} if value == "none" else value


class Scenario(Strict):
    """A whole experiment (design section 2). `sweep` maps dotted keys to lists: one training for each combination."""

    version: Literal[1] = Field(1, alias="schema")
    name: Name
    description: str = ""
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    compute: Compute = Compute()
    data: Annotated[Any, Plugin("dataset")]
    link: Link = Field(default_factory=Link)
    channels: dict[Name, Annotated[Any, Plugin("channel")]] = Field(min_length=1)
    tasks: dict[Name, Annotated[Any, Plugin("task")]] = Field(min_length=1)
    receivers: dict[Name, Receivers] = Field(min_length=1)
    train: Train = Train()
    federation: Annotated[Federation, BeforeValidator(_shorthand_none)] = Field(default_factory=Federation)
    attacks: dict[Name, Annotated[Any, Plugin("attack")]] = {}
    defenses: dict[Name, Annotated[Any, Plugin("defense")]] = {}
    use: Use = Use()
    sweep: dict[str, list[Any]] = {}
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _names_exist(self) -> Scenario:
        if len(set(self.seeds)) != len(self.seeds):
            raise _At("seeds", "lists a seed twice")
        for reserved in ("none", "noise"):
            if reserved in self.attacks:
                raise _At(f"attacks.{reserved}", f"'{reserved}' is built in; give your attack another name")
        for group, receivers in self.receivers.items():
            where = f"receivers.{group}"
            if len(set(receivers.tasks)) != len(receivers.tasks):
                raise _At(f"{where}.tasks", "lists a task twice")
            for task in receivers.tasks:
                _known(f"{where}.tasks", "task", task, self.tasks)
                channel = receivers.channel_of(task)
                if channel is None:
                    raise _At(f"{where}.channel", f"names no channel for the task '{task}'")
                _known(f"{where}.channel", "channel", channel, self.channels)
        held = {task for receivers in self.receivers.values() for task in receivers.tasks}
        for task in self.tasks:
            if task not in held:
                raise _At(f"tasks.{task}", "no receiver has this task; add it to a group in 'receivers' or remove it")
        for i, grid in enumerate(self.evaluation.grids):
            for attack in grid.attacks:
                _known(f"evaluation.grids.{i}.attacks", "attack", attack, {"none", "noise", *self.attacks})
        for attack in self.use.attacks:
            _known("use.attacks", "attack", attack, self.attacks)
        for defense in self.use.defenses:
            _known("use.defenses", "defense", defense, self.defenses)
        return self


class _At(ValueError):
    """A validation error that carries its own YAML path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def _known(path: str, what: str, name: str, known: Any) -> None:
    if name not in known:
        raise _At(path, f"unknown {what} '{name}'.{closest(name, known)}")


# ---------------------------------------------------------------------------------------------------- reading


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = False
    return yaml


def find_scenario(scenario: str | Path) -> Path:
    """The file of that path, or the shipped scenario of that name.

    Raises:
        ScenarioError: there is neither.
    """
    path = Path(scenario)
    if path.is_file():
        return path
    shipped = shipped_scenarios()
    if str(scenario) in shipped:
        return shipped[str(scenario)]
    if path.suffix in (".yaml", ".yml") and path.stem in shipped and path.parent.name == "scenarios":
        return shipped[path.stem]
    raise ScenarioError(
        f"There is no scenario file '{scenario}', and no shipped scenario has that name.{closest(path.stem, shipped)}"
    )


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with fedsem, by name."""
    folder = Path(str(files("fedsem.scenarios")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file with ruamel (YAML 1.2: 1e-3 is a number; duplicate keys are errors).

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        content = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"The scenario file '{path}' cannot be read ({error}).") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).strip().splitlines()[0]
        raise ScenarioError(f"The scenario file '{path}'{where} is not valid YAML: {problem}.") from error
    if not isinstance(content, dict):
        raise ScenarioError(f"The scenario file '{path}' must hold a mapping of keys such as 'name' and 'data'.")
    return content


def override(tree: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` settings to a parsed scenario; values are YAML, list items are numbered from 0.

    Raises:
        ScenarioError: a setting has no '=', its value is not YAML, or its path runs through something that is no
            mapping or list.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise ScenarioError(
                f"--set needs the form a.b=value, for example --set federation.rounds=2, not '{setting}'."
            )
        try:
            value = _yaml().load(io.StringIO(text))
        except YAMLError as error:
            raise ScenarioError(f"--set {path}: the value '{text}' is not valid YAML.") from error
        head, _, rest = path.strip().partition(".")
        if head == "sweep" and rest:
            # The keys of `sweep` are dotted paths themselves.
            tree = {**tree, "sweep": {**(tree.get("sweep") or {}), rest: value}}
        else:
            tree = assign(tree, path.strip(), value)
    return tree


def assign(tree: Any, path: str, value: Any) -> Any:
    """A copy of a nested mapping with `value` at the dotted `path`; missing mappings on the way are made.

    Raises:
        ScenarioError: the path runs through a scalar, or names a list item that does not exist.
    """
    head, _, rest = path.partition(".")
    if isinstance(tree, list):
        if not head.isdigit() or int(head) >= len(tree):
            raise ScenarioError(f"'{path}': there is no list item '{head}' (items are 0 to {len(tree) - 1}).")
        items = list(tree)
        items[int(head)] = assign(items[int(head)], rest, value) if rest else value
        return items
    if tree is not None and not isinstance(tree, Mapping):
        raise ScenarioError(f"'{path}' cannot be set: '{tree}' is a value, not a mapping.")
    mapping = dict(tree or {})
    mapping[head] = assign(mapping.get(head), rest, value) if rest else value
    return mapping


def load_scenario(
    scenario: str | Path | Mapping[str, Any] | Scenario, settings: Sequence[str] = (), seed: int | None = None
) -> Scenario:
    """Read and check a scenario.

    Args:
        scenario: a YAML file, the name of a shipped scenario, a mapping of the same shape, or a `Scenario`.
        settings: overrides of the form ``a.b=value``.
        seed: replaces `seeds` by this one.

    Raises:
        ScenarioError: one sentence with the YAML path and, for names, the closest match.
    """
    if isinstance(scenario, Scenario):
        tree = dump_scenario(scenario)
    elif isinstance(scenario, Mapping):
        tree = dict(scenario)
    else:
        tree = read_yaml(find_scenario(scenario))
    tree = override(tree, settings)
    if seed is not None:
        tree = {**tree, "seeds": [seed]}
    checked = check_scenario(tree)
    for cell in cells(checked):
        check_scenario(cell.tree)
    return checked


def check_scenario(tree: Mapping[str, Any]) -> Scenario:
    """Validate a parsed scenario; the first thing wrong becomes one sentence.

    Raises:
        ScenarioError: see `load_scenario`.
    """
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise ScenarioError(_sentence(error)) from None


def dump_scenario(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain mappings, lists and scalars, with every default written out."""
    return scenario.model_dump(mode="json", by_alias=True)


def write_scenario(scenario: Scenario, path: Path) -> None:
    """Write the resolved scenario as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(dump_scenario(scenario), file)


class Cell(Strict):
    """One combination of the values in `sweep`: its settings and the scenario tree with them in place."""

    settings: dict[str, Any]
    tree: dict[str, Any]


def cells(scenario: Scenario) -> list[Cell]:
    """All combinations of `sweep`, in order; one cell without settings where there is no sweep.

    Raises:
        ScenarioError: a swept key has no values or cannot be set.
    """
    tree = dump_scenario(scenario)
    tree["sweep"] = {}
    combinations: list[Cell] = [Cell(settings={}, tree=tree)]
    for path, values in scenario.sweep.items():
        if not values:
            raise ScenarioError(f"sweep.{path}: needs at least one value.")
        combinations = [
            Cell(settings={**cell.settings, path: value}, tree=assign(cell.tree, path, value))
            for cell in combinations
            for value in values
        ]
    return combinations


def json_schema() -> dict[str, Any]:
    """JSON Schema of the scenario, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fedsem scenario",
        **Scenario.model_json_schema(by_alias=True),
    }


# ------------------------------------------------------------------------------------------ errors in plain words


def _sentence(error: ValidationError) -> str:
    """The most telling of pydantic's errors, as one sentence with the YAML path.

    A union reports one error for each branch: what our own validators said, and what lies deepest, tells most.
    """
    first = max(
        error.errors(),
        key=lambda item: (item["type"] in ("value_error", "plugin", "unknown_key"), len(_yaml_path(item["loc"]))),
    )
    context = first.get("ctx", {})
    cause = context.get("error")
    path = list(_yaml_path(first["loc"])) + ([context["key"]] if first["type"] == "unknown_key" else [])
    where = cause.path if isinstance(cause, _At) else ".".join(path)
    given = first["input"]
    shown = repr(given) if isinstance(given, (str, int, float, bool, type(None))) else f"a {type(given).__name__}"
    if cause is not None:
        said = str(cause)
    elif first["type"] in ("plugin", "unknown_key"):
        said = first["msg"]
    elif first["type"] == "missing":
        said = "this key is required"
    elif isinstance(given, float) and not math.isfinite(given):
        said = f"should be a finite number, not {given}"
    else:
        said = f"{first['msg'].removeprefix('Input ')}, not {shown}"
    return f"In the scenario{', ' + repr(where) if where else ''}: {said.rstrip('.')}."


def _yaml_path(location: Sequence[int | str]) -> tuple[str, ...]:
    # pydantic puts the branch of a union into the location; no such tag is a key that a person wrote.
    tags = ("float", "int", "str", "Uniform", "dict", "list", "function", "constrained")
    return tuple(
        str(part) for part in location if isinstance(part, int) or (part not in tags and part.split("[")[0] not in tags)
    )
