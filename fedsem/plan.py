"""From a scenario to a plan: everything that is decided before the first training step."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.channels.channel import Channel
from fedsem.data.dataset import Dataset, Split
from fedsem.errors import ScenarioError
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.augmentation import Augmentation
from fedsem.hooks.loss import LossDefense
from fedsem.hooks.monitor import Monitor
from fedsem.hooks.sanitise import DataFilter
from fedsem.hooks.update_defense import UpdateDefense
from fedsem.link import Transmitter
from fedsem.models.detector_loss import truth_of
from fedsem.models.encoder import ImageFormat
from fedsem.scenario import Scenario, Uniform, check_scenario, dump_scenario
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

    @cached_property
    def training_attacks(self) -> tuple[TrainingAttack, ...]:
        """The attacks that act in training."""
        return tuple(self.scenario.attacks[name] for name in self.scenario.use.attacks)

    @cached_property
    def loss_defense(self) -> LossDefense | None:
        """The defense that changes what receivers minimise."""
        named = (self.scenario.defenses[name] for name in self.scenario.use.defenses)
        return next((defense for defense in named if isinstance(defense, LossDefense)), None)

    @cached_property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The defenses that change training images, in the order of `use.defenses`."""
        named = (self.scenario.defenses[name] for name in self.scenario.use.defenses)
        return tuple(defense for defense in named if isinstance(defense, Augmentation))

    @cached_property
    def update_defense(self) -> UpdateDefense | None:
        """The defense that limits what receivers send."""
        named = (self.scenario.defenses[name] for name in self.scenario.use.defenses)
        return next((defense for defense in named if isinstance(defense, UpdateDefense)), None)

    @cached_property
    def data_filters(self) -> tuple[DataFilter, ...]:
        """The defenses that choose what receivers train on, in their order."""
        named = (self.scenario.defenses[name] for name in self.scenario.use.defenses)
        return tuple(defense for defense in named if isinstance(defense, DataFilter))

    @cached_property
    def monitors(self) -> dict[str, Monitor]:
        """What the server watches after every round, by name."""
        named = {name: self.scenario.defenses[name] for name in self.scenario.use.defenses}
        return {name: defense for name, defense in named.items() if isinstance(defense, Monitor)}

    def accomplices(self, seed: int) -> frozenset[int]:
        """Receivers that work for an adversary in training: what their own decoders say is nobody's loss."""
        working = [attack for attack in self.training_attacks if attack.accomplices]
        return frozenset(number for attack in working for number in attack.malicious(len(self.receivers), seed))

    def new_transmitter(self) -> Transmitter:
        """A transmitter on the plan's device, initialised from torch's global generator."""
        link = self.scenario.link
        encoder = link.encoder.build(self.images)
        transmitter = Transmitter(encoder, link.symbols, link.power, self.scenario.compute.precision)
        return transmitter.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def new_decoder(self, branch: Branch) -> nn.Module:
        """A decoder on the plan's device, initialised from torch's global generator."""
        return self.task(branch).build(self.decoder_format(branch)).to(self.device)

    @cached_property
    def _networks(self) -> tuple[Transmitter, dict[Branch, nn.Module]]:
        with torch.random.fork_rng(devices=[]):
            return self.new_transmitter(), {branch: self.new_decoder(branch) for branch in self.branches}

    # Copies: drawing initial weights that are overwritten at once costs a receiver more than a step of training.
    def transmitter_with(self, shared: Mapping[str, Tensor]) -> Transmitter:
        """A transmitter whose encoder has these parameters; torch's global generator stays as it is."""
        transmitter = copy.deepcopy(self._networks[0])
        transmitter.encoder.load_state_dict(shared)
        return transmitter

    def decoder_with(self, branch: Branch, parameters: Mapping[str, Tensor]) -> nn.Module:
        """A decoder with these parameters; torch's global generator stays as it is."""
        decoder = copy.deepcopy(self._networks[1][branch])
        decoder.load_state_dict(parameters)
        return decoder

    def train_snr(self, branch: Branch) -> float | Uniform:
        """Training SNR of a branch: `sensing_snr_db` for sensing channels where it is given."""
        train = self.scenario.train
        if self.channel(branch).is_sensing and train.sensing_snr_db is not None:
            return train.sensing_snr_db
        return train.snr_db

    def drawn_snr(self, branch: Branch, shape: tuple[int, ...], generator: torch.Generator) -> float | Tensor:
        """Training SNRs of so many receptions of a branch: a number, or one for each, of this shape."""
        snr = self.train_snr(branch)
        if not isinstance(snr, Uniform):
            return snr
        low, high = snr.uniform
        return low + (high - low) * torch.rand(shape, device=generator.device, generator=generator)

    def partition(self, seed: int) -> list[np.ndarray]:
        """Indices of the training images that each receiver holds."""
        key = Stream(seed).child("partition").key % 2**31
        return self.scenario.data.partition.split(self.dataset.train.labels, len(self.receivers), key)

    @cached_property
    def train_examples(self) -> Examples:
        """Training images on the plan's device, uint8 (N, C, H, W), with all that is known of them."""
        return examples_of(self.dataset.train, self.device)

    @cached_property
    def test_examples(self) -> Examples:
        """Test images on the plan's device, as `train_examples`."""
        return examples_of(self.dataset.test, self.device)

    def some_train_examples(self, count: int) -> Examples:
        """At most `count` training images in [0, 1], evenly spaced: a data set may be sorted by class."""
        total = len(self.dataset.train)
        count = min(count, total)
        some = self.train_examples.at(torch.arange(count, device=self.device) * total // count)
        return replace(some, images=some.images.float() / 255)

    def some_train_images(self, count: int) -> Tensor:
        """`some_train_examples` without what else is known of them."""
        return self.some_train_examples(count).images

    def trained_branches(self, receiver: Receiver) -> tuple[Branch, ...]:
        """Those of a receiver's branches that it trains with. Others, which have weight 0 and a decoder with nothing to
        learn, are only scored."""
        return tuple(branch for branch in receiver.branches if self.task(branch).weight or branch in self._learning)

    @cached_property
    def _learning(self) -> frozenset[Branch]:
        """Branches whose decoders have parameters."""
        return frozenset(b for b, decoder in self._networks[1].items() if any(True for _ in decoder.parameters()))


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
    """The plan of a scenario that `fedsem.checks.resolve` has already checked."""
    dataset = scenario.data.load()
    named, networks = wanted(scenario, dataset)
    return Plan(named, dataset, _receivers(named), _device(named.compute.device), tuple(networks))


@lru_cache(maxsize=4)
def plan_of_text(text: str) -> Plan:
    """The plan of a checked scenario given as JSON; kept for the next call, as nodes ask again every round."""
    return make_plan(check_scenario(json.loads(text)))


def scenario_text(scenario: Scenario) -> str:
    """The scenario as JSON, for workers. Keys keep their order: receivers are numbered by that of their groups."""
    return json.dumps(dump_scenario(scenario))


def asked_per_round(plan: Plan) -> int:
    """How many receivers each round asks: the fraction, rounded, and at least one."""
    return max(1, round(plan.scenario.federation.fraction * len(plan.receivers)))


def _receivers(scenario: Scenario) -> tuple[Receiver, ...]:
    receivers: list[Receiver] = []
    for name, group in scenario.receivers.items():
        branches = tuple(Branch(task, str(group.channel_of(task))) for task in group.tasks)
        receivers += [Receiver(len(receivers) + i, name, branches, group.decoder) for i in range(group.count)]
    return tuple(receivers)


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


def warn_of_slow_precision(plan: Plan) -> None:
    """Log that the scenario's precision is a slow one on this machine, where torch can tell: without instructions for
    bfloat16 a CPU emulates them, and the [S3] network trains at a twelfth of float32's speed."""
    if plan.scenario.compute.precision != "bf16" or plan.device.type != "cpu":
        return
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if known and not any(there for name, there in known.items() if "bf16" in name):
        logging.getLogger(__name__).warning(
            "Warning: compute.precision is bf16, which this CPU has no instructions for: training may be ten times as "
            "fast with --set compute.precision=float32."
        )


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
