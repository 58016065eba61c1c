"""Local training of receivers: a pure function of parameters, data and a named random stream.

Nothing here knows Flower: a node of the federation, the centralised reference and the tests all call `train`.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.channels.reach import reach
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import Decoding
from fedsem.link import Transmission, Transmitter
from fedsem.plan import Branch, Plan
from fedsem.poisoning import Poisoning
from fedsem.sanitising import sanitised
from fedsem.scenario import Optimizer
from fedsem.stepping import Untouched
from fedsem.streams import Stream
from fedsem.tasks.task import Examples
from fedsem.units import energy

log = logging.getLogger(__name__)
Parameters = dict[str, Tensor]
_NOBODY = -1
"""A number that no receiver has, which no attack acts on."""
_TRIED_AT_ONCE = 128


@dataclass(frozen=True)
class ReceiverTask:
    """What one receiver is asked to do in one round.

    Attributes:
        receiver: its id.
        seed: the run's seed.
        round: number of the round, from 1.
        branches: its tasks and their channels, with the weight of each in its loss; 0: its decoder learns, the encoder
            does not.
        indices: its training images.
        shared: parameters of the encoder.
        decoders: parameters of its decoders, by branch key.
        optimizer: the optimiser's state from its last round; empty to start afresh.
        keep_optimizer: return that state.
        proximal_mu: see `Aggregator.proximal_mu`.
        moved: how far the last round moved what the server averages, by `shared/NAME` or `BRANCH KEY/NAME`; empty for
            receivers that make nothing of it.
    """

    receiver: int
    seed: int
    round: int
    branches: Mapping[Branch, float]
    indices: np.ndarray
    shared: Parameters
    decoders: dict[str, Parameters]
    optimizer: Parameters = field(default_factory=dict)
    keep_optimizer: bool = False
    proximal_mu: float = 0.0
    moved: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What a receiver sends back: deltas of shared parameters, new values of its decoders.

    Attributes:
        receiver: its id.
        examples: images it trained on.
        delta: new minus old parameters of the encoder.
        decoders: new parameters of its decoders, by branch key.
        optimizer: the optimiser's state, if it was asked for.
        losses: mean training loss of each branch over the last epoch.
        removed: what its filters left out (`fedsem.sanitising.Sanitised`); None where none acts.
        error: why it failed; everything else is then empty.
    """

    receiver: int
    examples: int = 0
    delta: Parameters = field(default_factory=dict)
    decoders: dict[str, Parameters] = field(default_factory=dict)
    optimizer: Parameters = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    removed: tuple[int, int, int, int] | None = None
    error: str | None = None


def train(plan: Plan, tasks: Sequence[ReceiverTask]) -> list[Reply]:
    """Train each receiver in turn. One that raises is reported in its reply and does not stop the others."""
    replies = []
    for task in tasks:
        try:
            replies.append(train_receiver(plan, task))
        except Exception as error:  # the border between receivers: whatever one of them does, the others go on
            log.error("Receiver %d failed in round %d:\n%s", task.receiver, task.round, traceback.format_exc())
            replies.append(Reply(task.receiver, error=f"{type(error).__name__}: {error}"))
    return replies


def initial_parameters(plan: Plan, seed: int) -> tuple[Parameters, dict[str, Parameters]]:
    """Encoder and one decoder for each branch as they are before the first round; all receivers start alike."""
    root = Stream(seed).child("initialise")
    with root.child("encoder").fork():
        shared = detached(plan.new_transmitter().encoder)
    decoders = {}
    for branch in plan.branches:
        with root.child("decoder", branch.task).fork():
            decoders[branch.key] = detached(plan.new_decoder(branch))
    return shared, decoders


def detached(module: nn.Module) -> Parameters:
    """A contiguous copy of a module's parameters on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}


def learning_rate(optimizer: Optimizer, progress: float) -> float:
    """Learning rate at `progress` in [0, 1] of the whole run; a function of progress alone, so it needs no state."""
    if optimizer.schedule == "constant":
        return optimizer.lr
    if optimizer.schedule == "cosine":
        return optimizer.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if progress < 0.3:
        return optimizer.lr * (0.04 + 0.96 * progress / 0.3)
    return optimizer.lr * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)))


def train_receiver(plan: Plan, task: ReceiverTask) -> Reply:
    """One round of one receiver: `train.epochs` passes over its images.

    Its loss is sum_t lambda_t L_t / sum_t lambda_t over its branches, plus mu/2 ||w - w_global||^2 over the encoder:
    normalised, because lambda also weighs the receiver in the shared average (design section 4). Decoders of tasks with
    lambda = 0 learn from L_t, of which no gradient goes further back. A malicious receiver learns from what its attacks
    make of its samples. Defenses of the hook `data` leave samples out before, or change every batch; one of the hook
    `loss` minimises something else in place of the loss.
    """
    config, device = plan.scenario.train, plan.device
    stream = Stream(task.seed).child("train", task.receiver, task.round)
    transmitter, decoders = _networks(plan, task)
    parameters = [*transmitter.parameters(), *(p for decoder in decoders.values() for p in decoder.parameters())]
    anchor = [p.detach().clone() for p in transmitter.parameters()] if task.proximal_mu else []
    optimizer = _optimizer(config.optimizer, parameters)
    _restore(optimizer, parameters, task.optimizer)
    order = stream.child("order").torch()
    augment = stream.child("augment").torch(device)
    snr = stream.child("snr").torch(device)
    air = {branch: stream.child("air", branch.key).torch(device) for branch in task.branches}
    poisoning = Poisoning(plan, task.receiver, task.seed, task.round, task.indices)
    clean = sanitised(
        plan, task.receiver, task.seed, task.round, list(task.branches), task.indices, transmitter, poisoning
    )
    indices = torch.from_numpy(np.ascontiguousarray(clean.indices))
    untouched = Untouched(
        plan,
        task.receiver,
        task.seed,
        task.round,
        task.moved,
        {"shared": transmitter.encoder, **{branch.key: decoder for branch, decoder in decoders.items()}},
    )
    defense = plan.loss_defense
    steps = math.ceil(len(indices) / config.batch)
    passes = config.epochs * plan.scenario.federation.rounds * steps
    sums: dict[Branch, Tensor] = {}
    transmitter.train()
    with stream.child("dropout").fork(device):
        for epoch in range(config.epochs):
            sums = {branch: torch.zeros((), device=device) for branch in task.branches}
            shuffled = indices[torch.randperm(len(indices), generator=order)].to(device)
            for step, chosen in enumerate(shuffled.split(config.batch)):
                done = ((task.round - 1) * config.epochs + epoch) * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config.optimizer, done / passes)
                batch = plan.train_examples.at(chosen)
                batch = replace(batch, images=_augmented(batch.images.float() / 255, config.augment, augment))
                batch = poisoning.examples(batch, chosen)
                for number, augmentation in enumerate(plan.augmentations):
                    changing = stream.child("augmentation", number, epoch, step)
                    batch = replace(batch, images=augmentation.augmented(batch.images, changing))
                drawn = {
                    branch: _drawn(plan, branch, (config.draws, len(chosen)), transmitter, air[branch], snr)
                    for branch in task.branches
                }
                local = _Step(plan, task, transmitter, decoders, poisoning, batch, chosen, drawn, done / passes)
                place = stream.child("defense", epoch, step)
                loss = local.loss({}) if defense is None else defense.loss(local, place)
                for branch in task.branches:
                    sums[branch] += local.means[branch] * len(chosen)
                if anchor:
                    drift = sum((p - p0).square().sum() for p, p0 in zip(transmitter.parameters(), anchor, strict=True))
                    loss = loss + task.proximal_mu / 2 * drift
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                untouched.restore()
    after = detached(transmitter.encoder)
    return Reply(
        receiver=task.receiver,
        examples=len(indices),
        delta={name: value - task.shared[name] for name, value in after.items()},
        decoders={branch.key: detached(decoder) for branch, decoder in decoders.items()},
        optimizer=_state(optimizer, parameters) if task.keep_optimizer else {},
        losses={branch.key: float(total) / len(indices) for branch, total in sums.items()},
        removed=clean.removed,
    )


class Trial:
    """What a receiver's loss (see `train_receiver`) would be with other parameters of the encoder, or of its decoders:
    mean over its images as they are, each heard once, without dropout, attacks and defenses; with the same draws
    whatever is tried.

    Args:
        plan: the plan.
        task: what the receiver is asked to do; its branches are those that count, each with its weight.
    """

    def __init__(self, plan: Plan, task: ReceiverTask) -> None:
        self.images = len(task.indices)
        self._device, self._stream = plan.device, Stream(task.seed).child("trial", task.receiver, task.round)
        self._transmitter, self._decoders = _networks(plan, task)
        for network in (self._transmitter, *self._decoders.values()):
            network.eval().requires_grad_(False)
        snr = self._stream.child("snr").torch(plan.device)
        air = {branch: self._stream.child("air", branch.key).torch(plan.device) for branch in task.branches}
        nothing = Poisoning(plan, _NOBODY, task.seed, task.round, task.indices)
        self._steps: list[_Step] = []
        for chosen in torch.from_numpy(np.ascontiguousarray(task.indices)).to(plan.device).split(_TRIED_AT_ONCE):
            batch = plan.train_examples.at(chosen)
            batch = replace(batch, images=batch.images.float() / 255)
            shape = (1, len(chosen))
            drawn = {one: _drawn(plan, one, shape, self._transmitter, air[one], snr) for one in task.branches}
            self._steps.append(
                _Step(plan, task, self._transmitter, self._decoders, nothing, batch, chosen, drawn, progress=0.0)
            )

    @torch.no_grad()
    def loss(self, shared: Parameters, decoders: Mapping[str, Parameters]) -> float:
        """The mean loss with these parameters of the encoder, and of the decoders by branch key; infinite where it is
        not a number."""
        self._transmitter.encoder.load_state_dict(shared)
        for branch, decoder in self._decoders.items():
            decoder.load_state_dict(decoders[branch.key])
        total = 0.0
        # Encoders that send chosen patches draw how many.
        with self._stream.child("chance").fork(self._device):
            for step in self._steps:
                step.forget()
                total += float(step.loss({})) * len(step.numbers)
        return math.inf if math.isnan(total) else total / self.images


@dataclass(frozen=True)
class _Drawn:
    """Channel draws of a branch, and the SNR of each."""

    realisation: Realisation
    snr_db: float | Tensor


def _drawn(
    plan: Plan,
    branch: Branch,
    shape: tuple[int, int],
    transmitter: Transmitter,
    air: torch.Generator,
    snr: torch.Generator,
) -> _Drawn:
    # A digital transmission arrives as it is: its errors are outages, from which nothing is learnt.
    uses = 0 if transmitter.digital else plan.channel_uses
    realisation = plan.channel(branch).draw(shape, uses, plan.scenario.link.symbols, air)
    return _Drawn(realisation, 0.0 if transmitter.digital else plan.drawn_snr(branch, shape, snr))


class _Step:
    """One batch of a receiver with its channel draws (`fedsem.hooks.loss.LocalStep`).

    Attributes:
        progress: see `LocalStep`.
        means: loss of each branch at the last call of `loss`.
    """

    def __init__(
        self,
        plan: Plan,
        task: ReceiverTask,
        transmitter: Transmitter,
        decoders: Mapping[Branch, nn.Module],
        poisoning: Poisoning,
        batch: Examples,
        numbers: Tensor,
        drawn: Mapping[Branch, _Drawn],
        progress: float,
    ) -> None:
        self.plan, self.task, self.transmitter, self.decoders = plan, task, transmitter, decoders
        self.poisoning, self.batch, self.numbers, self.drawn = poisoning, batch, numbers, drawn
        self.progress = progress
        self.means: dict[Branch, Tensor] = {}
        self._clean: Transmission | None = None
        self._before: tuple[Tensor, ...] = ()

    def site(self, name: str) -> SiteState:
        """See `LocalStep`."""
        if name == "input":
            return SiteState(self.batch.images, energy(self.batch.images), bounded=True)
        x = self._sent({}).x.detach().float()
        return SiteState(x, energy(x), bounded=False)

    def losses(self, delta: Perturbation) -> Tensor:
        """See `LocalStep`."""
        each = self._by_branch(delta)
        return torch.stack([self._share(branch) * one.mean(0) for branch, one in each.items()]).sum(0)

    def decodings(self, delta: Perturbation) -> list[Decoding]:
        """See `LocalStep`."""
        found = []
        for branch, heard, truth in self._heard(delta, self._sent_alike(delta)):
            decoder = self.decoders[branch]
            with self._precision(branch, heard):
                output = decoder(heard).float()
            found.append(
                Decoding(branch.key, self.plan.task(branch), decoder, self._share(branch), heard, output, truth)
            )
        return found

    def reach(self, name: str) -> Tensor:
        """See `LocalStep`."""
        branch = next(one for one in self.task.branches if one.key == name)
        plan, drawn = self.plan, self.drawn[branch]
        symbols = plan.scenario.link.symbols
        return reach(plan.channel(branch), drawn.realisation, drawn.snr_db, symbols, plan.channel_uses)

    def loss(self, delta: Perturbation) -> Tensor:
        """See `LocalStep`."""
        total = torch.zeros((), device=self.batch.images.device)
        for branch, losses in self._by_branch(delta).items():
            mean = losses.mean()
            total = total + self._share(branch) * mean
            self.means[branch] = mean.detach()
        return total

    def forget(self) -> None:
        """Send the batch anew: the encoder has other parameters."""
        self._clean = None

    def _sent(self, delta: Perturbation) -> Transmission:
        """What is sent for the batch. What a perturbation does on air alone comes after the encoder, which is run once
        for all of them."""
        if "input" in delta:
            return self.transmitter.send(self.batch.images + delta["input"], gates=True)
        if self._clean is None:
            self._before = _chance(self.plan.device)
            # Kept for all that is computed of this batch, which may want its gradient though this caller does not.
            with torch.enable_grad():
                self._clean = self.transmitter.send(self.batch.images, gates=True)
        return self._clean

    def _sent_alike(self, delta: Perturbation) -> Transmission:
        """What is sent, with the dropout of the clean batch."""
        clean = self._sent({})
        if "input" not in delta:
            return clean
        device = self.plan.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.set_rng_state(self._before[0])
            if device.type == "cuda":
                torch.cuda.set_rng_state(self._before[1], device)
            return self._sent(delta)

    def _share(self, branch: Branch) -> float:
        weight = self.task.branches[branch]
        return weight / sum(self.task.branches.values()) if weight else 1.0

    def _by_branch(self, delta: Perturbation) -> dict[Branch, Tensor]:
        """Loss of each branch, draw and example, (draws, B)."""
        found = {}
        for branch, heard, truth in self._heard(delta, self._sent(delta)):
            with self._precision(branch, heard):
                found[branch] = self.plan.task(branch).objective(self.decoders[branch], heard, truth).float()
        return found

    def _precision(self, branch: Branch, heard: Tensor) -> torch.autocast:
        return self.transmitter.autocast(heard, painted=self.plan.decoder_format(branch).paints)

    def _heard(self, delta: Perturbation, sent: Transmission) -> Iterator[tuple[Branch, Tensor, Tensor]]:
        """Each branch, what its decoder decodes, (draws, B, ...), and the truth."""
        plan, transmitter, symbols = self.plan, self.transmitter, self.plan.scenario.link.symbols
        interference = self.poisoning.interference(sent.x, self.batch.labels, self.numbers)
        if "air" in delta:
            interference = delta["air"] if interference is None else interference + delta["air"]
        rotation = self.poisoning.rotation(self.numbers)
        heard = transmitter.hear(sent.x.unsqueeze(0), sent) if transmitter.digital else None
        for branch, weight in self.task.branches.items():
            channel, objective, drawn = plan.channel(branch), plan.task(branch), self.drawn[branch]
            if heard is None:
                received = channel.apply(sent.x, drawn.realisation, drawn.snr_db, symbols, interference, rotation)
                received = received if channel.is_sensing else transmitter.hear(received, sent)
            else:
                received = heard
            truth = self.poisoning.truth(branch, objective.truth(self.batch, drawn.realisation), self.numbers)
            yield branch, received if weight else received.detach(), truth


def _chance(device: torch.device) -> tuple[Tensor, ...]:
    """States of torch's global generators, which dropout reads."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _networks(plan: Plan, task: ReceiverTask) -> tuple[Transmitter, dict[Branch, nn.Module]]:
    decoders = {branch: plan.decoder_with(branch, task.decoders[branch.key]) for branch in task.branches}
    return plan.transmitter_with(task.shared), decoders


def _optimizer(options: Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if options.kind == "sgd":
        return torch.optim.SGD(
            parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
        )
    cls = torch.optim.Adam if options.kind == "adam" else torch.optim.AdamW
    return cls(parameters, options.lr, weight_decay=options.weight_decay, fused=True)


def _state(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Parameters:
    return {
        f"{i}.{name}": value.detach().to("cpu", copy=True).contiguous()
        for i, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def _restore(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], state: Parameters) -> None:
    for name, value in state.items():
        index, _, entry = name.partition(".")
        parameter = parameters[int(index)]
        # A fresh copy in the parameter's own memory format: fused optimisers work on matching strides.
        like = (
            torch.empty_like(parameter)
            if value.shape == parameter.shape
            else torch.empty_like(value, device=parameter.device)
        )
        optimizer.state[parameter][entry] = like.copy_(value)


def _augmented(images: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """`flip`: mirrored with probability 1/2. `crop`: 4 pixels of reflection on each side, then a random crop."""
    n, _, height, width = images.shape
    if "flip" in kinds:
        mirrored = torch.rand(n, 1, 1, 1, device=images.device, generator=generator) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    if "crop" in kinds:
        padded = nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
        shift = torch.randint(0, 9, (2, n, 1), device=images.device, generator=generator)
        rows = shift[0] + torch.arange(height, device=images.device)
        columns = shift[1] + torch.arange(width, device=images.device)
        example = torch.arange(n, device=images.device).view(n, 1, 1)
        # Advanced indices around a slice come first: (n, height, width, C).
        images = padded[example, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    return images
