"""Local training of receivers: a pure function of parameters, data and a named random stream.

Nothing here knows Flower: a node of the federation, the centralised reference and the tests all call `train`.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.link import Transmitter
from fedsem.local_step import ReceiverStep, draw_for
from fedsem.plan import Branch, Plan
from fedsem.poisoning import Poisoning
from fedsem.sanitising import sanitised
from fedsem.scenario import Optimizer
from fedsem.stepping import Untouched
from fedsem.streams import Stream

log = logging.getLogger(__name__)
Parameters = dict[str, Tensor]


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
                    branch: draw_for(plan, branch, (config.draws, len(chosen)), transmitter, air[branch], snr)
                    for branch in task.branches
                }
                local = ReceiverStep(
                    plan, task.branches, transmitter, decoders, poisoning, batch, chosen, drawn, done / passes
                )
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
