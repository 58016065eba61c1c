"""A trained link: the transmitter and every receiver's decoders, ready to be measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.link import Transmitter
from fedsem.plan import Branch, Plan
from fedsem.training import Parameters


@dataclass(frozen=True)
class Listener:
    """A decoder at the end of a channel; receivers that share a decoder and a channel are one listener.

    Attributes:
        name: names its random streams.
        group: its receiver group, as in the scenario; several that share the decoder are joined by `+`.
        branch: its task and channel.
        decoder: its network, in evaluation mode.
    """

    name: str
    group: str
    branch: Branch
    decoder: nn.Module


@dataclass(frozen=True)
class TrainedLink:
    """A transmitter and its listeners, with the test images.

    Attributes:
        plan: what it was trained for.
        seed: the seed that it was trained with.
        transmitter: in evaluation mode, its gain fixed.
        listeners: all of them, in the order of the receivers.
        images: test images in [0, 1], (N, C, H, W).
        labels: their classes, (N,).
    """

    plan: Plan
    seed: int
    transmitter: Transmitter
    listeners: tuple[Listener, ...]
    images: Tensor
    labels: Tensor

    @classmethod
    def build(
        cls,
        plan: Plan,
        seed: int,
        shared: Parameters,
        decoders: dict[tuple[int, Branch], tuple[str, Parameters]],
    ) -> TrainedLink:
        """Assemble a link.

        Args:
            plan: what it was trained for.
            seed: the seed of its training.
            shared: parameters of the encoder.
            decoders: for each receiver and branch, the owner of the decoder and its parameters.
        """
        with torch.random.fork_rng(devices=[]):
            transmitter = plan.new_transmitter()
        transmitter.precision = "float32"
        transmitter.encoder.load_state_dict(shared)
        transmitter.eval().requires_grad_(False)
        transmitter.calibrate(plan.some_train_images(4096), plan.scenario.evaluation.batch)
        groups: dict[tuple[str, Branch], dict[str, None]] = {}
        parameters: dict[tuple[str, Branch], Parameters] = {}
        for receiver in plan.receivers:
            for branch in receiver.branches:
                who, values = decoders[receiver.id, branch]
                groups.setdefault((who, branch), {})[receiver.group] = None
                parameters[who, branch] = values
        listeners = []
        for (who, branch), named in groups.items():
            with torch.random.fork_rng(devices=[]):
                decoder = plan.new_decoder(branch)
            decoder.load_state_dict(parameters[who, branch])
            decoder.eval().requires_grad_(False)
            listeners.append(Listener(f"{who}/{branch.key}", "+".join(named), branch, decoder))
        test = plan.dataset.test
        return cls(
            plan,
            seed,
            transmitter,
            tuple(listeners),
            torch.from_numpy(np.array(test.images)).to(plan.device).float() / 255,
            torch.from_numpy(np.array(test.labels)).to(plan.device),
        )

    def is_sensing(self, listener: Listener) -> bool:
        return self.plan.channel(listener.branch).is_sensing
