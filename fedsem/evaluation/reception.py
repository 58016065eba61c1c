"""What the listeners of a trained link hear of the test set, some of it at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsem.channels.channel import Realisation
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime, most_patches
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Perturbation
from fedsem.link import Transmission
from fedsem.models.mae_encoder import MaeEncoder

ROWS_AT_ONCE = 4096
"""Receptions decoded at once: bounds memory (a reconstruction is 3,072 numbers each); results do not depend on it."""
PICTURES_AT_ONCE = 64
"""The same where each is a picture that is painted."""


@dataclass(frozen=True)
class Heard:
    """Some receptions of a listener.

    Attributes:
        inputs: what its decoder decodes, (d, n, ...): d draws of n images.
        images: which test images they are of, (n,).
        times: how many of all draws each of them stands for at each of the SNRs that were asked for, (S, n).
        realisation: the draws, for what depends on them.
        kept: which patches of each image arrived, bool (n, L); None for an encoder without patches.
    """

    inputs: Tensor
    images: Tensor
    times: Tensor
    realisation: Realisation
    kept: Tensor | None = None


class Receptions:
    """Sends the test set and lets listeners hear it.

    Args:
        link: the trained link.
        air: its channel draws.
    """

    def __init__(self, link: TrainedLink, air: Air) -> None:
        self.link, self.air = link, air
        self._clean: Transmission | None = None
        encoder = link.transmitter.encoder
        self.encoder = encoder if isinstance(encoder, MaeEncoder) else None
        self.everything = torch.arange(len(link.labels), device=link.images.device)

    @property
    def draws(self) -> int:
        """Receptions of each image."""
        return self.air.draws

    @property
    def together(self) -> bool:
        """Whether all SNRs and all listeners share the pictures that are painted; asking for them one by one would
        paint them again."""
        return self.encoder is not None and self.encoder.options.digital

    def perturbed(self, delta: Perturbation) -> Tensor:
        """The test images as the transmitter sees them."""
        return self.link.images + delta["input"] if "input" in delta else self.link.images

    def sent(self, delta: Perturbation) -> Transmission:
        """What is sent for the perturbed test images; of a digital transmission nothing that is on air."""
        if "input" not in delta and self._clean is not None:
            return self._clean
        images, count, drawn = self.perturbed(delta), most_patches(self.link), self.air.score_transform()
        with torch.no_grad():
            parts = [
                self.link.send(images[index], index, count, "input" in delta, drawn=drawn)
                for index in self.everything.split(self.link.plan.scenario.evaluation.batch)
            ]
        whole = Transmission.joined(parts)
        if "input" not in delta:
            self._clean = whole
        return whole

    def heard(
        self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation
    ) -> Iterator[tuple[Listener, Heard]]:
        """All receptions of the test set by all listeners at all SNRs; those of different SNRs come one after another,
        or at once where they do not differ."""
        painting = [one for one in listeners if self.encoder is not None and not self.link.is_sensing(one)]
        if painting and self.link.mode.selection == "original":
            yield from self._originals(painting, len(snrs))
        elif painting and self.together:
            yield from self._delivered(painting, snrs, delta)
        else:
            for listener in painting:
                for level, snr_db in enumerate(snrs):
                    for heard in self._painted_from_air(listener, snr_db, delta):
                        yield listener, _at_level(heard, level, len(snrs))
        for listener in listeners:
            if listener not in painting:
                for level, snr_db in enumerate(snrs):
                    for heard in self._received(listener, snr_db, delta):
                        yield listener, _at_level(heard, level, len(snrs))

    def _received(self, listener: Listener, snr_db: float, delta: Perturbation) -> Iterator[Heard]:
        channel, symbols = self.link.plan.channel(listener.branch), self.link.plan.scenario.link.symbols
        sent, whole = self.sent(delta), self.air.score(listener)
        images = len(self.everything)
        once = torch.ones(1, images, device=sent.x.device)
        chunk = max(1, ROWS_AT_ONCE // images)
        for start in range(0, len(whole.noise), chunk):
            part = whole.draws(slice(start, start + chunk))
            here = sent.in_draws(range(start, start + len(part.noise)), len(whole.noise))
            x, interference = self.link.transmitter.waveform(here), delta.get("air")
            if interference is not None and interference.dim() > 2:  # of an adversary who knows the channel
                interference = interference[start : start + chunk]
            if interference is not None:
                interference = self.link.transmitter.waveform(here, interference)
            with torch.no_grad():
                received = channel.apply(x, part, snr_db, symbols, interference, delta.get("phase"))
            yield Heard(received, self.everything, once, part)

    def _originals(self, listeners: Sequence[Listener], levels: int) -> Iterator[tuple[Listener, Heard]]:
        for index in self.everything.split(PICTURES_AT_ONCE):
            times = torch.full((levels, len(index)), self.draws, dtype=torch.float32, device=index.device)
            for listener in listeners:
                yield listener, _heard(self.link.images[index], index, times)

    def _painted_from_air(self, listener: Listener, snr_db: float, delta: Perturbation) -> Iterator[Heard]:
        channel, symbols = self.link.plan.channel(listener.branch), self.link.plan.scenario.link.symbols
        if not most_patches(self.link):
            for index in self.everything.split(PICTURES_AT_ONCE):
                pictures, kept = self._paint(index, torch.zeros_like(index), {})
                times = torch.full((1, len(index)), self.draws, dtype=torch.float32, device=index.device)
                yield _heard(pictures, index, times, kept)
            return
        assert self.encoder is not None
        sent, whole = self.sent(delta), self.air.score(listener)
        uses = sent.x.shape[-1] if symbols == "real" else sent.x.shape[-1] // 2
        for index in self.everything.split(PICTURES_AT_ONCE):
            part = sent.at(index)
            interference = delta["air"][index] if "air" in delta else None
            for draw in range(len(whole.noise)):
                air = whole.draws(slice(draw, draw + 1)).at(index).first(uses)
                here = part.in_draws(range(draw, draw + 1), len(whole.noise))
                with torch.no_grad():
                    received = channel.apply(here.x, air, snr_db, symbols, interference)
                    pictures = self.link.transmitter.hear(received, here)
                kept = self._kept(here)
                yield Heard(pictures, index, torch.ones(1, len(index), device=index.device), air, kept)

    def _delivered(
        self, listeners: Sequence[Listener], snrs: Sequence[float], delta: Perturbation
    ) -> Iterator[tuple[Listener, Heard]]:
        """A digital transmission depends on SNR, listener and draw through the number of patches alone: each number
        that occurs with an image is painted once, and stands for all receptions that are alike."""
        images = len(self.everything)
        occurring: dict[Listener, list[tuple[Tensor, Tensor]]] = {}
        for listener in listeners:
            for snr_db in snrs:
                received = airtime(self.link, self.air, listener, snr_db).received
                # A number of patches and an image as one number.
                pairs, times = (received * images + self.everything.cpu()).unique(return_counts=True)
                occurring.setdefault(listener, []).append((pairs, times * (self.draws // len(received))))
        every = torch.cat([pairs for levels in occurring.values() for pairs, _ in levels]).unique()
        for chunk in every.split(PICTURES_AT_ONCE):
            index = (chunk % images).to(self.everything.device)
            pictures, kept = self._paint(index, (chunk // images).to(index.device), delta)
            for listener, levels in occurring.items():
                times = torch.zeros(len(levels), len(chunk))
                for level, (pairs, counted) in enumerate(levels):
                    here = torch.isin(chunk, pairs)
                    times[level, here] = counted[torch.searchsorted(pairs, chunk[here])].float()
                told = times.any(0).to(index.device)
                if bool(told.any()):
                    yield listener, _heard(pictures[told], index[told], times.to(index.device)[:, told], kept[told])

    def _paint(self, index: Tensor, count: Tensor, delta: Perturbation) -> tuple[Tensor, Tensor]:
        """Pictures of these images from so many patches of each, and which patches those are; nothing but the mean
        colour where nothing arrives."""
        assert self.encoder is not None
        patches = self.encoder.mae.patches
        kept = torch.zeros(len(index), patches, dtype=torch.bool, device=index.device)
        pictures = self.encoder.blank.expand_as(self.link.images[index]).clone()
        there = count > 0
        if bool(there.any()):
            some, images = index[there], self.perturbed(delta)
            with torch.no_grad():
                # Of what is random in the link's transform the first draw.
                drawn = self.air.score_transform()
                first = None if drawn is None else drawn[:1]
                sent = self.link.send(images[some], some, count[there], "input" in delta, drawn=first)
                pictures[there] = self.link.transmitter.hear(sent.drawn, sent)[0]
                kept[there] = self._kept(sent)
        return pictures, kept

    def _kept(self, sent: Transmission) -> Tensor:
        """Which patches are sent in the first draw, bool (B, L)."""
        assert self.encoder is not None
        assert sent.selected is not None
        chosen = sent.selected.draw(0).kept
        assert chosen is not None
        return chosen.mask(self.encoder.mae.patches)


def _heard(pictures: Tensor, index: Tensor, times: Tensor, kept: Tensor | None = None) -> Heard:
    nothing = torch.empty(1, len(index), 0, device=index.device)
    return Heard(pictures.unsqueeze(0), index, times, Realisation(nothing, nothing, nothing, nothing), kept)


def _at_level(heard: Heard, level: int, levels: int) -> Heard:
    """Receptions at one SNR, as one of several."""
    times = heard.times.new_zeros(levels, heard.times.shape[1])
    times[level] = heard.times[0]
    return Heard(heard.inputs, heard.images, times, heard.realisation, heard.kept)
