"""Universal perturbations."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from fedsem.hooks.budget import ascent, clip
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Problem, SiteState
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius, linf_radius

MOMENTUM = 0.9


@register("attack", "universal")
class Universal(Evasion):
    """One perturbation v for all examples, fitted on images of the adversary's own: it knows neither what is sent nor,
    unless it is told, through which channel (Moosavi-Dezfooli et al., Universal Adversarial Perturbations, 2017; over
    the air Sadeghi and Larsson, Adversarial Attacks on Deep-Learning Based Radio Signal Classification, 2019, and
    Bahramali et al., Robust Adversarial Attacks Against DNN-Based Wireless Communication Systems, 2021).

    v climbs the mean objective of batches of those images over fresh channel draws: with g the gradient's direction,
    m <- 0.9 m + 0.1 g and v <- P(v + eta m / ||m||) (sign(m) in L-inf), eta falling linearly to 0. Its budget holds for
    the mean power, ||v||^2 <= PSR mean E, not in every example. With knowledge of the channel it then goes on from v
    for every reception by itself, to its h and g: still without knowing what is sent.

    Attributes:
        steps: number of steps.
        batch: own images in each step; one for each reception where each has a perturbation of its own.
        step_size: eta at the beginning, as a share of the radius.
        synchronised: over the air, the perturbation begins with the transmission; otherwise it comes with a random
            circular delay, for which it is then fitted.
    """

    steps: PositiveInt = 100
    batch: PositiveInt = 64
    step_size: PositiveFloat = 0.2
    synchronised: bool = True

    knows = {"weights": ("all", "surrogate"), "signal": ("statistics",), "channel": ("statistics", "csi")}
    mean_power = True

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        names: list[str] = list(self.sites)
        first = problem.sites[names[0]].clean
        zero: Perturbation = {name: torch.zeros_like(problem.sites[name].clean[:1]) for name in names}
        found = self._fitted(problem, zero, stream.child("all"))
        if self.knowledge.channel == "csi":
            start = {name: value.expand(len(first), *value.shape[1:]) for name, value in found.items()}
            found = self._fitted(problem, start, stream.child("each"))
        generator = stream.child("receptions").torch()
        delta: Perturbation = {}
        for name, value in found.items():
            site = problem.sites[name]
            late = self.delays(problem, name, len(first), generator)
            delta[name] = clip(delay(value.expand_as(site.clean), late), site)
        return delta

    def _fitted(self, problem: Problem, start: Perturbation, stream: Stream) -> Perturbation:
        """One perturbation for all, or one for each reception."""
        names = list(start)
        rows, device = len(problem.sites[names[0]].clean), start[names[0]].device
        one = len(start[names[0]]) == 1
        batch = self.batch if one else rows
        found, momentum = start, {name: torch.zeros_like(value) for name, value in start.items()}
        drawn, delayed, heard = (stream.child(name).torch() for name in ("images", "delays", "receptions"))
        limits = {name: mean_radius(problem.sites[name], problem.psr, self.norm) for name in names}
        for step in range(self.steps):
            images = torch.randint(problem.own, (batch,), generator=drawn).to(device)
            known = problem
            if one and self.knowledge.channel == "csi":
                known = problem.select(torch.randint(rows, (batch,), generator=heard).to(device))
            own = known.imagine(images)
            late = {name: self.delays(problem, name, batch, delayed) for name in names}
            delta = {
                name: clip(delay(value.expand(batch, *value.shape[1:]), late[name]), own.sites[name])
                for name, value in found.items()
            }
            # From 1: draws of step 0 without a perturbation are those that clean losses are measured with.
            gradient = own.gradient(delta, step + 1)
            eta = self.step_size * (1 - step / self.steps)
            for name, value in found.items():
                up = delay(gradient[name], -late[name])
                up = up.sum(0, keepdim=True) if one else up
                momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * ascent(up, "l2")
                moved = value + eta * limits[name] * ascent(momentum[name], self.norm)
                found = {**found, name: within(moved, limits[name], self.norm)}
        return found

    def delays(self, problem: Problem, name: str, rows: int, generator: torch.Generator) -> Tensor:
        """How many numbers late the perturbation of each row comes."""
        clean = problem.sites[name].clean
        if name == "input" or self.synchronised:
            return torch.zeros(rows, dtype=torch.long, device=clean.device)
        return random_delays(rows, clean.shape[1], 1 if problem.symbols == "real" else 2, generator).to(clean.device)


def mean_radius(site: SiteState, psr: float | Tensor, norm: Norm) -> float:
    """Radius of a perturbation that keeps its budget on mean power."""
    energy = site.energy.mean(0, keepdim=True)
    mean_psr = float(psr.mean()) if isinstance(psr, Tensor) else psr
    limit = l2_radius(energy, mean_psr) if norm == "l2" else linf_radius(energy, mean_psr, site.clean[0].numel())
    return float(limit)


def within(delta: Tensor, limit: float, norm: Norm) -> Tensor:
    """The nearest point of a ball around 0."""
    if norm == "linf":
        return delta.clamp(-limit, limit)
    length = delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.dim() - 1))
    return delta * (limit / length.clamp_min(torch.finfo(delta.dtype).tiny)).clamp_max(1.0)


def random_delays(rows: int, numbers: int, each: int, generator: torch.Generator) -> Tensor:
    """Delays by whole symbols of `each` numbers, uniform over the length of a transmission."""
    return each * torch.randint(numbers // each, (rows,), generator=generator)


def delay(signal: Tensor, late: Tensor) -> Tensor:
    """Each row (B, n), circularly delayed by so many numbers; images (B, C, H, W) are never late."""
    if signal.dim() > 2:
        return signal
    place = torch.arange(signal.shape[1], device=signal.device)
    return signal.gather(1, (place - late.unsqueeze(1)) % signal.shape[1])
