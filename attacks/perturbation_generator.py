"""A generator of universal perturbations."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from fedsem.hooks.budget import ascent, clip
from fedsem.hooks.evasion import Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream

from .universal import Universal, delay, mean_radius

INPUTS = 16
"""Numbers of z."""


@register("attack", "perturbation_generator")
class PerturbationGenerator(Universal):
    """A network G that makes another perturbation r G(z) / ||G(z)|| of each z ~ N(0, I), z in R^16, for every
    transmission, so that no receiver can learn and subtract it; trained on images of the adversary's own, over fresh
    channel draws and random circular delays, as nobody tells the adversary when a transmission begins (Bahramali et
    al., Robust Adversarial Attacks Against DNN-Based Wireless Communication Systems, 2021, perturbation generator
    model; here without its discriminator).

    G is dense 16, `hidden` (ReLU), numbers of the signal; in L-inf its output passes tanh and is scaled by the radius.
    Budget and knowledge are those of a universal perturbation.

    Attributes:
        hidden: neurons of its hidden layer.
        lr: of Adam.
    """

    steps: PositiveInt = 300
    synchronised: bool = False
    hidden: PositiveInt = 64
    lr: PositiveFloat = 5e-3

    knows = {"weights": ("all", "surrogate"), "signal": ("statistics",), "channel": ("statistics",)}

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        names: list[str] = list(self.sites)
        first = problem.sites[names[0]].clean
        networks = {
            name: self._network(problem.sites[name].clean[0].numel(), stream.child(name)).to(first.device)
            for name in names
        }
        limits = {name: mean_radius(problem.sites[name], problem.psr, self.norm) for name in names}
        optimizer = torch.optim.Adam([p for network in networks.values() for p in network.parameters()], self.lr)
        drawn, delayed = stream.child("images").torch(), stream.child("delays").torch()
        seeds = stream.child("z").torch()

        def made(name: str, rows: int, generator: torch.Generator) -> Tensor:
            z = torch.randn(rows, INPUTS, generator=generator).to(first.device)
            out = networks[name](z).view(rows, *problem.sites[name].clean.shape[1:])
            if self.norm == "linf":
                return limits[name] * out.tanh()
            length = out.flatten(1).norm(dim=1).clamp_min(1e-12)
            return limits[name] * out / length.view(-1, *[1] * (out.dim() - 1))

        for step in range(self.steps):
            own = problem.imagine(torch.randint(problem.own, (self.batch,), generator=drawn).to(first.device))
            delta = {
                name: delay(made(name, self.batch, seeds), self.delays(problem, name, self.batch, delayed))
                for name in names
            }
            clipped = {name: clip(value.detach(), own.sites[name]) for name, value in delta.items()}
            gradient = own.gradient(clipped, step + 1)
            # Each row pulls alike, however confident the link is of it.
            climbed = [(delta[name] * ascent(gradient[name], "l2")).sum() / (limits[name] or 1.0) for name in names]
            optimizer.zero_grad()
            (-torch.stack(climbed).sum() / self.batch).backward()
            optimizer.step()
        late, fresh = stream.child("receptions").torch(), stream.child("sent").torch()
        with torch.no_grad():
            return {
                name: clip(
                    delay(made(name, len(first), fresh), self.delays(problem, name, len(first), late)),
                    problem.sites[name],
                )
                for name in names
            }

    def _network(self, numbers: int, stream: Stream) -> nn.Module:
        with stream.fork():
            return nn.Sequential(nn.Linear(INPUTS, self.hidden), nn.ReLU(), nn.Linear(self.hidden, numbers))
