"""Tasks whose decoders score alternatives, of which the receiver decides for one."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.models.interval_bounds import dense_layers, difference_bounds
from fedsem.tasks.task import Task


class Decision(Task):
    """A task that decides: decoders give logits (..., B, C) and learn by cross-entropy."""

    @property
    def headline(self) -> str:
        return "accuracy"

    @abstractmethod
    def decisions(self, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """What each output decides, (..., B), and what would be right, broadcastable to it: numbers below the number of
        outputs, by which `accuracy` is told."""

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        return cross_entropy(output, truth)

    def failure(self, decoder: nn.Module, heard: Tensor, truth: Tensor) -> Tensor:
        """1 where the decision is wrong, else 0."""
        told, right = self.decisions(decoder(heard), truth)
        return (told != right).float()

    @property
    def compares(self) -> bool:
        return True

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """KL(p || q) of the class probabilities of two logits."""
        p, q = output.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    def bounded(self, decoder: nn.Module) -> bool:
        """Whether interval bounds are known for this decoder (`fedsem.models.interval_bounds`), so that
        `worst_objective` and `worst_failure` can be told."""
        return dense_layers(decoder) is not None

    def worst_objective(self, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        """No less than the largest `objective`, (..., B), for anything within `radius` of `heard`, number by number:
        the cross-entropy of the worst-case logits (Gowal et al. 2018), of every class the largest difference to the
        true one that interval bounds allow."""
        _, above = difference_bounds(decoder, heard, radius, truth)
        return cross_entropy(above, truth)

    @abstractmethod
    def worst_failure(self, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        """0 where the decision is right for all that is within `radius` of `heard`, (..., B); 1 where it may not be."""


def cross_entropy(output: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of logits (..., B, C) against classes broadcastable to (..., B), unreduced."""
    truth = truth.expand(output.shape[:-1])
    return F.cross_entropy(output.flatten(0, -2), truth.flatten(), reduction="none").view(truth.shape)
