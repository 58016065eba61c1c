"""Scoring a perturbation: every listener's metrics over the shared channel draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsem.channels.channel import Realisation
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime, most_patches
from fedsem.evaluation.average_precision import Detections, Ranking
from fedsem.evaluation.point import Tally
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.link import Transmission
from fedsem.models.mae import Mae
from fedsem.models.mae_encoder import MaeEncoder
from fedsem.tasks.detection import Detection
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Examples, Share

ROWS_AT_ONCE = 4096
"""Receptions decoded at once: bounds memory (a reconstruction is 3,072 numbers each); results do not depend on it."""
PICTURES_AT_ONCE = 64
"""The same where each is a picture that is painted."""

Scores = dict[tuple[str, str, str], dict[str, "Tally | Ranking"]]
"""Receiver group, task, channel -> metric -> tally."""


@dataclass(frozen=True)
class Heard:
    """Some receptions of a listener.

    Attributes:
        inputs: what its decoder decodes, (d, n, ...): d draws of n images.
        images: which test images they are of, (n,).
        times: how many of all draws each of them stands for, (n,).
        realisation: the draws, for what depends on them.
        kept: which patches of each image arrived, bool (n, L); None for an encoder without patches.
    """

    inputs: Tensor
    images: Tensor
    times: Tensor
    realisation: Realisation
    kept: Tensor | None = None


class Scorer:
    """Scores perturbations of a trained link; thresholds that clean receptions set are kept.

    Args:
        link: the trained link.
        air: its channel draws.
    """

    def __init__(self, link: TrainedLink, air: Air) -> None:
        self.link, self.air = link, air
        self.thresholds: dict[tuple[str, float], float | None] = {}
        self._clean: Transmission | None = None
        self._painted: tuple[object, int, tuple[Tensor, Tensor]] | None = None
        encoder = link.transmitter.encoder
        self.encoder = encoder if isinstance(encoder, MaeEncoder) else None
        self.everything = torch.arange(len(link.labels), device=link.images.device)

    def sent(self, delta: Perturbation) -> Transmission:
        """What is sent for the perturbed test images; of a digital transmission nothing that is on air."""
        if "input" not in delta and self._clean is not None:
            return self._clean
        images = self.perturbed(delta)
        with torch.no_grad():
            parts = [
                self.link.transmitter.send(images[index], self.link.choice(index, most_patches(self.link)))
                for index in self.everything.split(self.link.plan.scenario.evaluation.batch)
            ]
        whole = Transmission.joined(parts)
        if "input" not in delta:
            self._clean = whole
        return whole

    def examples(self, images: Tensor) -> Examples:
        """Test images; without a copy where they are all of them."""
        return self.link.examples if images is self.everything else self.link.examples.at(images)

    def perturbed(self, delta: Perturbation) -> Tensor:
        """The test images as the transmitter sees them."""
        return self.link.images + delta["input"] if "input" in delta else self.link.images

    def score(
        self, listeners: list[Listener], snr_db: float, delta: Perturbation, attack: Evasion | None = None
    ) -> Scores:
        """Metrics of these listeners at an SNR; with a targeted attack, also how far it reached its goal."""
        scores: Scores = {}
        found: dict[tuple[str, str, str], Detections] = {}
        for listener in listeners:
            threshold = self._threshold(listener, snr_db)
            goal = attack.targeted.get(listener.branch.task) if attack is not None else None
            task = self.link.plan.task(listener.branch)
            key = (listener.group, listener.branch.task, listener.branch.channel)
            into = scores.setdefault(key, {})
            aim = None if goal is None else task.aim(goal, self.link.examples)
            for heard in self.heard(listener, snr_db, delta):
                with torch.no_grad():
                    output = listener.decoder(heard.inputs)
                truth = task.truth(self.examples(heard.images), heard.realisation)
                shares = task.metrics(output, truth, threshold)
                if heard.kept is not None and isinstance(task, Reconstruction):
                    shares |= self._inpainting(output, heard)
                if aim is not None:
                    shares["reached"] = task.reached(output, truth, aim[heard.images])
                # NaN has a largest entry too: without this a link that has broken down would score like chance.
                broken = ~(output.isfinite().flatten(2).all(-1) & heard.inputs.isfinite().flatten(2).all(-1))
                images = heard.images.cpu().numpy()
                times = heard.times.double()
                for metric, share in shares.items():
                    tally = into.get(metric)
                    if tally is None:
                        tally = into[metric] = Tally(np.zeros(len(self.everything)), np.zeros(len(self.everything)))
                    assert isinstance(tally, Tally)
                    numerator = share.numerator.double().masked_fill(broken, torch.nan) * times
                    np.add.at(tally.numerator, images, numerator.sum(0).cpu().numpy())
                    np.add.at(tally.denominator, images, (share.denominator.double() * times).sum(0).cpu().numpy())
                    # Every image is heard equally often.
                    tally.receptions += int((times * (heard.images == 0)).sum()) * len(output)
                if isinstance(task, Detection):
                    found.setdefault(key, Detections(self.link.examples)).add(output, heard.images, heard.times)
        for key, detections in found.items():
            scores[key] |= detections.finished()
        return scores

    def _inpainting(self, output: Tensor, heard: Heard) -> dict[str, Share]:
        """Mean squared error on the patches that did not arrive, `masked_mse`, and what the mean colour of those that
        did would have there, `mean_colour_masked_mse`."""
        assert self.encoder is not None
        assert heard.kept is not None
        mae, images = self.encoder.mae, self.link.images[heard.images]
        patches = mae.patchify(images).unflatten(-1, (3, -1))
        visible = heard.kept.sum(1, keepdim=True).clamp_min(1)
        colour = (patches.mean(-1) * heard.kept.unsqueeze(-1)).sum(1) / visible
        flat = (patches - colour[:, None, :, None]).square().mean((-2, -1))
        error = torch.stack([mae.patchify((one.view_as(images) - images).square()).mean(-1) for one in output])
        # Where nothing arrives there is no colour to compare with.
        lost = (~heard.kept & heard.kept.any(1, keepdim=True)).float().expand(error.shape)
        return {
            "masked_mse": Share((error * lost).sum(-1), lost.sum(-1)),
            "mean_colour_masked_mse": Share((flat * lost).sum(-1), lost.sum(-1)),
        }

    def _threshold(self, listener: Listener, snr_db: float) -> float | None:
        key = (listener.name, snr_db)
        if key not in self.thresholds:
            self.thresholds[key] = None
            if self.link.is_sensing(listener):
                task = self.link.plan.task(listener.branch)
                pairs = []
                for heard in self.heard(listener, snr_db, {}):
                    with torch.no_grad():
                        output = listener.decoder(heard.inputs)
                    pairs.append((output, task.truth(self.examples(heard.images), heard.realisation)))
                self.thresholds[key] = task.calibrate(
                    torch.cat([output for output, _ in pairs]), torch.cat([truth for _, truth in pairs])
                )
        return self.thresholds[key]

    def heard(self, listener: Listener, snr_db: float, delta: Perturbation) -> Iterator[Heard]:
        """All receptions of the test set, some at a time."""
        if self.encoder is not None and not self.link.is_sensing(listener):
            if self.link.mode.selection == "original":
                yield from self._originals()
            elif self.encoder.options.digital:
                yield from self._delivered(listener, snr_db, delta)
            else:
                yield from self._painted_from_air(listener, snr_db, delta)
            return
        channel, symbols = self.link.plan.channel(listener.branch), self.link.plan.scenario.link.symbols
        sent, whole = self.sent(delta), self.air.score(listener)
        x, interference = sent.x, delta.get("air")
        if self.encoder is not None:
            x = self.link.transmitter.waveform(sent)
            interference = None if interference is None else self.link.transmitter.waveform(sent, interference)
        once = torch.ones(len(x), device=x.device)
        chunk = max(1, ROWS_AT_ONCE // len(x))
        for start in range(0, len(whole.noise), chunk):
            part = whole.draws(slice(start, start + chunk))
            with torch.no_grad():
                received = channel.apply(x, part, snr_db, symbols, interference)
            yield Heard(received, self.everything, once, part)

    def _originals(self) -> Iterator[Heard]:
        draws = self.link.plan.scenario.evaluation.draws.score
        for index in self.everything.split(PICTURES_AT_ONCE):
            yield self._of(self.link.images[index], index, torch.full_like(index, draws, dtype=torch.float32))

    def _nothing(self) -> Iterator[Heard]:
        """What is shown where not even one patch is sent."""
        draws = self.link.plan.scenario.evaluation.draws.score
        for index in self.everything.split(PICTURES_AT_ONCE):
            pictures, kept = self._paint(index, torch.zeros_like(index), {})
            yield self._of(pictures, index, torch.full_like(index, draws, dtype=torch.float32), kept)

    def _painted_from_air(self, listener: Listener, snr_db: float, delta: Perturbation) -> Iterator[Heard]:
        channel, symbols = self.link.plan.channel(listener.branch), self.link.plan.scenario.link.symbols
        if not most_patches(self.link):
            yield from self._nothing()
            return
        sent, whole = self.sent(delta), self.air.score(listener)
        uses = sent.x.shape[1] if symbols == "real" else sent.x.shape[1] // 2
        for index in self.everything.split(PICTURES_AT_ONCE):
            part = sent.at(index)
            interference = delta["air"][index] if "air" in delta else None
            for draw in range(len(whole.noise)):
                air = whole.draws(slice(draw, draw + 1)).at(index).first(uses)
                with torch.no_grad():
                    received = channel.apply(part.x, air, snr_db, symbols, interference)
                    pictures = self.link.transmitter.hear(received, part)
                assert part.selected is not None
                assert part.selected.kept is not None
                kept = part.selected.kept.mask(self._mae.patches)
                yield Heard(pictures, index, torch.ones(len(index), device=index.device), air, kept)

    def _delivered(self, listener: Listener, snr_db: float, delta: Perturbation) -> Iterator[Heard]:
        """A digital transmission depends on the draw through the number of patches alone: each number that occurs with
        an image is painted once."""
        received = airtime(self.link, self.air, listener, snr_db).received
        draws = self.link.plan.scenario.evaluation.draws.score
        if len(received) == 1 and bool((received == received[0, 0]).all()):
            for index in self.everything.split(PICTURES_AT_ONCE):
                pictures, kept = self._pictures(int(received[0, 0]), delta)
                times = torch.full_like(index, draws, dtype=torch.float32)
                yield self._of(pictures[index], index, times, kept[index])
            return
        images = self.everything.cpu().expand_as(received)
        pairs, times = torch.stack([received.flatten(), images.flatten()], 1).unique(dim=0, return_counts=True)
        times = times * (draws // len(received))
        for chunk in torch.arange(len(pairs)).split(PICTURES_AT_ONCE):
            count, index = pairs[chunk].to(self.everything.device).unbind(1)
            pictures, kept = self._paint(index, count, delta)
            yield self._of(pictures, index, times[chunk].to(index.device).float(), kept)

    def _pictures(self, count: int, delta: Perturbation) -> tuple[Tensor, Tensor]:
        """Pictures of all test images from `count` patches each; kept until others are asked for, since several tasks
        decode the same ones."""
        source = delta.get("input")
        if self._painted is None or self._painted[0] is not source or self._painted[1] != count:
            parts = [
                self._paint(index, torch.full_like(index, count), delta)
                for index in self.everything.split(PICTURES_AT_ONCE)
            ]
            pictures, kept = zip(*parts, strict=True)
            self._painted = (source, count, (torch.cat(pictures), torch.cat(kept)))
        return self._painted[2]

    @property
    def _mae(self) -> Mae:
        assert self.encoder is not None
        return self.encoder.mae

    def _paint(self, index: Tensor, count: Tensor, delta: Perturbation) -> tuple[Tensor, Tensor]:
        """Pictures of these images from so many patches of each, and which patches those are; nothing but the mean
        colour where nothing arrives."""
        assert self.encoder is not None
        kept = torch.zeros(len(index), self._mae.patches, dtype=torch.bool, device=index.device)
        pictures = self.encoder.blank.expand_as(self.link.images[index]).clone()
        there = count > 0
        if bool(there.any()):
            some, images = index[there], self.perturbed(delta)
            with torch.no_grad():
                sent = self.link.transmitter.send(images[some], self.link.choice(some, count[there]))
                pictures[there] = self.link.transmitter.hear(sent.x.unsqueeze(0), sent)[0]
                assert sent.selected is not None
                assert sent.selected.kept is not None
                kept[there] = sent.selected.kept.mask(self._mae.patches)
        return pictures, kept

    def _of(self, pictures: Tensor, index: Tensor, times: Tensor, kept: Tensor | None = None) -> Heard:
        nothing = torch.empty(1, len(index), 0, device=index.device)
        return Heard(pictures.unsqueeze(0), index, times, Realisation(nothing, nothing, nothing, nothing), kept)
