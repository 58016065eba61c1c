"""From a scenario to a plan: everything that is decided before the first training step.

`resolve` makes the cross-checks that need the data and the plug-ins, so that an impossible combination ends in one
sentence before anything is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.channels.channel import Channel
from fedsem.data.dataset import Dataset, Split
from fedsem.errors import ScenarioError
from fedsem.link import Transmitter
from fedsem.models.detector_loss import truth_of
from fedsem.models.encoder import ImageFormat
from fedsem.models.mae_encoder import MaeOptions
from fedsem.models.pretrained import stand_in
from fedsem.scenario import Federation, Scenario, Uniform, check_scenario, dump_scenario
from fedsem.streams import Stream
from fedsem.tasks.task import DecoderFormat, Examples, Task
from fedsem.wanted import Wanted, wanted


@dataclass(frozen=True)
class Branch:
    """One task over one channel: what a decoder is trained for."""

    task: str
    channel: str

    @property
    def key(self) -> str:
        return f"{self.task}@{self.channel}"


@dataclass(frozen=True)
class Receiver:
    """One receiver of the federation.

    Attributes:
        id: its number, from 0; also the number of its partition of the data.
        group: its group in the scenario.
        branches: its tasks and their channels.
        decoder: `local` or `group`.
    """

    id: int
    group: str
    branches: tuple[Branch, ...]
    decoder: str


@dataclass(frozen=True)
class Plan:
    """A checked scenario (one cell of its sweep) with its data; the same for every seed.

    Attributes:
        scenario: with files for the networks that it wants trained.
        dataset: its pictures.
        receivers: all of them.
        device: where the arithmetic runs.
        wanted: networks that must be trained before anything else.
    """

    scenario: Scenario
    dataset: Dataset
    receivers: tuple[Receiver, ...]
    device: torch.device
    wanted: tuple[Wanted, ...] = ()

    @cached_property
    def images(self) -> ImageFormat:
        """Shape and statistics of the images."""
        shape = self.dataset.train.images.shape[1:]
        return ImageFormat((int(shape[0]), int(shape[1]), int(shape[2])), self.dataset.mean, self.dataset.std)

    @cached_property
    def channel_uses(self) -> int:
        """nc."""
        return int(self.scenario.link.encoder.uses(self.images))

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """All branches of the federation, each once, in the order of the receivers."""
        return tuple(dict.fromkeys(branch for receiver in self.receivers for branch in receiver.branches))

    def task(self, branch: Branch) -> Task:
        return self.scenario.tasks[branch.task]

    def channel(self, branch: Branch) -> Channel:
        return self.scenario.channels[branch.channel]

    def decoder_format(self, branch: Branch) -> DecoderFormat:
        channel = self.channel(branch)
        return DecoderFormat(
            width=channel.width(self.channel_uses, self.scenario.link.symbols),
            channel_uses=self.channel_uses,
            image_shape=self.images.shape,
            classes=len(self.dataset.classes),
            range_bins=getattr(channel, "range_bins", 1),
            paints=self.scenario.link.encoder.paints and not channel.is_sensing,
            categories=self.dataset.categories,
            keypoints=0 if (objects := self.dataset.train.objects) is None else objects.keypoints.shape[1],
        )

    def new_transmitter(self) -> Transmitter:
        """A transmitter on the plan's device, initialised from torch's global generator."""
        link = self.scenario.link
        encoder = link.encoder.build(self.images)
        transmitter = Transmitter(encoder, link.symbols, link.power, self.scenario.compute.precision)
        return transmitter.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def new_decoder(self, branch: Branch) -> nn.Module:
        """A decoder on the plan's device, initialised from torch's global generator."""
        return self.task(branch).build(self.decoder_format(branch)).to(self.device)

    def train_snr(self, branch: Branch) -> float | Uniform:
        """Training SNR of a branch: `sensing_snr_db` for sensing channels where it is given."""
        train = self.scenario.train
        if self.channel(branch).is_sensing and train.sensing_snr_db is not None:
            return train.sensing_snr_db
        return train.snr_db

    def partition(self, seed: int) -> list[np.ndarray]:
        """Indices of the training images that each receiver holds."""
        key = Stream(seed).child("partition").key % 2**31
        return self.scenario.data.partition.split(self.dataset.train.labels, len(self.receivers), key)

    @cached_property
    def train_examples(self) -> Examples:
        """Training images on the plan's device, uint8 (N, C, H, W), with all that is known of them."""
        return examples_of(self.dataset.train, self.device)

    def some_train_images(self, count: int) -> Tensor:
        """At most `count` training images in [0, 1], evenly spaced: a data set may be sorted by class."""
        total = len(self.dataset.train)
        count = min(count, total)
        return self.train_examples.images[torch.arange(count, device=self.device) * total // count].float() / 255

    def trained_branches(self, receiver: Receiver) -> tuple[Branch, ...]:
        """Those of a receiver's branches that it trains with. Others, which have weight 0 and a decoder with nothing to
        learn, are only scored."""
        return tuple(branch for branch in receiver.branches if self.task(branch).weight or branch in self._learning)

    @cached_property
    def _learning(self) -> frozenset[Branch]:
        """Branches whose decoders have parameters."""
        with torch.random.fork_rng(devices=[]):
            return frozenset(b for b in self.branches if any(True for _ in self.new_decoder(b).parameters()))


def examples_of(split: Split, device: torch.device) -> Examples:
    """A split as tensors; images stay uint8."""
    objects = split.objects
    if objects is None:
        return Examples(_tensor(split.images, device), _tensor(split.labels, device))
    keypoints = np.zeros((len(split), max(1, objects.most), *objects.keypoints.shape[1:]), np.float32)
    for i in range(len(split)):
        here = objects.keypoints[objects.first[i] : objects.first[i + 1]]
        keypoints[i, : len(here)] = here
    return Examples(
        _tensor(split.images, device),
        _tensor(split.labels, device),
        truth_of(objects).to(device),
        _tensor(keypoints, device),
        _tensor(objects.segmentation, device),
    )


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)


def make_plan(scenario: Scenario) -> Plan:
    """The plan of a scenario that `resolve` has already checked."""
    dataset = scenario.data.load()
    named, networks = wanted(scenario, dataset)
    return Plan(named, dataset, _receivers(named), _device(named.compute.device), tuple(networks))


def resolve(scenario: Scenario) -> Plan:
    """Check a scenario against its data and plug-ins.

    Raises:
        ScenarioError: an impossible combination, as one sentence with its YAML path.
        DataError: the data set is missing or cannot be read.
    """
    _check_channels(scenario)
    _check_use(scenario)
    _check_federation(scenario)
    plan = make_plan(scenario)
    missing = [one for one in plan.wanted if not one.path.is_file()]
    for one in missing:
        stand_in(str(one.path), one.untrained(plan.dataset))
    try:
        _check_networks(plan)
    finally:
        for one in missing:
            stand_in(str(one.path), None)
    return plan


def _check_networks(plan: Plan) -> None:
    """The checks that need the encoder and the decoders, or what stands in for those that are to be trained."""
    scenario = plan.scenario
    if scenario.link.symbols == "complex" and plan.channel_uses % 2:
        raise ScenarioError(
            f"In the scenario, 'link.encoder.channel_uses': complex symbols carry two numbers each, so "
            f"{plan.channel_uses} must be even; change it, or use symbols: real."
        )
    plan.new_transmitter()
    _check_tasks(plan)
    _check_patches(plan)
    _check_groups(plan)
    if scenario.federation.kind == "flower":
        for seed in scenario.seeds:
            plan.partition(seed)
        asked = asked_per_round(plan)
        if (scenario.federation.min_receivers or 0) > asked:
            raise ScenarioError(
                f"In the scenario, 'federation.min_receivers': {scenario.federation.min_receivers} receivers can never "
                f"answer when each round asks {asked} (fraction {scenario.federation.fraction} of "
                f"{len(plan.receivers)}); lower it, or raise the fraction."
            )
    for name, attack in scenario.attacks.items():
        attack.check(f"attacks.{name}", plan)


@lru_cache(maxsize=4)
def plan_of_text(text: str) -> Plan:
    """The plan of a checked scenario given as JSON; kept for the next call, as nodes ask again every round."""
    return make_plan(check_scenario(json.loads(text)))


def scenario_text(scenario: Scenario) -> str:
    """The scenario as canonical JSON: the text that stages are keyed by and workers receive."""
    return json.dumps(dump_scenario(scenario), sort_keys=True)


def asked_per_round(plan: Plan) -> int:
    """How many receivers each round asks: the fraction, rounded, and at least one."""
    return max(1, round(plan.scenario.federation.fraction * len(plan.receivers)))


def _receivers(scenario: Scenario) -> tuple[Receiver, ...]:
    receivers: list[Receiver] = []
    for name, group in scenario.receivers.items():
        branches = tuple(Branch(task, str(group.channel_of(task))) for task in group.tasks)
        receivers += [Receiver(len(receivers) + i, name, branches, group.decoder) for i in range(group.count)]
    return tuple(receivers)


def _check_channels(scenario: Scenario) -> None:
    for name, group in scenario.receivers.items():
        for task in group.tasks:
            channel_name = str(group.channel_of(task))
            sensing = scenario.channels[channel_name].is_sensing
            if scenario.tasks[task].is_sensing != sensing:
                need, have = ("a sensing", "a communication") if not sensing else ("a communication", "a sensing")
                raise ScenarioError(
                    f"In the scenario, 'receivers.{name}': the task '{task}' needs {need} channel, but "
                    f"'{channel_name}' is {have} channel; name a channel for each task in 'channel'."
                )


def _check_tasks(plan: Plan) -> None:
    """Every task has what it needs, and something is trained."""
    scenario = plan.scenario
    objects = plan.dataset.train.objects
    for branch in plan.branches:
        task, where = plan.task(branch), f"In the scenario, 'tasks.{branch.task}'"
        if task.is_sensing and plan.new_transmitter().digital:
            raise ScenarioError(
                f"{where}: a digital transmission has no waveform that a target could reflect; use "
                "link.encoder.transport: analog."
            )
        if task.needs is not None:
            if not scenario.link.encoder.paints:
                raise ScenarioError(
                    f"{where}: '{task.kind}' decodes a painted picture, which link.encoder "
                    f"'{scenario.link.encoder.kind}' does not give; use the encoder 'mae'."
                )
            lacking = objects is None or (task.needs == "keypoints" and not objects.keypoints.shape[1])
            if task.needs != "picture" and lacking:
                raise ScenarioError(
                    f"{where}: '{task.kind}' needs annotated {task.needs}, which the data set "
                    f"'{plan.dataset.name}' does not have; use 'digit_scenes', or 'coco' with the right annotations."
                )
            if scenario.train.augment:
                raise ScenarioError(
                    f"In the scenario, 'train.augment': boxes and masks of '{branch.task}' would not move with the "
                    "pictures; remove it."
                )
        plan.new_decoder(branch)
    for receiver in {receiver.group: receiver for receiver in plan.receivers}.values():
        if not any(plan.task(branch).weight for branch in receiver.branches):
            raise ScenarioError(
                f"In the scenario, 'receivers.{receiver.group}.tasks': all of them have weight 0, so that the shared "
                "encoder learns nothing from these receivers; add a task or raise a weight."
            )


def _check_patches(plan: Plan) -> None:
    """What a transmitter of patches can and cannot do: better said now than after the training."""
    scenario, encoder = plan.scenario, plan.scenario.link.encoder
    grids = [(f"In the scenario, 'evaluation.grids.{i}", grid) for i, grid in enumerate(scenario.evaluation.grids)]
    if not isinstance(encoder, MaeOptions):
        for where, grid in grids:
            for key in ("mask_ratio", "selection"):
                if getattr(grid, key) is not None:
                    raise ScenarioError(f"{where}.{key}': link.encoder '{encoder.kind}' sends no patches; remove it.")
        return
    if scenario.link.power != "per_example":
        raise ScenarioError(
            "In the scenario, 'link.power': patches are sent with power: per_example, since their number varies."
        )
    for name, channel in scenario.channels.items():
        where = f"In the scenario, 'channels.{name}"
        if getattr(channel, "decoder_csi", False):
            raise ScenarioError(f"{where}.decoder_csi': what paints a picture takes no channel estimate; remove it.")
        if encoder.digital and channel.fading_name == "fast":
            raise ScenarioError(
                f"{where}.fading': a digital transmission needs one gain for a whole picture; use fading: block."
            )
        if encoder.csi_correlation < 1 and channel.kind not in ("rayleigh", "awgn", "sensing"):
            raise ScenarioError(
                f"{where}': link.encoder.csi_correlation is the delay of a Rayleigh gain; use kind: rayleigh."
            )
    for where, grid in grids:
        if grid.mask_ratio is not None and encoder.latency_budget_s is not None:
            raise ScenarioError(
                f"{where}.mask_ratio': link.encoder.latency_budget_s decides how many patches are sent; remove one of "
                "the two."
            )
        attacks = [name for name in grid.attacks if name != "none"]
        if "original" in (grid.selection or []) and (
            attacks or any(task.is_sensing for task in scenario.tasks.values())
        ):
            raise ScenarioError(
                f"{where}.selection': 'original' shows receivers the images themselves, which no attack on the link "
                "and no radar meets; give it a grid of its own, without attacks and sensing tasks."
            )
        disturbs = [name for name in attacks if name != "noise" and "air" in scenario.attacks[name].sites]
        if encoder.digital and disturbs:
            raise ScenarioError(
                f"In the scenario, 'attacks.{disturbs[0]}.sites': a digital transmission has no waveform that could be "
                "disturbed; use link.encoder.transport: analog, or sites: [input]."
            )


def _check_groups(plan: Plan) -> None:
    first: dict[str, tuple[dict[str, torch.Size], str]] = {}
    for group in {receiver.group: receiver for receiver in plan.receivers if receiver.decoder == "group"}.values():
        for branch in group.branches:
            shapes = {name: value.shape for name, value in plan.new_decoder(branch).named_parameters()}
            others, where = first.setdefault(branch.task, (shapes, group.group))
            if shapes != others:
                raise ScenarioError(
                    f"In the scenario, 'receivers.{group.group}.decoder': decoders of the task '{branch.task}' cannot "
                    f"be averaged with those of group '{where}': over their channels they have other shapes; use "
                    "decoder: local."
                )


def _check_use(scenario: Scenario) -> None:
    # Silently training without what a person asked for would be worse than refusing.
    for key, named in (("attacks", scenario.use.attacks), ("defenses", scenario.use.defenses)):
        if named:
            raise ScenarioError(
                f"In the scenario, 'use.{key}': '{named[0]}' does not act in training; leave it out, and list attacks "
                "of the test phase in 'evaluation.grids'."
            )


def _check_federation(scenario: Scenario) -> None:
    federation, plain = scenario.federation, Federation()
    if federation.kind == "none":
        for key in ("aggregator", "server_optimizer", "fraction", "min_receivers"):
            if getattr(federation, key) != getattr(plain, key):
                raise ScenarioError(
                    f"In the scenario, 'federation.{key}': the centralised reference (kind: none) averages nothing; "
                    "remove it, or use kind: flower."
                )


def _device(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ScenarioError("compute.device: no CUDA device is available here; use --device cpu.")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    # TF32 rounds to 10 bits, and the quickest algorithm differs from run to run: neither is what float32 promises.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return torch.device("cuda")


def describe(plan: Plan, branch: Branch) -> dict[str, Any]:
    """The table's columns that a branch decides."""
    channel, snr = plan.channel(branch), plan.train_snr(branch)
    return {
        "task": branch.task,
        "encoder": plan.scenario.link.encoder.kind,
        "channel": channel.kind,
        "fading": channel.fading_name,
        "csi": channel.csi_name,
        "symbols": plan.scenario.link.symbols,
        # A digital transmission is counted in bits.
        "channel_uses": None if getattr(plan.scenario.link.encoder, "digital", False) else plan.channel_uses,
        "train_snr_db": f"{snr.uniform[0]:g}..{snr.uniform[1]:g}" if isinstance(snr, Uniform) else f"{snr:g}",
    }
