"""Classification of the transmitted image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.models.interval_bounds import difference_bounds
from fedsem.models.mlp import mlp
from fedsem.models.picture import ClassHead
from fedsem.registry import register
from fedsem.tasks.decision import Decision
from fedsem.tasks.task import DecoderFormat, Examples, Share


@register("task", "classification")
class Classification(Decision):
    """Semantic validation of [S3] section II: dense nc, nc (ReLU), then one output per class; cross-entropy.

    Where the receiver's front end paints the picture (a MAE), the decoder is a small convolutional network.
    """

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
