"""What a receiver's loss would be with other parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fedsem.local_step import ReceiverStep, draw_for
from fedsem.plan import Plan
from fedsem.poisoning import Poisoning
from fedsem.streams import Stream
from fedsem.training import Parameters, ReceiverTask

_NOBODY = -1
"""A number that no receiver has, which no attack acts on."""
_AT_ONCE = 128


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
        self._transmitter = plan.transmitter_with(task.shared)
        self._decoders = {branch: plan.decoder_with(branch, task.decoders[branch.key]) for branch in task.branches}
        for network in (self._transmitter, *self._decoders.values()):
            network.eval().requires_grad_(False)
        snr = self._stream.child("snr").torch(plan.device)
        air = {branch: self._stream.child("air", branch.key).torch(plan.device) for branch in task.branches}
        nothing = Poisoning(plan, _NOBODY, task.seed, task.round, task.indices)
        self._sent: Parameters | None = None
        self._steps: list[ReceiverStep] = []
        for chosen in torch.from_numpy(np.ascontiguousarray(task.indices)).to(plan.device).split(_AT_ONCE):
            batch = plan.train_examples.at(chosen)
            batch = replace(batch, images=batch.images.float() / 255)
            shape = (1, len(chosen))
            drawn = {one: draw_for(plan, one, shape, self._transmitter, air[one], snr) for one in task.branches}
            self._steps.append(
                ReceiverStep(plan, task.branches, self._transmitter, self._decoders, nothing, batch, chosen, drawn, 0.0)
            )

    @torch.no_grad()
    def loss(self, shared: Parameters, decoders: Mapping[str, Parameters]) -> float:
        """The mean loss with these parameters of the encoder, and of the decoders by branch key; infinite where it is
        not a number. What is sent is worked out again where `shared` is not the very object of the last call."""
        if shared is not self._sent:
            self._transmitter.encoder.load_state_dict(shared)
            for step in self._steps:
                step.forget()
            self._sent = shared
        for branch, decoder in self._decoders.items():
            decoder.load_state_dict(decoders[branch.key])
        total = 0.0
        # Encoders that send chosen patches draw how many.
        with self._stream.child("chance").fork(self._device):
            for step in self._steps:
                total += float(step.loss({})) * len(step.numbers)
        return math.inf if math.isnan(total) else total / self.images
