"""Fine-pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.hooks.repair import Finding, Repair, Repairable, Repaired
from fedsem.registry import register
from fedsem.repairing import LinkCopy
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Plan

_DRAWS = 16


@register("defense", "fine_pruning")
class FinePruning(Repair):
    """Prunes those channels of the encoder's last convolution (neurons of its last hidden layer, where it has none)
    that clean images activate least, one by one in the order of their mean activation after the ReLU, as long as the
    share of wrong decisions on images that are held out does not grow by more than `limit`; then trains the pruned link
    on (Liu, Dolan-Gavitt and Garg, Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks, 2018,
    section 3). Pruned channels stay pruned.

    The table has `pruned_channels` and `channels`, and the accuracy on the images that are held out, `held_out_before`,
    `held_out_pruned` and `held_out_after` (16 receptions of each at the SNR of training, the same in all three).

    Attributes:
        limit: by how much the share of wrong decisions may grow.
        held_out: share of the clean images on which it is measured; the others activate and train.
    """

    limit: Annotated[float, Field(ge=0, lt=1)] = 0.02
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3

    def repair(self, link: Repairable, stream: Stream) -> Repaired:
        made = LinkCopy(link)
        count = len(made.examples)
        order = torch.randperm(count, generator=stream.child("held_out").torch()).to(made.plan.device)
        first = min(max(1, round(self.held_out * count)), count - 1)
        held, own = made.examples.at(order[:first]), made.examples.at(order[first:])
        layer = last_layer(made.transmitter.encoder)
        assert layer is not None, "checked with the scenario"

        def error() -> float:
            return made.error(held, _DRAWS, stream.child("judge"))

        before = error()
        pruned: list[int] = []
        for channel in activation(layer, made.transmitter, own.images).argsort().tolist():
            kept = {name: value.detach().clone() for name, value in layer.state_dict().items()}
            silence(layer, [channel])
            if error() > before + self.limit:
                layer.load_state_dict(kept)
                break
            pruned.append(channel)
        cut = error()
        made.learn(own, self.epochs, self.lr, stream.child("learn"), after=lambda: silence(layer, pruned))
        return made.finished(
            [
                Finding("channels", float(len(layer.weight))),
                Finding("pruned_channels", float(len(pruned))),
                Finding("held_out_before", 1 - before),
                Finding("held_out_pruned", 1 - cut),
                Finding("held_out_after", 1 - error()),
            ]
        )

    def adaptive(self) -> Mapping[str, Any] | None:
        """A trigger all over the image, which uses the channels that clean images use."""
        return {"kind": "blend"}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: as for every repair; or the encoder has no layer to prune, or there are too few clean images.
        """
        super().check(path, plan)
        if last_layer(plan.new_transmitter().encoder) is None:
            raise ScenarioError(
                f"In the scenario, '{path}': link.encoder '{plan.scenario.link.encoder.kind}' has neither a "
                "convolution nor a hidden layer that could be pruned; use the encoder 'cnn'."
            )
        assert plan.dataset.reserve is not None
        if len(plan.dataset.reserve) < 2:
            raise ScenarioError(
                f"In the scenario, 'data.reserve': '{self.kind}' (at '{path}') learns on some images and judges by "
                "others; keep at least 2."
            )


def last_layer(encoder: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """The last convolution; without any, the last linear layer but one; None without that."""
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    if convolutions:
        return convolutions[-1]
    dense = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    return dense[-2] if len(dense) > 1 else None


def silence(layer: nn.Conv2d | nn.Linear, channels: list[int]) -> None:
    """Let these outputs be zero."""
    with torch.no_grad():
        layer.weight[channels] = 0
        if layer.bias is not None:
            layer.bias[channels] = 0


@torch.no_grad()
def activation(layer: nn.Module, transmitter: nn.Module, images: Tensor) -> Tensor:
    """Mean of each output of a layer after a ReLU, over images and places, (channels,)."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.relu()))
    for part in images.split(256):
        transmitter(part)
    handle.remove()
    return torch.cat([values.flatten(2).mean(2) if values.dim() == 4 else values for values in seen]).mean(0)
