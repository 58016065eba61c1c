"""Classification of the transmitted image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.models.interval_bounds import dense_layers, difference_bounds
from fedsem.models.mlp import mlp
from fedsem.models.picture import ClassHead
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task


@register("task", "classification")
class Classification(Task):
    """Semantic validation of [S3] section II: dense nc, nc (ReLU), then one output per class; cross-entropy.

    Where the receiver's front end paints the picture (a MAE), the decoder is a small convolutional network.
    """

    @property
    def headline(self) -> str:
        return "accuracy"

    @property
    def decides(self) -> bool:
        return True

    def build(self, decoder: DecoderFormat) -> nn.Module:
        if decoder.paints:
            return ClassHead(decoder.classes)
        return mlp(decoder.width, (decoder.channel_uses, decoder.channel_uses), decoder.classes)

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        return examples.labels

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return decoder.classes

    def aim(self, goal: int, examples: Examples) -> Tensor:
        return torch.full_like(examples.labels, goal)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        return cross_entropy(output, truth)

    def failure(self, decoder: nn.Module, heard: Tensor, truth: Tensor) -> Tensor:
        return (decoder(heard).argmax(-1) != truth).float()

    @property
    def compares(self) -> bool:
        return True

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        return class_divergence(output, other)

    def bounded(self, decoder: nn.Module) -> bool:
        return dense_layers(decoder) is not None

    def worst_objective(self, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        return worst_cross_entropy(decoder, heard, radius, truth)

    def worst_failure(self, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        truth = truth.expand(heard.shape[:-1])
        _, above = difference_bounds(decoder, heard, radius, truth)
        # The true class has a difference of 0 to itself; another one that may reach it may be chosen.
        return (above.scatter(-1, truth.unsqueeze(-1), -torch.inf).amax(-1) >= 0).to(heard.dtype)

    def decisions(self, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        return output.argmax(-1), truth

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        right = (output.argmax(-1) == truth).float()
        return {"accuracy": Share(right, torch.ones_like(right))}

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Share of examples of other classes that are taken for the target class."""
        other = (truth != aim).float().expand(output.shape[:-1])
        return Share((output.argmax(-1) == aim).float() * other, other)


def cross_entropy(output: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of logits (..., B, C) against classes broadcastable to (..., B), unreduced."""
    truth = truth.expand(output.shape[:-1])
    return F.cross_entropy(output.flatten(0, -2), truth.flatten(), reduction="none").view(truth.shape)


def class_divergence(output: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) of the class probabilities of two logits (..., B, C), (..., B)."""
    p, q = output.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def worst_cross_entropy(decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of the worst-case logits (Gowal et al. 2018): of every class the largest difference to the true one
    that interval bounds allow, (..., B)."""
    _, above = difference_bounds(decoder, heard, radius, truth)
    return cross_entropy(above, truth)
