"""What the active filters leave of a receiver's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedsem.errors import FederationError
from fedsem.hooks.sanitise import Features, Held
from fedsem.link import Transmitter
from fedsem.plan import Branch, Plan
from fedsem.poisoning import Poisoning
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.task import Examples

_ROWS = 256
"""Images that go through the encoder at once."""


@dataclass(frozen=True)
class Sanitised:
    """What is left, and what is known to have been poisoned of it.

    Attributes:
        indices: numbers of the images that the receiver trains on.
        removed: poisoned samples that were left out, all poisoned ones, clean ones left out, all clean ones; None where
            no filter acts.
    """

    indices: np.ndarray
    removed: tuple[int, int, int, int] | None = None


def sanitised(
    plan: Plan,
    receiver: int,
    seed: int,
    round_number: int,
    branches: Sequence[Branch],
    indices: np.ndarray,
    transmitter: Transmitter,
    poisoning: Poisoning,
) -> Sanitised:
    """The samples of a receiver that its filters let through, in the order of `use.defenses`.

    Args:
        plan: the plan.
        receiver: its id.
        seed: the run's seed.
        round_number: from 1.
        branches: what it trains.
        indices: numbers of its training images.
        transmitter: with the encoder of the round; left in training mode.
        poisoning: what becomes of its samples.

    Raises:
        FederationError: nothing is left.
    """
    working = receiver in plan.accomplices(seed)
    acting = [
        (number, one)
        for number, one in enumerate(plan.data_filters)
        if round_number >= one.first_round and not (working and one.run_by == "honest")
    ]
    if not acting:
        return Sanitised(indices)
    view = _View(plan, branches, transmitter, poisoning)
    left = np.sort(indices)
    bad = np.isin(left, poisoning.samples)
    totals = int(bad.sum()), int((~bad).sum())
    for number, one in acting:
        stream = Stream(seed).child("sanitise", receiver, round_number, number)
        out = np.zeros(len(left), bool)
        for place, held in enumerate(view.held(left, one.features, stream)):
            # As in training: results must not depend on how many cores a machine has.
            with threadpool_limits(limits=1):
                out |= one.suspects(held, stream.child(place))
        left = left[~out]
        if not len(left):
            raise FederationError(f"'{one.kind}' leaves receiver {receiver} no sample to train on; make it milder.")
    bad = np.isin(left, poisoning.samples)
    removed = totals[0] - int(bad.sum()), totals[0], totals[1] - int((~bad).sum()), totals[1]
    return Sanitised(indices[np.isin(indices, left)], removed)


class _View:
    """A receiver's samples as its filters see them."""

    def __init__(self, plan: Plan, branches: Sequence[Branch], transmitter: Transmitter, poisoning: Poisoning) -> None:
        self.plan, self.transmitter, self.poisoning = plan, transmitter, poisoning
        self.told = [branch for branch in branches if isinstance(plan.task(branch), Classification)]
        self.branches = self.told or list(branches)[:1]

    def held(self, indices: np.ndarray, features: Features, stream: Stream) -> Iterator[Held]:
        """The samples for each classification task of the receiver; once for a receiver without any."""
        numbers = torch.from_numpy(indices).to(self.plan.device)
        batch = self.plan.train_examples.at(numbers)
        batch = self.poisoning.examples(replace(batch, images=batch.images.float() / 255), numbers)
        images = batch.images.flatten(1).cpu().numpy()
        sent = None if features == "pixels" else self._sent(batch.images)
        for branch in self.branches:
            labels = np.zeros(len(indices), np.int64)
            if branch in self.told:
                labels = self.poisoning.truth(branch, batch.labels, numbers).cpu().numpy()
            seen = sent
            if features == "received" and sent is not None:
                seen = self._received(branch, sent, batch, numbers, stream.child("air", branch.key))
            values = images if seen is None else seen.cpu().numpy()
            yield Held(images, values.astype(np.float64), labels)

    @torch.no_grad()
    def _sent(self, images: Tensor) -> Tensor:
        self.transmitter.eval()
        x = torch.cat([self.transmitter.send(part).x for part in images.split(_ROWS)])
        self.transmitter.train()
        return x

    @torch.no_grad()
    def _received(self, branch: Branch, x: Tensor, batch: Examples, numbers: Tensor, stream: Stream) -> Tensor:
        channel, symbols = self.plan.channel(branch), self.plan.scenario.link.symbols
        air = channel.draw((1, len(x)), self.plan.channel_uses, symbols, stream.torch(x.device))
        snr = self.plan.drawn_snr(branch, (1, len(x)), stream.child("snr").torch(x.device))
        interference = self.poisoning.interference(x, batch.labels, numbers)
        return channel.apply(x, air, snr, symbols, interference, self.poisoning.rotation(numbers))[0]
