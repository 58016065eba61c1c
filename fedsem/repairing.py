"""A copy of a trained link that learns on: what repairs have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsem.channels.channel import Realisation
from fedsem.hooks.repair import Finding, Repairable, Repaired, Trigger
from fedsem.plan import examples_of
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.task import Examples

_ROWS = 256
"""Images that go through the encoder at once where nothing is learnt."""


class LinkCopy:
    """Networks of a trained link that may be changed, and the clean images to do it with.

    Args:
        link: the link; it stays as it is.

    Attributes:
        plan: the link's.
        transmitter, decoders: copies in evaluation mode; decoders by their listener's name.
        branches: of the listeners.
        examples: of `data.reserve`, images in [0, 1].
    """

    def __init__(self, link: Repairable) -> None:
        self.plan = link.plan
        self.transmitter = copy.deepcopy(link.transmitter)
        self.decoders = {one.name: copy.deepcopy(one.decoder) for one in link.listeners}
        self.branches = {one.name: one.branch for one in link.listeners}
        assert self.plan.dataset.reserve is not None, "checked with the scenario"
        examples = examples_of(self.plan.dataset.reserve, self.plan.device)
        self.examples = replace(examples, images=examples.images.float() / 255)

    def deciding(self, task: str | None = None) -> list[str]:
        """Names of the listeners that decide classes, of one task or of all."""
        return [
            name
            for name, branch in self.branches.items()
            if isinstance(self.plan.task(branch), Classification) and task in (None, branch.task)
        ]

    def received(self, name: str, x: Tensor, draws: int, stream: Stream) -> tuple[Tensor, Realisation]:
        """What a listener decodes of what is sent, (draws, B, width), at the SNR of its training.

        Args:
            name: of the listener.
            x: (B, nc).
            draws: receptions of each.
            stream: of the air.
        """
        branch, symbols = self.branches[name], self.plan.scenario.link.symbols
        channel = self.plan.channel(branch)
        snr = self.plan.drawn_snr(branch, (draws, len(x)), stream.child("snr").torch(x.device))
        air = channel.draw((draws, len(x)), self.plan.channel_uses, symbols, stream.child("air").torch(x.device))
        return channel.apply(x, air, snr, symbols), air

    def loss(self, examples: Examples, stream: Stream) -> Tensor:
        """The tasks' losses of these images, weighted, over all listeners: a scalar."""
        x = self.transmitter.send(examples.images).x
        total, weights = torch.zeros((), device=x.device), 0.0
        for name, branch in self.branches.items():
            task = self.plan.task(branch)
            # One draw of the air for each branch: listeners of the same branch are as good as each other.
            heard, air = self.received(name, x, self.plan.scenario.train.draws, stream.child(name))
            weight = task.weight or 1.0
            total = (
                total
                + weight
                * task.objective(
                    self.decoders[name], heard if task.weight else heard.detach(), task.truth(examples, air)
                ).mean()
            )
            weights += weight
        return total / weights

    @torch.no_grad()
    def error(self, examples: Examples, draws: int, stream: Stream) -> float:
        """Share of wrong decisions, over all listeners that decide classes, images and draws."""
        x = torch.cat([self.transmitter.send(part).x for part in examples.images.split(_ROWS)])
        wrong = []
        for name in self.deciding():
            heard, air = self.received(name, x, draws, stream.child(name))
            task = self.plan.task(self.branches[name])
            wrong.append(task.failure(self.decoders[name], heard, task.truth(examples, air)).mean())
        return float(torch.stack(wrong).mean())

    def learn(
        self,
        examples: Examples,
        epochs: int,
        lr: float,
        stream: Stream,
        change: Callable[[Tensor, Stream], Tensor] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Train encoder and decoders on.

        Args:
            examples: images.
            epochs: passes over them.
            lr: Adam's learning rate.
            stream: of their order, dropout and the air.
            change: what becomes of a batch's images before they are sent; they keep their truth.
            after: called after every step.
        """
        networks = [self.transmitter, *self.decoders.values()]
        for network in networks:
            network.train().requires_grad_(True)
        self.transmitter.gain = None
        parameters = [value for network in networks for value in network.parameters()]
        optimizer = torch.optim.Adam(parameters, lr, fused=True)
        order = stream.child("order").torch()
        with stream.child("dropout").fork(self.plan.device):
            for epoch in range(epochs):
                shuffled = torch.randperm(len(examples), generator=order).to(self.plan.device)
                for step, chosen in enumerate(shuffled.split(self.plan.scenario.train.batch)):
                    here, batch = stream.child(epoch, step), examples.at(chosen)
                    if change is not None:
                        batch = replace(batch, images=change(batch.images, here.child("change")))
                    optimizer.zero_grad(set_to_none=True)
                    self.loss(batch, here).backward()
                    optimizer.step()
                    if after is not None:
                        after()
        for network in networks:
            network.eval().requires_grad_(False)

    def finished(self, findings: Sequence[Finding], triggers: Sequence[Trigger] = ()) -> Repaired:
        """The networks as they are now."""
        if self.transmitter.gain is None:
            self.transmitter.calibrate(self.examples.images, _ROWS)
        return Repaired(self.transmitter, self.decoders, tuple(findings), tuple(triggers))
