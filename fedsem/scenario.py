"""The scenario: what a person writes in YAML, typed, frozen and checked.

Every model here refuses unknown keys. Files and ``--set`` are read by `fedsem.scenario_file`, a sweep is taken apart by
`fedsem.sweep`; what can only be checked with the data or the plug-ins at hand is checked by `fedsem.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from ruamel.yaml import YAML

from fedsem.errors import ScenarioError, closest, shown
from fedsem.registry import Plugin
from fedsem.scenario_errors import WrongKey, plain, sentence
from fedsem.strict import Strict

NAME = r"[A-Za-z][A-Za-z0-9_-]{0,99}"
ADAPTIVE = "adaptive"
"""Stands in lists of attacks for the one that knows the defenses in use (`fedsem.adaptive`)."""


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text, re.ASCII):
        raise ValueError(
            f"names begin with a letter and hold at most 100 letters, digits, '_' and '-', not {shown(text)}"
        )
    return text


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"})]
Decibel = Annotated[float, Field(ge=-200, le=200)]
Many = Annotated[int, Field(ge=1, le=1_000_000)]
"""A number of things that are computed at once; beyond the limit it is a slip."""


class Uniform(Strict):
    """A value drawn anew for each example, uniform in [low, high] dB."""

    # A list in YAML; strict tuples would refuse it.
    uniform: Annotated[tuple[Decibel, Decibel], Field(strict=False)]

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.uniform[0] >= self.uniform[1]:
            raise ValueError(f"the range {list(self.uniform)} is empty or negative; write [low, high] with low < high")
        return self


def _number_or_range(value: Any) -> str | None:
    if isinstance(value, (Mapping, Uniform)):
        return "range"
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else None


Level = Annotated[
    Annotated[Decibel, Tag("number")] | Annotated[Uniform, Tag("range")],
    Discriminator(_number_or_range, "choice", "should be a number of dB or {uniform: [low, high]}"),
]
"""A fixed number of dB, or one drawn for each example. The discriminator makes the error that of the branch meant."""


class Compute(Strict):
    """Where and how the arithmetic runs; all of it is part of the scenario, never chosen silently."""

    engine: Literal["ray", "local"] = "ray"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="of the encoder in training; everything else, and all evaluation, is float32. `bf16` trains the "
        "[S3] network 1.8 times as fast on a CPU with instructions for it (AMX), at a twelfth of the speed on others",
    )
    execution: Literal["sequential"] = "sequential"
    workers: PositiveInt | None = Field(
        None, description="Ray actors, one torch thread each; default: one per CPU core"
    )


class Link(Strict):
    """The transmitter (design section 4).

    Attributes:
        encoder: the network from images to numbers.
        symbols: real or complex numbers on air; over AWGN the same channel at equal nc.
        power: the mean power 1 per use holds for each example, or on average over a batch.
    """

    encoder: Annotated[Any, Plugin("encoder")] = Field({"kind": "cnn"}, validate_default=True)
    symbols: Literal["real", "complex"] = "real"
    power: Literal["per_example", "batch_average"] = "per_example"


class Receivers(Strict):
    """A group of receivers with the same tasks, channel and decoder policy.

    Attributes:
        count: how many receivers.
        tasks: names from `tasks`.
        channel: one name from `channels`, or a mapping from each task to one.
        decoder: `local` keeps a receiver's decoders on it; `group` averages them over all receivers of the same task.
    """

    count: Many
    tasks: list[Name] = Field(min_length=1)
    channel: Annotated[
        Annotated[Name, Tag("one")] | Annotated[dict[Name, Name], Tag("each")],
        Discriminator(
            lambda value: {str: "one", dict: "each"}.get(type(value)),
            "choice",
            "should be the name of a channel, or a mapping from tasks to channels",
        ),
    ]
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
    """Local training of one receiver in one round.

    Attributes:
        epochs: passes over the receiver's images.
        batch: images per step.
        optimizer: of the receiver.
        snr_db: fixed, or {uniform: [low, high]}, drawn anew for each example.
        augment: random changes of the training images.
    """

    epochs: PositiveInt = 1
    batch: Many = 64
    optimizer: Optimizer = Optimizer()
    snr_db: Level = 10.0
    sensing_snr_db: Level | None = Field(None, description="for sensing channels; default: snr_db")
    draws: Many = Field(1, description="channel draws per image and step; the encoder runs once for all of them")
    augment: list[Literal["flip", "crop"]] = []


class ServerOptimizer(Strict):
    """The server's step along the combined delta d of a round: v <- momentum v + d, then w <- w + lr v.

    lr 1 without momentum is plain averaging; with momentum it is FedAvgM (Hsu et al., Measuring the Effects of
    Non-Identical Data Distribution for Federated Visual Classification, 2019, section 4.3), SERVEROPT = SGD of Reddi et
    al., Adaptive Federated Optimization, 2021. It moves everything that the server averages: the encoder and the
    decoders of policy `group`.
    """

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class Federation(Strict):
    """Who trains together.

    Attributes:
        kind: `flower`, or `none` for the centralised reference: one learner with all data and all tasks.
        rounds: how often the receivers train and are averaged.
        fraction: share of the receivers that each round asks.
        aggregator: how their updates are combined.
        group_aggregator: how those of decoders of policy `group` are combined; null: as the encoder's.
        pre_aggregators: what is done to the updates before, in order, in every group.
        server_optimizer: the server's step along what the aggregator returned; null: plain averaging.
        secure_aggregation: false; Flower's message API, on which fedsem runs, does not have it.
    """

    kind: Literal["flower", "none"] = "flower"
    rounds: PositiveInt = 10
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_receivers: PositiveInt | None = Field(
        None, description="valid updates that a round needs; default: half of the receivers that were asked"
    )
    round_timeout_s: PositiveFloat = Field(3600.0, description="on Ray, replies that take longer count as failed")
    aggregator: Annotated[Any, Plugin("aggregator")] = Field({"kind": "fedavg"}, validate_default=True)
    group_aggregator: Annotated[Any, Plugin("aggregator")] | None = None
    pre_aggregators: list[Annotated[Any, Plugin("pre_aggregator")]] = []
    server_optimizer: ServerOptimizer | None = None
    secure_aggregation: bool = False

    @property
    def rules(self) -> dict[str, Any]:
        """The aggregators that combine updates, by their key; none without a federation."""
        keys = ("aggregator", "group_aggregator") if self.kind == "flower" else ()
        return {key: rule for key in keys if (rule := getattr(self, key)) is not None}

    def rule(self, group: str) -> Any:
        """The aggregator of an aggregation group: `shared`, or a decoder's owner."""
        return self.aggregator if group == "shared" or self.group_aggregator is None else self.group_aggregator

    def assumed_f(self, group: str) -> int | None:
        """The smallest number of malicious updates that an aggregation group's rule, or what comes before it, is set to
        withstand; None where neither assumes any."""
        assumed = (step.assumed_f for step in (*self.pre_aggregators, self.rule(group)))
        return min((f for f in assumed if f is not None), default=None)


class Draws(Strict):
    """Channel draws per test image.

    Attributes:
        attack: for the gradient of an expectation.
        score: for every reported number.
    """

    attack: Many = 8
    score: Many = 32


class Grid(Strict):
    """A grid of evaluation points.

    Attributes:
        attacks: names from `attacks`, `none`, and `noise` of the same power. `adaptive` is what the defenses in use
            say knows them, at sites, norm and objective of the grid's attack of kind `standard`, or else its first. Of
            a backdoor the trigger is measured, which has a power of its own, in cells whose training used it or no
            poison at all.
        defenses: names from `defenses` that act on the trained link, each by itself, and `none`.
        tasks: what is scored, names from `tasks`; default: all of them.
        snr_db: signal-to-noise ratios, before fading; those of an eavesdropper too.
        sensing_snr_db: those of sensing tasks; default: snr_db.
        psr_db: perturbation-to-signal ratios of the attacks that disturb a trained link; backdoors need none.
        mask_ratio: shares of the patches that are not sent, for an encoder that sends patches; default: its own.
        selection: what chooses the patches: score, random, uniform, variance, oracle, or `original`, where receivers
            see the images themselves; default: as the encoder says.
    """

    attacks: list[Name] = Field(["none"], min_length=1)
    defenses: list[Name] = Field(["none"], min_length=1)
    tasks: list[Name] | None = Field(None, min_length=1)
    snr_db: list[Decibel] = Field(min_length=1)
    sensing_snr_db: list[Decibel] | None = Field(None, min_length=1)
    psr_db: list[Decibel] | None = Field(None, min_length=1)
    mask_ratio: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(None, min_length=1)
    selection: list[Literal["score", "random", "uniform", "variance", "oracle", "original"]] | None = Field(
        None, min_length=1
    )

    @model_validator(mode="after")
    def _each_once(self) -> Grid:
        for key in ("attacks", "defenses", "tasks", "snr_db", "sensing_snr_db", "psr_db", "mask_ratio", "selection"):
            if (twice := _twice(getattr(self, key) or [])) is not None:
                raise ValueError(f"'{key}' lists {shown(twice)} twice")
        return self


class Evaluation(Strict):
    """What is measured after training."""

    draws: Draws = Draws()
    rounds: PositiveInt = Field(
        1, description="measures the link after each of so many last rounds, and reports their mean; 1: the last alone"
    )
    grids: list[Grid] = Field([], description="without grids, only training is reported")
    batch: Many = Field(128, description="images per forward pass; results do not depend on it beyond rounding")
    baselines: bool = Field(True, description="detector theory, PCA coding and the mean image beside the tasks")
    samples: NonNegativeInt = Field(4, description="example pictures kept for the report")


class Use(Strict):
    """What is active in training.

    Attributes:
        attacks: names from `attacks`, or `adaptive`: what the aggregator and the defenses in use say knows them.
        defenses: names from `defenses`.
    """

    attacks: list[Name] = []
    defenses: list[Name] = []


def _twice(values: Sequence[Any]) -> Any:
    """The first value that is there already; None where all differ."""
    return next((value for i, value in enumerate(values) if value in values[:i]), None)


Axes = dict[
    str,
    Annotated[
        Annotated[list[Any], Field(min_length=1), Tag("values")]
        | Annotated[dict[Name, dict[str, Any]], Field(min_length=1), Tag("named")],
        Discriminator(lambda value: "named" if isinstance(value, Mapping) else "values"),
    ],
]
"""Dotted keys and their values, or a name and its settings by name."""


def _shorthand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class Scenario(Strict):
    """A whole experiment.

    Attributes:
        schema: version of this format.
        name: what the folder of its results is called.
        description: for readers.
        seeds: one training for each.
        compute: engine, device and precision.
        data: the images, and who holds them.
        link: the transmitter.
        channels: what happens on air, by names of your choice.
        tasks: what receivers want to know, by names of your choice.
        receivers: groups of receivers, by names of your choice.
        train: local training.
        federation: who trains together.
        attacks: adversaries, by names of your choice.
        defenses: what stands against them, by names of your choice.
        use: which of them are active in training.
        sweep: dotted keys and lists of values; one training for each combination. What must be set together has a name
            of its own: {trained_for: {picture: {tasks.mask.weight: 0}, mask: {tasks.picture.weight: 0}}}.
        ablate: the same for `fedsem ablate`, which makes a run of each combination and one table of all. Lists of
            `attacks` and `defenses` name what is used in training: none, one, or several joined by +.
        evaluation: what is measured after training.
    """

    version: Literal[1] = Field(1, alias="schema")
    name: Name
    description: str = ""
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field([0], min_length=1)
    compute: Compute = Compute()
    data: Annotated[Any, Plugin("dataset")]
    link: Link = Field(default_factory=Link)
    channels: dict[Name, Annotated[Any, Plugin("channel")]] = Field(min_length=1)
    tasks: dict[Name, Annotated[Any, Plugin("task")]] = Field(min_length=1)
    receivers: dict[Name, Receivers] = Field(min_length=1)
    train: Train = Train()
    federation: Annotated[
        Federation, BeforeValidator(_shorthand, json_schema_input_type=Federation | Literal["flower", "none"])
    ] = Field(default_factory=Federation)
    attacks: dict[Name, Annotated[Any, Plugin("attack")]] = {}
    defenses: dict[Name, Annotated[Any, Plugin("defense")]] = {}
    use: Use = Use()
    sweep: Axes = {}
    ablate: Axes = {}
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _names_exist(self) -> Scenario:
        lists: dict[str, list[Any]] = {
            "seeds": self.seeds,
            "train.augment": self.train.augment,
            "use.attacks": self.use.attacks,
            "use.defenses": self.use.defenses,
            **{f"receivers.{group}.tasks": receivers.tasks for group, receivers in self.receivers.items()},
            **{
                f"{block}.{path}": values
                for block, axes in self.combined.items()
                for path, values in axes.items()
                if isinstance(values, list)
            },
        }
        for path, values in lists.items():
            if (twice := _twice(values)) is not None:
                raise WrongKey(path, f"lists {shown(twice)} twice")
        for reserved in ("none", "noise", ADAPTIVE):
            if reserved in self.attacks:
                raise WrongKey(f"attacks.{reserved}", f"'{reserved}' is built in; give your attack another name")
        if "none" in self.defenses:
            raise WrongKey("defenses.none", "'none' is built in; give your defense another name")
        for group, receivers in self.receivers.items():
            where = f"receivers.{group}"
            for task in receivers.tasks:
                _known(f"{where}.tasks", "task", task, self.tasks)
                channel = receivers.channel_of(task)
                if channel is None:
                    raise WrongKey(f"{where}.channel", f"names no channel for the task '{task}'")
                _known(f"{where}.channel", "channel", channel, self.channels)
            for task in receivers.channel if isinstance(receivers.channel, dict) else ():
                _known(f"{where}.channel", "task", task, receivers.tasks)
        held = {task for receivers in self.receivers.values() for task in receivers.tasks}
        for task in self.tasks:
            if task not in held:
                raise WrongKey(
                    f"tasks.{task}", "no receiver has this task; add it to a group in 'receivers' or remove it"
                )
        for i, grid in enumerate(self.evaluation.grids):
            for attack in grid.attacks:
                _known(f"evaluation.grids.{i}.attacks", "attack", attack, {"none", "noise", ADAPTIVE, *self.attacks})
            for defense in grid.defenses:
                _known(f"evaluation.grids.{i}.defenses", "defense", defense, {"none", *self.defenses})
            for task in grid.tasks or ():
                _known(f"evaluation.grids.{i}.tasks", "task", task, self.tasks)
            acting = [name for name in grid.attacks if name != "none"]
            budgeted = [name for name in acting if name in ("noise", ADAPTIVE) or self.attacks[name].budgeted]
            if budgeted and grid.psr_db is None:
                raise WrongKey(
                    f"evaluation.grids.{i}", "attacks need 'psr_db', the list of perturbation-to-signal ratios in dB"
                )
            if acting and not budgeted and grid.psr_db is not None:
                raise WrongKey(
                    f"evaluation.grids.{i}.psr_db", f"'{acting[0]}' has no power that could be chosen; remove it"
                )
        used = {receivers.channel_of(task) for receivers in self.receivers.values() for task in receivers.tasks}
        self._check_axes(used)
        for attack in self.use.attacks:
            _known("use.attacks", "attack", attack, {ADAPTIVE, *self.attacks})
        for defense in self.use.defenses:
            _known("use.defenses", "defense", defense, self.defenses)
        return self

    @property
    def combined(self) -> dict[str, Axes]:
        """The blocks whose axes are combined with one another; an ablation's runs may sweep."""
        return {"ablate": self.ablate, "sweep": self.sweep}

    def _check_axes(self, used: Collection[str | None]) -> None:
        """Every key that is swept can be, and none is set twice in a cell.

        Args:
            used: channels that receivers use.
        """
        before: list[tuple[str, str]] = []
        for block, axis, values in ((block, *entry) for block, axes in self.combined.items() for entry in axes.items()):
            if isinstance(values, dict) and (not re.fullmatch(NAME, axis) or axis in type(self).model_fields):
                raise WrongKey(f"{block}.{axis}", "settings with names need a name of their own, without dots")
            alternatives = _alternatives(block, axis, values)
            for alternative in alternatives:
                for i, (where, path) in enumerate(alternative):
                    for there, earlier in (*before, *alternative[:i]):
                        if earlier == path:
                            raise WrongKey(where, f"'{there}' sets this key too; remove one of them")
                        if earlier.startswith(f"{path}."):
                            raise WrongKey(where, f"would undo '{there}'; write it before that key")
                    parts = path.split(".")
                    if parts[0] == "channels" and len(parts) > 1 and parts[1] in self.channels and parts[1] not in used:
                        raise WrongKey(where, f"no receiver uses the channel '{parts[1]}'")
                    if parts[0] in ("schema", "name", "description", "seeds", "sweep", "ablate"):
                        raise WrongKey(where, "this key cannot be swept")
                    if path in ("compute", "compute.engine", "compute.workers"):
                        raise WrongKey(where, "one engine runs the whole sweep; name it in 'compute'")
            before += [pair for alternative in alternatives for pair in alternative]


def settings_of(
    block: str, axis: str, values: list[Any] | Mapping[str, Mapping[str, Any]], value: Any
) -> dict[str, Any]:
    """What an axis sets where it has this value, or name: dotted keys of the scenario and their values."""
    if not isinstance(values, list):
        return dict(values[value])
    if block == "ablate" and axis in ("attacks", "defenses"):
        names = [] if value == "none" else str(value).split("+")
        return {f"use.{axis}": [name.strip() for name in names]}
    return {axis: value}


def _alternatives(
    block: str, axis: str, values: list[Any] | Mapping[str, Mapping[str, Any]]
) -> list[list[tuple[str, str]]]:
    """For each alternative of an axis: where it names keys of the scenario, and which."""
    if isinstance(values, list):
        return [[(f"{block}.{axis}", path) for path in settings_of(block, axis, values, values[0])]]
    return [[(f"{block}.{axis}.{name}.{path}", path) for path in settings] for name, settings in values.items()]


def _known(path: str, what: str, name: str, known: Any) -> None:
    if name not in known:
        raise WrongKey(path, f"unknown {what} '{name}'.{closest(name, known)}")


def check_scenario(tree: Mapping[str, Any]) -> Scenario:
    """Validate a parsed scenario.

    Where several things are wrong, what no scenario can hold (a date, .nan) is reported first; then an unknown key, as
    it may explain why another one is missing; then the first wrong key in the order of the schema.

    Raises:
        ScenarioError: see `load_scenario`.
    """
    tree = plain(tree, ())
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise ScenarioError(sentence(error, tree)) from None


def dump_scenario(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain mappings, lists and scalars, with every default written out."""
    return scenario.model_dump(mode="json", by_alias=True)


def write_scenario(scenario: Scenario, path: Path) -> None:
    """Write the resolved scenario as YAML."""
    yaml = YAML()
    yaml.default_flow_style = False
    # By default ruamel writes some texts in a way that it does not read back: U+0085, folds between escapes.
    yaml.allow_unicode, yaml.width = False, 10**9
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(dump_scenario(scenario), file)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the scenario, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Scenario.model_json_schema(by_alias=True),
        "title": "fedsem scenario",
    }
