"""The budget of a perturbation: radii, projections, directions, and noise of a given energy.

Shared by all evasion attacks, ours and others'.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsem.hooks.evasion import Norm, Perturbation, SiteState
from fedsem.streams import Stream
from fedsem.units import energy, l2_radius, linf_radius


def radius(site: SiteState, psr: float | Tensor, norm: Norm) -> Tensor:
    """Radius of the ball of each example, shaped to multiply the signal."""
    value = l2_radius(site.energy, psr) if norm == "l2" else linf_radius(site.energy, psr, site.clean[0].numel())
    return value.view(-1, *[1] * (site.clean.dim() - 1))


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of unit norm: sign(g) for L-inf, g / ||g||_2 for L2. A zero gradient gives no direction."""
    return gradient.sign() if norm == "linf" else unit(gradient)


def unit(direction: Tensor) -> Tensor:
    """The direction with L2 norm 1 in each example; an exact zero stays zero.

    Gradients of a confident model can be so small that their squares are zero in float32: the largest component is
    made 1 first.
    """
    tiny, shape = torch.finfo(direction.dtype).tiny, (-1, *[1] * (direction.dim() - 1))
    scaled = direction / torch.linalg.vector_norm(direction.flatten(1), torch.inf, 1).clamp_min(tiny).view(shape)
    return scaled / torch.linalg.vector_norm(scaled.flatten(1), 2, 1).clamp_min(tiny).view(shape)


def project(delta: Tensor, site: SiteState, psr: float | Tensor, norm: Norm) -> Tensor:
    """The nearest perturbation in the ball, then clipped so that the signal stays in [0, 1] where it must.

    Clipping towards the clean signal, which lies inside, only shrinks a perturbation: it stays in the ball.
    """
    limit = radius(site, psr, norm)
    if norm == "linf":
        delta = delta.clamp(-limit, limit)
    else:
        length = torch.linalg.vector_norm(delta.flatten(1), 2, 1).view_as(limit)
        delta = delta * (limit / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0)
    return clip(delta, site)


def clip(delta: Tensor, site: SiteState) -> Tensor:
    """Clip so that clean + delta stays in [0, 1], where it must."""
    if not site.bounded:
        return delta
    return delta.clamp(*site.room)


def inside(site: SiteState, psr: float | Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A point of every row's ball, drawn uniformly (on the generator's device), clipped to the image range."""
    limit, size, shape = radius(site, psr, norm), site.clean[0].numel(), site.clean.shape
    if norm == "linf":
        point = 2 * torch.rand(shape, generator=generator, device=generator.device).to(site.clean.device) - 1
        return project(limit * point, site, psr, norm)
    point = ascent(torch.randn(shape, generator=generator, device=generator.device).to(site.clean.device), "l2")
    depth = torch.rand(shape[0], generator=generator, device=generator.device).to(site.clean.device).pow(1 / size)
    return project(limit * point * depth.view_as(limit), site, psr, norm)


def fill(direction: Tensor, site: SiteState, target_energy: Tensor) -> Tensor:
    """Scale a direction so that, after clipping, ||delta||^2 is `target_energy` (B,); less where clipping forbids it.

    ||clip(s d)||^2 grows with s, so bisection finds s.
    """
    shape = (-1, *[1] * (direction.dim() - 1))
    along = unit(direction)
    low = target_energy.sqrt()
    if not site.bounded:
        return along * low.view(shape)
    # Pixels lie in [0, 1]: the smallest useful component decides how far s can matter.
    high = low * 1.0
    for _ in range(40):
        short = energy(clip(along * high.view(shape), site)) < target_energy
        if not bool(short.any()):
            break
        high = torch.where(short, high * 2, high)
    for _ in range(50):
        middle = (low + high) / 2
        short = energy(clip(along * middle.view(shape), site)) < target_energy
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return clip(along * low.view(shape), site)


def gaussian(sites: Mapping[str, SiteState], energies: Mapping[str, Tensor], stream: Stream) -> Perturbation:
    """White Gaussian noise with the energy `energies[site]` (B,) in each example *after* clipping.

    The baseline beside an attack has the energy which that attack achieved: clipping spares one more than the other.
    """
    delta: Perturbation = {}
    for name, wanted in energies.items():
        clean = sites[name].clean
        direction = torch.randn(clean.shape, generator=stream.child(name).torch()).to(clean.device)
        delta[name] = fill(direction, sites[name], wanted)
    return delta
