"""One batch of a receiver: what is sent for it, what its decoders hear and say, and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.channels.reach import reach
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import Decoding
from fedsem.link import Transmission, Transmitter
from fedsem.plan import Branch, Plan
from fedsem.poisoning import Poisoning
from fedsem.tasks.task import Examples
from fedsem.units import energy


@dataclass(frozen=True)
class Drawn:
    """Channel draws of a branch, and the SNR of each."""

    realisation: Realisation
    snr_db: float | Tensor


def draw_for(
    plan: Plan,
    branch: Branch,
    shape: tuple[int, int],
    transmitter: Transmitter,
    air: torch.Generator,
    snr: torch.Generator,
) -> Drawn:
    """Draws of this shape, (draws, B), from the branch's generator of the air and the receiver's of SNRs."""
    # A digital transmission arrives as it is: its errors are outages, from which nothing is learnt.
    uses = 0 if transmitter.digital else plan.channel_uses
    realisation = plan.channel(branch).draw(shape, uses, plan.scenario.link.symbols, air)
    return Drawn(realisation, 0.0 if transmitter.digital else plan.drawn_snr(branch, shape, snr))


class ReceiverStep:
    """One batch of a receiver with its channel draws (`fedsem.hooks.loss.LocalStep`).

    Attributes:
        progress: see `LocalStep`.
        means: loss of each branch at the last call of `loss`.
    """

    def __init__(
        self,
        plan: Plan,
        branches: Mapping[Branch, float],
        transmitter: Transmitter,
        decoders: Mapping[Branch, nn.Module],
        poisoning: Poisoning,
        batch: Examples,
        numbers: Tensor,
        drawn: Mapping[Branch, Drawn],
        progress: float,
    ) -> None:
        self.plan, self.branches, self.transmitter, self.decoders = plan, branches, transmitter, decoders
        self.poisoning, self.batch, self.numbers, self.drawn = poisoning, batch, numbers, drawn
        self.progress = progress
        self.means: dict[Branch, Tensor] = {}
        self._clean: Transmission | None = None
        self._before: tuple[Tensor, ...] = ()

    def site(self, name: str) -> SiteState:
        """See `LocalStep`."""
        if name == "input":
            return SiteState(self.batch.images, energy(self.batch.images), bounded=True)
        x = self._sent({}).x.detach().float()
        return SiteState(x, energy(x), bounded=False)

    def losses(self, delta: Perturbation) -> Tensor:
        """See `LocalStep`."""
        each = self._by_branch(delta)
        return torch.stack([self._share(branch) * one.mean(0) for branch, one in each.items()]).sum(0)

    def decodings(self, delta: Perturbation) -> list[Decoding]:
        """See `LocalStep`."""
        found = []
        for branch, heard, truth in self._heard(delta, self._sent_alike(delta)):
            decoder = self.decoders[branch]
            with self._precision(branch, heard):
                output = decoder(heard).float()
            found.append(
                Decoding(branch.key, self.plan.task(branch), decoder, self._share(branch), heard, output, truth)
            )
        return found

    def reach(self, name: str) -> Tensor:
        """See `LocalStep`."""
        branch = next(one for one in self.branches if one.key == name)
        plan, drawn = self.plan, self.drawn[branch]
        symbols = plan.scenario.link.symbols
        return reach(plan.channel(branch), drawn.realisation, drawn.snr_db, symbols, plan.channel_uses)

    def loss(self, delta: Perturbation) -> Tensor:
        """See `LocalStep`."""
        total = torch.zeros((), device=self.batch.images.device)
        for branch, losses in self._by_branch(delta).items():
            mean = losses.mean()
            total = total + self._share(branch) * mean
            self.means[branch] = mean.detach()
        return total

    def forget(self) -> None:
        """Send the batch anew: the encoder has other parameters."""
        self._clean = None

    def _sent(self, delta: Perturbation) -> Transmission:
        """What is sent for the batch. What a perturbation does on air alone comes after the encoder, which is run once
        for all of them."""
        if "input" in delta:
            return self.transmitter.send(self.batch.images + delta["input"], gates=True)
        if self._clean is None:
            self._before = _chance(self.plan.device)
            # Kept for all that is computed of this batch, which may want its gradient though this caller does not.
            with torch.enable_grad():
                self._clean = self.transmitter.send(self.batch.images, gates=True)
        return self._clean

    def _sent_alike(self, delta: Perturbation) -> Transmission:
        """What is sent, with the dropout of the clean batch."""
        clean = self._sent({})
        if "input" not in delta:
            return clean
        device = self.plan.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.set_rng_state(self._before[0])
            if device.type == "cuda":
                torch.cuda.set_rng_state(self._before[1], device)
            return self._sent(delta)

    def _share(self, branch: Branch) -> float:
        weight = self.branches[branch]
        return weight / sum(self.branches.values()) if weight else 1.0

    def _by_branch(self, delta: Perturbation) -> dict[Branch, Tensor]:
        """Loss of each branch, draw and example, (draws, B)."""
        found = {}
        for branch, heard, truth in self._heard(delta, self._sent(delta)):
            with self._precision(branch, heard):
                found[branch] = self.plan.task(branch).objective(self.decoders[branch], heard, truth).float()
        return found

    def _precision(self, branch: Branch, heard: Tensor) -> torch.autocast:
        return self.transmitter.autocast(heard, painted=self.plan.decoder_format(branch).paints)

    def _heard(self, delta: Perturbation, sent: Transmission) -> Iterator[tuple[Branch, Tensor, Tensor]]:
        """Each branch, what its decoder decodes, (draws, B, ...), and the truth."""
        plan, transmitter, symbols = self.plan, self.transmitter, self.plan.scenario.link.symbols
        interference = self.poisoning.interference(sent.x, self.batch.labels, self.numbers)
        if "air" in delta:
            interference = delta["air"] if interference is None else interference + delta["air"]
        rotation = self.poisoning.rotation(self.numbers)
        heard = transmitter.hear(sent.x.unsqueeze(0), sent) if transmitter.digital else None
        for branch, weight in self.branches.items():
            channel, objective, drawn = plan.channel(branch), plan.task(branch), self.drawn[branch]
            if heard is None:
                received = channel.apply(sent.x, drawn.realisation, drawn.snr_db, symbols, interference, rotation)
                received = received if channel.is_sensing else transmitter.hear(received, sent)
            else:
                received = heard
            truth = self.poisoning.truth(branch, objective.truth(self.batch, drawn.realisation), self.numbers)
            yield branch, received if weight else received.detach(), truth


def _chance(device: torch.device) -> tuple[Tensor, ...]:
    """States of torch's global generators, which dropout reads."""
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states
