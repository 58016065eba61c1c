"""Hook `loss`: what receivers minimise in every step of their local training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.streams import Stream


class LocalStep(Protocol):
    """One batch of a receiver with the channel draws of the step; implemented by `fedsem.training`."""

    def site(self, name: str) -> SiteState:
        """The batch's signal where it can be perturbed: its images, or what is sent for them."""
        ...

    def losses(self, delta: Perturbation) -> Tensor:
        """The receiver's loss of each example under a perturbation, (B,): the mean over channel draws; differentiable.

        Args:
            delta: by site, (B, ...); empty for the clean batch.
        """
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
