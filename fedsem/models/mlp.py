"""Multilayer perceptrons, the decoders of [S3]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedsem.models.glorot import glorot


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Dense layers of the `hidden` sizes, each with ReLU, then a linear one of size `outputs`.

    Weights begin as `glorot` says.
    """
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    network = nn.Sequential(*layers, nn.Linear(inputs, outputs))
    glorot(network)
    return network
