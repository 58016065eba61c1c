"""Eavesdropper: a decoder that nobody meant to have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.channel import Channel, Realisation
from fedsem.errors import ScenarioError, closest
from fedsem.hooks.leakage import Exposed, Leak, Leakage, Picture
from fedsem.registry import Options, Plugin, register
from fedsem.scenario import Level, Many, Name, Uniform
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task

if TYPE_CHECKING:
    from fedsem.plan import Plan

ROWS_AT_ONCE = 4096
"""Receptions decoded at once: bounds memory; results do not depend on it."""


def _name_or_plugin(value: Any) -> str | None:
    if isinstance(value, str):
        return "name"
    return "own" if isinstance(value, (Mapping, Options)) else None


def _choice(group: str) -> Discriminator:
    return Discriminator(
        _name_or_plugin, "choice", f"should be the name of a {group} of the scenario, or a {group} with its 'kind'"
    )


AnyChannel = Annotated[Annotated[Name, Tag("name")] | Annotated[Any, Plugin("channel"), Tag("own")], _choice("channel")]
AnyTask = Annotated[Annotated[Name, Tag("name")] | Annotated[Any, Plugin("task"), Tag("own")], _choice("task")]
"""A name from the scenario, or a plug-in of the adversary's own."""


@register("attack", "eavesdropper")
class Eavesdropper(Leakage):
    """A passive receiver y = h x + n with a channel and a noise floor of its own, which trains a decoder for what it
    wants to know: the picture (model inversion, as the inverse network of Chen, Yang, Shi and Chen, The Model Inversion
    Eavesdropping Attack in Semantic Communication Systems, 2023) or the class.

    It knows the trained encoder and the statistics of its channel, and encodes images of its own (`data.reserve`),
    which no receiver has: it needs no pair of a real transmission and its image. The encoder stays as it is. By default
    it knows its SNR and has one decoder for each; the SNRs are those of the grids that name it, before fading, whatever
    the receivers' are. Its gain, noise and channel estimate are drawn independently of theirs. Its amplifier brings
    what it receives in training to a median magnitude of 1, so that a decoder learns at any SNR.

    Beside each metric the table has `<metric>_vs_guess` (minus what the mean of its own images, or their most common
    class, would have reached) and, where the receivers were measured at the same SNR at a task of the scenario,
    `<metric>_vs_receiver`.

    Attributes:
        channel: from the transmitter to the eavesdropper: a name from `channels`, or {kind: ...}.
        task: what it wants to know: a name from `tasks`, or {kind: ...}.
        epochs: passes over its images.
        batch: images per step.
        lr: learning rate of Adam, falling to 0 along a cosine.
        draws: channel draws per image and step.
        train_snr_db: SNR in training, one decoder for all; null: a decoder for each SNR, trained there.
    """

    channel: AnyChannel
    task: AnyTask
    epochs: PositiveInt = 100
    batch: Many = 32
    lr: PositiveFloat = 2e-3
    draws: Many = 4
    train_snr_db: Level | None = Field(None)

    def check(self, path: str, plan: Plan) -> None:
        scenario = plan.scenario
        for key, known in (("channel", scenario.channels), ("task", scenario.tasks)):
            named = getattr(self, key)
            if isinstance(named, str) and named not in known:
                raise ScenarioError(f"In the scenario, '{path}.{key}': unknown {key} '{named}'.{closest(named, known)}")
        if scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': an eavesdropper of an encoder that sends patches is not implemented; use "
                "an encoder that sends a fixed number of symbols, such as 'cnn'."
            )
        task, channel = self.wants(plan), self.hears(plan)
        if task.is_sensing or channel.is_sensing:
            key = "task" if task.is_sensing else "channel"
            raise ScenarioError(
                f"In the scenario, '{path}.{key}': an eavesdropper hears what is sent, not what a target reflects; "
                f"choose a communication {key}."
            )
        if task.needs is not None:
            raise ScenarioError(
                f"In the scenario, '{path}.task': '{task.kind}' decodes a painted picture, which this link does not "
                "give; use classification or reconstruction."
            )
        if plan.dataset.reserve is None:
            raise ScenarioError(
                f"In the scenario, '{path}': an eavesdropper learns its decoder from images of its own, and "
                "data.reserve keeps none from the receivers; set data.reserve to a number of images."
            )

    def points(self, snrs: int) -> int:
        return snrs

    def knowledge(self) -> dict[str, str]:
        return {"weights": "encoder", "data": "own images", "channel": "its own estimate, statistics of its noise"}

    def wants(self, plan: Plan) -> Task:
        """Its task."""
        task: Task = plan.scenario.tasks[self.task] if isinstance(self.task, str) else self.task
        return task

    def hears(self, plan: Plan) -> Channel:
        """Its channel."""
        channel: Channel = plan.scenario.channels[self.channel] if isinstance(self.channel, str) else self.channel
        return channel

    def measure(self, link: Exposed, stream: Stream) -> Iterator[Leak]:
        plan, task, channel = link.plan, self.wants(link.plan), self.hears(link.plan)
        symbols, own, test = plan.scenario.link.symbols, link.own, link.test
        columns = {
            "task": self.task if isinstance(self.task, str) else task.kind,
            "encoder": plan.scenario.link.encoder.kind,
            "channel": channel.kind,
            "fading": channel.fading_name,
            "csi": channel.csi_name,
            "symbols": symbols,
            "channel_uses": plan.channel_uses,
        }
        draws = plan.scenario.evaluation.draws.score
        shape = (draws, len(test))
        # Made once and on the CPU: the same at every SNR, and on every device.
        air = channel.draw(shape, plan.channel_uses, symbols, stream.child("score").torch()).to(plan.device)
        sent, sent_own = link.send(test.images), link.send(own.images)
        rival = self.task if isinstance(self.task, str) else None
        decoder: nn.Module | None = None
        for snr_db in link.snrs:
            level = snr_db if self.train_snr_db is None else self.train_snr_db
            if decoder is None or self.train_snr_db is None:
                decoder = self.learn(plan, sent_own, own, level, stream.child("train"))
            metrics, first = self._scored(plan, decoder, sent, test, air, snr_db)
            yield Leak(
                {**columns, "decoder": "eavesdropper", "train_snr_db": _text(level), "snr_db": snr_db, "draws": draws},
                metrics,
                draws,
                rival=rival,
                pictures=[
                    Picture(i, int(test.labels[i]), test.images[i], made.view_as(test.images[i]).clamp(0, 1))
                    for i, made in enumerate(first)
                    if isinstance(task, Reconstruction)
                ],
            )
        if (guessed := _guess(task, own, test)) is not None:
            decoder_name, metrics = guessed
            yield Leak({**columns, "decoder": decoder_name}, metrics, 1, guess=True)

    def learn(self, plan: Plan, sent: Tensor, own: Examples, snr_db: float | Uniform, stream: Stream) -> nn.Module:
        """A decoder trained on receptions of what is sent for its own images.

        Args:
            plan: of the link.
            sent: what the transmitter sends for these images, (N, nc).
            own: the images.
            snr_db: SNR in training.
            stream: of the decoder's first weights, of the order of the images, and of the air.
        """
        task, channel, symbols = self.wants(plan), self.hears(plan), plan.scenario.link.symbols
        with stream.child("decoder").fork():
            decoder = task.build(self.format(plan)).to(plan.device)
        snr = _levels(snr_db, (1, len(own)), stream.child("gain", "snr")).to(plan.device)
        air = channel.draw((1, len(own)), plan.channel_uses, symbols, stream.child("gain").torch(plan.device))
        decoder = _Amplified(decoder, float(channel.apply(sent, air, snr, symbols).abs().median()))
        optimizer = torch.optim.Adam(decoder.parameters(), self.lr, fused=True)
        steps = self.epochs * -(-len(own) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order, noise = stream.child("order").torch(), stream.child("air").torch(plan.device)
        decoder.train()
        for epoch in range(self.epochs):
            for step, chosen in enumerate(torch.randperm(len(own), generator=order).to(plan.device).split(self.batch)):
                shape = (self.draws, len(chosen))
                realisation = channel.draw(shape, plan.channel_uses, symbols, noise)
                snr = _levels(snr_db, shape, stream.child("snr", epoch, step)).to(plan.device)
                received = channel.apply(sent[chosen], realisation, snr, symbols)
                truth = task.truth(own.at(chosen), realisation)
                optimizer.zero_grad(set_to_none=True)
                task.objective(decoder, received, truth).mean().backward()
                optimizer.step()
                schedule.step()
        return decoder.eval().requires_grad_(False)

    def format(self, plan: Plan) -> DecoderFormat:
        """What its decoder must know of its surroundings."""
        return DecoderFormat(
            width=self.hears(plan).width(plan.channel_uses, plan.scenario.link.symbols),
            channel_uses=plan.channel_uses,
            image_shape=plan.images.shape,
            classes=len(plan.dataset.classes),
            range_bins=1,
        )

    def _scored(
        self, plan: Plan, decoder: nn.Module, sent: Tensor, test: Examples, air: Realisation, snr_db: float
    ) -> tuple[dict[str, Share], Tensor]:
        """Metrics of each test image, summed over draws, and what the first draw of the first images gave."""
        task, channel, symbols = self.wants(plan), self.hears(plan), plan.scenario.link.symbols
        sums: dict[str, list[Tensor]] = {}
        first = torch.empty(0)
        chunk = max(1, ROWS_AT_ONCE // len(test))
        for start in range(0, len(air.noise), chunk):
            part = air.draws(slice(start, start + chunk))
            with torch.no_grad():
                output = decoder(channel.apply(sent, part, snr_db, symbols))
                shares = task.metrics(output, task.truth(test, part), None)
            if start == 0:
                first = output[0, : plan.scenario.evaluation.samples]
            for metric, share in shares.items():
                numerator = share.numerator.double()
                found = [numerator.sum(0), share.denominator.double().expand(numerator.shape).sum(0)]
                before = sums.get(metric)
                sums[metric] = found if before is None else [a + b for a, b in zip(before, found, strict=True)]
        return {metric: Share(*found) for metric, found in sums.items()}, first


class _Amplified(nn.Module):
    """A decoder behind an amplifier of fixed gain.

    Args:
        decoder: of signals of about unit magnitude.
        magnitude: of what comes in.
    """

    def __init__(self, decoder: nn.Module, magnitude: float) -> None:
        super().__init__()
        self.decoder, self.magnitude = decoder, magnitude

    def forward(self, received: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(received / self.magnitude)
        return decoded


def _levels(snr_db: float | Uniform, shape: tuple[int, ...], stream: Stream) -> Tensor:
    """The SNR of each reception."""
    if isinstance(snr_db, Uniform):
        low, high = snr_db.uniform
        return low + (high - low) * torch.rand(shape, generator=stream.torch())
    return torch.full(shape, snr_db)


def _guess(task: Task, own: Examples, test: Examples) -> tuple[str, dict[str, Share]] | None:
    """What someone says of the test images who has heard nothing: by name and metrics; None for tasks that have no
    such guess."""
    nothing = torch.empty(1, len(test), 0, device=test.labels.device)
    truth = task.truth(test, Realisation(nothing, nothing, nothing, nothing))
    if isinstance(task, Classification):
        output = F.one_hot(own.labels.bincount().argmax(), int(max(own.labels.max(), test.labels.max())) + 1)
        return "majority_class", task.metrics(output.float().expand(len(test), -1), truth, None)
    if isinstance(task, Reconstruction):
        return "mean_image", task.metrics(own.images.mean(0).flatten().expand(len(test), -1), truth, None)
    return None


def _text(level: float | Uniform) -> str:
    return f"{level.uniform[0]:g}..{level.uniform[1]:g}" if isinstance(level, Uniform) else f"{level:g}"
