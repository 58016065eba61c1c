"""Votes at test time: many receptions of every test image, what they decide together, and what that certifies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from fedsem.channels.channel import Realisation, standard_noise
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime
from fedsem.evaluation.point import Tally
from fedsem.evaluation.reception import PICTURES_AT_ONCE
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Perturbation
from fedsem.hooks.vote import ManyReceptions, NoisyCopies
from fedsem.link import Transmission
from fedsem.models.mae_encoder import MaeEncoder
from fedsem.tasks.decision import Decision
from fedsem.tasks.task import Share, Task
from fedsem.units import energy, from_db

ROWS_AT_ONCE = 4096
"""Receptions decoded at once, of one image or of several: bounds memory. Every image has random streams of its own, so
that results do not depend on it beyond rounding (which may swap two patches whose scores are all but equal)."""
COPIES_AT_ONCE = 256
"""Noisy copies of an image that are drawn at once."""


@dataclass(frozen=True)
class _Ballot:
    """All receptions of some images by a listener at one of the SNRs.

    Attributes:
        listener: who hears them.
        level: number of the SNR among those that were asked for.
        images: which test images they are of, (b,).
        output: what the decoder says, (receptions, b, outputs).
        truth: what it should say, (b, ...).
        reach: r / s of a perturbation of PSR 1, (b,), float64.
    """

    listener: Listener
    level: int
    images: Tensor
    output: Tensor
    truth: Tensor
    reach: Tensor


class Ballots:
    """Counts the votes of a link.

    Args:
        link: the trained link, behind a vote.
        air: its channel draws.

    Attributes:
        certificates: (listener's name, SNR, PSR in dB) -> metric -> tally, of all PSRs of the grids that name the vote;
            filled as clean receptions are scored.
    """

    def __init__(self, link: TrainedLink, air: Air) -> None:
        assert link.vote is not None
        self.link, self.air, self.vote = link, air, link.vote
        self.stream = air.stream.child("vote")
        scenario = link.plan.scenario
        self.psrs = list(dict.fromkeys(psr for _, grid in self.vote.grids(scenario) for psr in grid.psr_db or []))
        self.certificates: dict[tuple[str, float, float], dict[str, Tally]] = {}

    def score(
        self,
        listeners: Sequence[Listener],
        snrs: Sequence[float],
        delta: Perturbation,
        goals: Mapping[str, int] | None = None,
    ) -> list[dict[Listener, dict[str, Tally]]]:
        """What each listener's votes make of the test set at each SNR; without a perturbation, certificates too; with
        goals of some tasks, also how far these are reached."""
        found: list[dict[Listener, dict[str, Tally]]] = [{listener: {} for listener in listeners} for _ in snrs]
        psrs = torch.tensor([from_db(psr) for psr in self.psrs], dtype=torch.float64, device=self.link.images.device)
        for ballot in self._ballots(listeners, snrs, delta):
            task = self.link.plan.task(ballot.listener.branch)
            # NaN has a largest entry too: without this a link that has broken down would score like chance.
            broken = ~ballot.output.isfinite().flatten(2).all(-1).all(0)
            measured = self.vote.measure(ballot.output, ballot.truth, task)
            if (goal := (goals or {}).get(ballot.listener.branch.task)) is not None:
                measured["reached"] = self._reached(ballot, task, goal)
            self._add(found[ballot.level][ballot.listener], measured, ballot.images, broken)
            if delta or not self.psrs:
                continue
            distance = psrs.sqrt().unsqueeze(1) * ballot.reach
            decoder = self.link.plan.decoder_format(ballot.listener.branch)
            shares = self.vote.certify(ballot.output, ballot.truth, task, distance, decoder)
            for i, psr in enumerate(self.psrs):
                one = {name: Share(share.numerator[i], share.denominator[i]) for name, share in shares.items()}
                key = ballot.listener.name, snrs[ballot.level], psr
                self._add(self.certificates.setdefault(key, {}), one, ballot.images, broken)
        return found

    def _reached(self, ballot: _Ballot, task: Task, goal: int) -> Share:
        """As `Task.reached`, of what is voted."""
        aim = task.aim(goal, self.link.examples)[ballot.images]
        share = self.vote.measure(ballot.output, aim, task)[task.headline]
        if not isinstance(task, Decision):
            return share
        other = (ballot.truth != aim).float()
        return Share(share.numerator * other, share.denominator * other)

    def certified(self, listeners: Sequence[Listener], snr_db: float, psr_db: float) -> dict[str, Tally]:
        """What is certified for these listeners together, whose clean receptions have been scored."""
        whole = together([self.certificates[listener.name, snr_db, psr_db] for listener in listeners])
        for metric, tally in whole.items():
            # A bound less alpha may lie below zero, where it says nothing.
            if metric == "certified_accuracy" and tally.numerator.sum() < 0:
                whole[metric] = replace(tally, numerator=np.zeros_like(tally.numerator))
        return whole

    def receptions(self, listener: Listener) -> int:
        """Receptions of each image behind a figure."""
        return self.vote.receptions * self._gains(listener)

    def _ballots(self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation) -> Iterator[_Ballot]:
        if isinstance(self.vote, ManyReceptions):
            return self._receptions(listeners, snrs, delta)
        painted = isinstance(self.link.transmitter.encoder, MaeEncoder)
        return (self._painted_copies if painted else self._copies)(listeners, snrs, delta)

    def _gains(self, listener: Listener) -> int:
        steady = self.link.plan.channel(listener.branch).steady
        return self.vote.gains if isinstance(self.vote, ManyReceptions) and not steady else 1

    def _add(self, into: dict[str, Tally], shares: Mapping[str, Share], images: Tensor, broken: Tensor) -> None:
        numbers, count = images.cpu().numpy(), len(self.link.labels)
        for metric, share in shares.items():
            tally = into.setdefault(metric, Tally(np.zeros(count), np.zeros(count)))
            tally.numerator[numbers] += share.numerator.double().masked_fill(broken, torch.nan).cpu().numpy()
            tally.denominator[numbers] += share.denominator.double().cpu().numpy()
            tally.receptions += int(np.count_nonzero(numbers == 0))

    def _groups(self) -> Iterator[Tensor]:
        everything = torch.arange(len(self.link.labels), device=self.link.images.device)
        yield from everything.split(max(1, ROWS_AT_ONCE // self.vote.receptions))

    def _receptions(
        self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation
    ) -> Iterator[_Ballot]:
        """Receptions of the same signals through the same gains."""
        plan, symbols = self.link.plan, self.link.plan.scenario.link.symbols
        x = self._sent(self.link.images + delta["input"] if "input" in delta else self.link.images)
        power = energy((self._sent(self.link.images) if "input" in delta else x).double())
        for listener in listeners:
            channel, task, whole = plan.channel(listener.branch), plan.task(listener.branch), self.air.score(listener)
            for draw in range(self._gains(listener)):
                for index in self._groups():
                    part = whole.draws(slice(draw, draw + 1)).at(index)
                    noise = [self._noise(listener, draw, image, part.noise.shape[-1]) for image in index.tolist()]
                    part = self.air.averaged(replace(part, noise=torch.stack(noise, 1)))
                    truth = task.truth(self.link.examples.at(index), part)
                    truth = truth if part.target is None else truth[0]
                    gain = part.g[0].abs().amax(-1).double()
                    here = delta.get("air")
                    if here is not None:  # of an adversary who knows the channel, one for each of its draws
                        here = (here[draw] if here.dim() > x.dim() else here)[index]
                    turn = delta["phase"][index] if "phase" in delta else None
                    for level, snr_db in enumerate(snrs):
                        with torch.no_grad():
                            output = listener.decoder(channel.apply(x[index], part, snr_db, symbols, here, turn))
                        reach = gain * (power[index] * from_db(snr_db) * self.vote.averaged).sqrt()
                        yield _Ballot(listener, level, index, output, truth, reach)

    def _copies(self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation) -> Iterator[_Ballot]:
        """Noisy copies of the images, each over an air of its own."""
        assert isinstance(self.vote, NoisyCopies)
        plan, symbols = self.link.plan, self.link.plan.scenario.link.symbols
        images = self.link.images + delta["input"] if "input" in delta else self.link.images
        reach = energy(self.link.images.double()).sqrt() / self.vote.sigma
        for index in self._groups():
            x = torch.stack([self._sent_copies(image, images[image]) for image in index.tolist()], 1)
            here, turn = (delta[name][index] if name in delta else None for name in ("air", "phase"))
            for listener in listeners:
                channel, task = plan.channel(listener.branch), plan.task(listener.branch)
                draws = [
                    channel.draw((self.vote.receptions,), x.shape[-1], symbols, stream.torch())
                    for stream in (self.stream.child(listener.name, image) for image in index.tolist())
                ]
                air = Realisation(*(torch.stack(one, 1) for one in zip(*map(_parts, draws), strict=True)))
                air = air.to(plan.device)
                truth = task.truth(self.link.examples.at(index), air)
                for level, snr_db in enumerate(snrs):
                    with torch.no_grad():
                        output = listener.decoder(channel.apply(x, air, snr_db, symbols, here, turn))
                    yield _Ballot(listener, level, index, output, truth, reach[index])

    def _painted_copies(
        self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation
    ) -> Iterator[_Ballot]:
        """The same for a transmitter of patches, one image after another: the pictures that receivers paint are large.
        The patches of every copy are chosen by what the transmitter sees of it."""
        assert isinstance(self.vote, NoisyCopies)
        plan, digital = self.link.plan, self.link.transmitter.digital
        images = self.link.images + delta["input"] if "input" in delta else self.link.images
        reach = energy(self.link.images.double()).sqrt() / self.vote.sigma
        arriving = {
            (level, listener): airtime(self.link, self.air, listener, snr_db).received[0].tolist()
            for (level, snr_db), listener in product(enumerate(snrs), listeners)
        }
        for number, image in enumerate(images):
            index = torch.tensor([number], device=images.device)
            sent: dict[int, Transmission] = {}
            told: dict[tuple[Listener, int], Tensor] = {}
            here = delta["air"][index] if "air" in delta else None
            for (level, snr_db), listener in product(enumerate(snrs), listeners):
                count = arriving[level, listener][number]
                if count and count not in sent:
                    sent[count] = self._patches_of_copies(number, image, count)
                # Of a digital transmission the SNR decides how many patches arrive, and nothing else.
                if not digital or (listener, count) not in told:
                    heard = self._painted(listener, snr_db, number, sent.get(count), here)
                    with torch.no_grad():
                        told[listener, count] = torch.cat([listener.decoder(pictures)[0] for pictures in heard])
                output, task = told[listener, count].unsqueeze(1), plan.task(listener.branch)
                nothing = torch.empty(1, 1, 0, device=images.device)
                truth = task.truth(self.link.examples.at(index), Realisation(nothing, nothing, nothing, nothing))
                yield _Ballot(listener, level, index, output, truth, reach[index])

    def _painted(
        self, listener: Listener, snr_db: float, number: int, sent: Transmission | None, interference: Tensor | None
    ) -> Iterator[Tensor]:
        """Pictures that a listener paints of the copies of an image, (1, b, 3, H, W) each; the mean colour where
        nothing was sent."""
        link, symbols = self.link, self.link.plan.scenario.link.symbols
        assert isinstance(link.transmitter.encoder, MaeEncoder)
        everything = torch.arange(self.vote.receptions, device=link.images.device)
        if sent is None:
            for rows in everything.split(PICTURES_AT_ONCE):
                yield link.transmitter.encoder.blank.expand(1, len(rows), *link.images.shape[1:])
            return
        channel = link.plan.channel(listener.branch)
        uses = 0 if link.transmitter.digital else sent.x.shape[-1]
        generator = self.stream.child(listener.name, number).torch()
        air = channel.draw((1, self.vote.receptions), uses, symbols, generator).to(link.plan.device)
        for rows in everything.split(PICTURES_AT_ONCE):
            part = sent.at(rows)
            with torch.no_grad():
                received = part.drawn
                if not link.transmitter.digital:
                    received = channel.apply(part.x, air.at(rows), snr_db, symbols, interference)
                yield link.transmitter.hear(received, part)

    def _patches_of_copies(self, number: int, image: Tensor, count: int) -> Transmission:
        """So many patches of each noisy copy of an image."""
        parts, plan = [], self.link.plan
        for copies in self._noisy(number, image):
            for some in copies.split(plan.scenario.evaluation.batch):
                choice = self.link.choice(torch.full((len(some),), number, device=image.device), count, changed=True)
                with torch.no_grad():
                    parts.append(self.link.transmitter.send(some, choice))
        return Transmission.joined(parts)

    def _sent_copies(self, number: int, image: Tensor) -> Tensor:
        """What is sent for noisy copies of an image, (receptions, nc)."""
        return torch.cat([self._sent(copies) for copies in self._noisy(number, image)])

    def _noisy(self, number: int, image: Tensor) -> Iterator[Tensor]:
        """Noisy copies of an image, (b, C, H, W) each."""
        assert isinstance(self.vote, NoisyCopies)
        total, stream = self.vote.receptions, self.stream.child("copies", number)
        for first in range(0, total, COPIES_AT_ONCE):
            shape = (min(COPIES_AT_ONCE, total - first),)
            drawn = self.vote.draw(shape, self.link.plan.images.shape, stream.child(first).torch())
            yield self.vote.transform(image, drawn.to(image.device))

    def _sent(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = images.split(self.link.plan.scenario.evaluation.batch)
            return torch.cat([self.link.transmitter.send(part).x for part in parts])

    def _noise(self, listener: Listener, draw: int, image: int, symbols_on_air: int) -> Tensor:
        generator = self.stream.child(listener.name, draw, image).torch()
        shape = (self.vote.receptions, symbols_on_air)
        return standard_noise(shape, self.link.plan.scenario.link.symbols, generator).to(self.link.plan.device)


def together(tallies: Sequence[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Tallies of several listeners as one."""
    return {
        metric: Tally(
            np.sum([one[metric].numerator for one in tallies], axis=0),
            np.sum([one[metric].denominator for one in tallies], axis=0),
            sum(one[metric].receptions for one in tallies),
        )
        for metric in tallies[0]
    }


def _parts(realisation: Realisation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A realisation of a communication channel."""
    return realisation.h, realisation.g, realisation.noise, realisation.error
