"""Decibels, powers, SNR and PSR: the arithmetic of design section 4, in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import Tensor


@overload
def from_db(value: float) -> float: ...
@overload
def from_db(value: Tensor) -> Tensor: ...
def from_db(value: float | Tensor) -> float | Tensor:
    """Linear power ratio 10^(dB / 10)."""
    return 10.0 ** (value / 10.0)


@overload
def to_db(value: float) -> float: ...
@overload
def to_db(value: Tensor) -> Tensor: ...
def to_db(value: float | Tensor) -> float | Tensor:
    """10 log10 of a power ratio; -inf for zero."""
    if isinstance(value, (int, float)):
        return 10.0 * math.log10(value) if value > 0 else -math.inf
    return 10.0 * value.log10()


def energy(signal: Tensor) -> Tensor:
    """Squared Euclidean norm of each example, (B, ...) -> (B,)."""
    return signal.flatten(1).square().sum(1)


def l2_radius(clean_energy: Tensor, psr: float | Tensor) -> Tensor:
    """Largest L2 norm of a perturbation within the budget: sqrt(PSR * E), (B,) -> (B,); psr a number or (B,)."""
    return (clean_energy * psr).sqrt()


def linf_radius(clean_energy: Tensor, psr: float | Tensor, size: int) -> Tensor:
    """L-inf radius sqrt(PSR * mean u^2) = sqrt(PSR * E / size): the cube inside the L2 ball, (B,) -> (B,)."""
    return (clean_energy * psr / size).sqrt()


def achieved_psr(delta: Tensor, clean_energy: Tensor) -> Tensor:
    """Perturbation-to-signal ratio ||delta||^2 / E of each example (linear), (B, ...), (B,) -> (B,)."""
    return energy(delta) / clean_energy.clamp_min(1e-30)
