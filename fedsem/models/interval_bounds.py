"""Interval bounds of dense networks: where their outputs can lie while each input stays within its interval.

A linear layer maps a box with centre c and radius r, coordinate by coordinate, onto a set that lies in the box with
centre W c + b and radius |W| r; ReLU is monotone, so it is applied to both ends (Gowal et al., On the Effectiveness of
Interval Bound Propagation for Training Verifiably Robust Models, 2018). The bounds of one linear layer are exact, those
of several hold and are not tight. Shapes: (..., inputs) -> (..., outputs). They hold in real arithmetic: a certificate
should compute them in float64.
"""

from __future__ import annotations

from torch import Tensor, nn


def dense_layers(network: nn.Module) -> list[nn.Module] | None:
    """The layers of a network that is nothing but linear layers and ReLUs, one after another, the last one linear; None
    for any other."""
    layers = list(network) if type(network) is nn.Sequential else [network]
    known = all(type(layer) in (nn.Linear, nn.ReLU) for layer in layers)
    return layers if known and isinstance(layers[-1], nn.Linear) else None


def output_bounds(network: nn.Module, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value that each output can have while inputs stay within `radius` of `centre`.

    Raises:
        ValueError: the network holds other layers.
    """
    centre, radius, last = _before_last(network, centre, radius)
    middle, reach = nn.functional.linear(centre, last.weight, last.bias), radius @ last.weight.abs().T
    return middle - reach, middle + reach


def difference_bounds(network: nn.Module, centre: Tensor, radius: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of every output minus that of the output `reference` (...), itself exactly 0.

    The last layer is taken together with the subtraction, which is tighter than a difference of two bounds.

    Raises:
        ValueError: the network holds other layers.
    """
    centre, radius, last = _before_last(network, centre, radius)
    output = nn.functional.linear(centre, last.weight, last.bias)
    where = reference.expand(output.shape[:-1]).unsqueeze(-1)
    middle = output - output.gather(-1, where)
    pairs = (last.weight.unsqueeze(0) - last.weight.unsqueeze(1)).abs()  # (reference, output, hidden)
    outputs = last.out_features
    reaches = (radius @ pairs.flatten(0, 1).T).unflatten(-1, (outputs, outputs))
    reach = reaches.gather(-2, where.unsqueeze(-1).expand(*where.shape, outputs)).squeeze(-2)
    return middle - reach, middle + reach


def _before_last(network: nn.Module, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, nn.Linear]:
    """The box of what the last layer gets, and that layer."""
    layers = dense_layers(network)
    if layers is None:
        raise ValueError(f"interval bounds are known for linear layers and ReLUs, not for {type(network).__name__}")
    for layer in layers[:-1]:
        if isinstance(layer, nn.Linear):
            centre = nn.functional.linear(centre, layer.weight, layer.bias)
            radius = radius @ layer.weight.abs().T
        else:
            lower, upper = (centre - radius).clamp_min(0), (centre + radius).clamp_min(0)
            centre, radius = (upper + lower) / 2, (upper - lower) / 2
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    return centre, radius, last
