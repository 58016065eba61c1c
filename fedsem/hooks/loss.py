"""Hook `loss`: what receivers minimise in every step of their local training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.streams import Stream
from fedsem.tasks.task import Task


@dataclass(frozen=True)
class Decoding:
    """One of a receiver's decoders in a local step.

    Attributes:
        name: of its task and channel, its own in the step.
        task: what it is for.
        decoder: the network.
        share: its weight in the receiver's loss.
        heard: what it decodes, (draws, B, ...); differentiable.
        output: what it says, (draws, B, ...); differentiable.
        truth: what it should say, broadcastable to (draws, B, ...).
    """

    name: str
    task: Task
    decoder: nn.Module
    share: float
    heard: Tensor
    output: Tensor
    truth: Tensor


class LocalStep(Protocol):
    """One batch of a receiver with the channel draws of the step; implemented by `fedsem.local_step`.

    Attributes:
        progress: how much of the whole training is done, in [0, 1).
    """

    progress: float

    def site(self, name: str) -> SiteState:
        """The batch's signal where it can be perturbed: its images, or what is sent for them."""
        ...

    def losses(self, delta: Perturbation) -> Tensor:
        """The receiver's loss of each example under a perturbation, (B,): the mean over channel draws; differentiable.

        Args:
            delta: by site, (B, ...); empty for the clean batch.
        """
        ...

    def decodings(self, delta: Perturbation) -> Sequence[Decoding]:
        """The receiver's decoders under a perturbation, each with what it hears and says; with the same dropout for all
        perturbations of the step, so that two of them can be compared."""
        ...

    def reach(self, name: str) -> Tensor:
        """The most by which interference of at most 1 in each number at the adversary's antenna moves each number that
        the decoder of this name hears, (draws, B, ...); see `fedsem.channels.reach`."""
        ...

    def loss(self, delta: Perturbation) -> Tensor:
        """The mean of `losses`, a scalar, which is also what the training loss reports."""
        ...


class LossDefense(Defense):
    """A defense in `use.defenses` that changes what all receivers minimise. Malicious receivers that poison their data
    follow it too: they are told to by the same server."""

    @abstractmethod
    def loss(self, step: LocalStep, stream: Stream) -> Tensor:
        """What a local step minimises, a scalar.

        Args:
            step: the batch.
            stream: random, by seed, receiver, round and step.
        """

    def adaptive(self) -> Mapping[str, Any] | None:
        """All that it leaves behind is weights, which `standard` differentiates."""
        return {"kind": "standard"}
