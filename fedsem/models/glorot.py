"""How weights begin."""

from __future__ import annotations

from torch import nn


def glorot(network: nn.Module) -> None:
    """Glorot-uniform weights, U(-a, a) with a = sqrt(6 / (fan_in + fan_out)), and zero biases, from torch's global
    generator (Glorot and Bengio, Understanding the Difficulty of Training Deep Feedforward Neural Networks, 2010).

    The default of Keras, whose layers [S3] names; torch's own default begins with weaker signals and learns later.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
