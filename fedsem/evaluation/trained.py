"""A trained link: the transmitter and every receiver's decoders, ready to be measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.evaluation.oracle import greedy_order
from fedsem.hooks.detector import Detector
from fedsem.hooks.repair import Repaired
from fedsem.hooks.transform import Transform
from fedsem.hooks.vote import Vote
from fedsem.link import Transmission, Transmitter
from fedsem.models.mae_encoder import Choice, MaeEncoder
from fedsem.models.selection import Strategy
from fedsem.plan import Branch, Plan
from fedsem.streams import Stream
from fedsem.tasks.task import Examples
from fedsem.training import Parameters


@dataclass(frozen=True)
class Listener:
    """A decoder at the end of a channel; receivers that share a decoder and a channel are one listener.

    Attributes:
        name: names its random streams.
        group: its receiver group, as in the scenario; several that share the decoder are joined by `+`.
        branch: its task and channel.
        decoder: its network, in evaluation mode.
        receivers: who has it.
    """

    name: str
    group: str
    branch: Branch
    decoder: nn.Module
    receivers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Mode:
    """How a transmitter that sends patches is driven at an evaluation point.

    Attributes:
        mask_ratio: share that is not sent; None: as the encoder's options say.
        selection: what chooses the patches, or `original`: receivers see the images themselves; None: as the options
            say.
    """

    mask_ratio: float | None = None
    selection: str | None = None


@dataclass(frozen=True)
class TrainedLink:
    """A transmitter and its listeners, with the test images.

    Attributes:
        plan: what it was trained for.
        seed: the seed that it was trained with.
        transmitter: in evaluation mode, its gain fixed.
        listeners: all of them, in the order of the receivers.
        examples: test images in [0, 1] with all that is known of them.
        mode: how much of the images is sent, chosen by what; for encoders that send patches.
        transform: what a defense does to images before the encoder.
        detector: what a defense makes of receptions.
        vote: how many receptions decide together.
        known: whether the transform is differentiated by way of its stand-in, as an adversary does who knows it.
        orders: of every test image's patches, the best first, (N, L), by the strategy that ranks them; filled as they
            are asked for, and shared by all modes of a link (`in_mode`).
        repairs: what each repair made of it, by its name; filled and shared likewise.
    """

    plan: Plan
    seed: int
    transmitter: Transmitter
    listeners: tuple[Listener, ...]
    examples: Examples
    mode: Mode = Mode()
    transform: Transform | None = None
    detector: Detector | None = None
    vote: Vote | None = None
    known: bool = False
    orders: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    repairs: dict[str, Repaired] = field(default_factory=dict, init=False, repr=False)

    def without(self, receivers: frozenset[int]) -> TrainedLink:
        """The same link without the decoders that only these receivers have; all of them where nobody else has any."""
        kept = tuple(one for one in self.listeners if not one.receivers <= receivers)
        return replace(self, listeners=kept) if kept else self

    def in_mode(self, mode: Mode) -> TrainedLink:
        """The same link, driven otherwise."""
        link = replace(self, mode=mode)
        object.__setattr__(link, "orders", self.orders)
        object.__setattr__(link, "repairs", self.repairs)
        return link

    def send(
        self,
        images: Tensor,
        numbers: Tensor | slice,
        count: int | Tensor,
        changed: bool,
        gates: bool = False,
        drawn: Tensor | None = None,
    ) -> Transmission:
        """What is sent for these images.

        Args:
            images: (B, C, H, W).
            numbers: of the test images that they are, or come from.
            count: of patches, for an encoder that sends some of them.
            changed: whether somebody has changed the images.
            gates: see `Transmitter.send`.
            drawn: random numbers of the transform for each test image, (m, N, ...).
        """
        everything = torch.arange(len(self.labels), device=images.device)[numbers]
        if self.transform is None:
            return self.transmitter.send(images, self.choice(everything, count, changed), gates)
        if drawn is None:
            seen = self.transform.applied(images, None, self.known)
            return self.transmitter.send(seen, self.choice(everything, count, changed=True), gates)
        draws = (self.transform.applied(images, one[numbers], self.known) for one in drawn)
        choice = self.choice(everything, count, changed=True)
        return Transmission.stacked([self.transmitter.send(seen, choice, gates) for seen in draws])

    def choice(self, index: Tensor, count: int | Tensor, changed: bool = False) -> Choice | None:
        """How the patches of these test images are chosen; None for an encoder that has none.

        Args:
            index: numbers of the images.
            count: patches, of all images or of each.
            changed: the transmitter sees other images than these, perturbed ones. A strategy that looks at images
                ranks those; chance, an even grid and an oracle stay with what they had.
        """
        encoder = self.transmitter.encoder
        if not isinstance(encoder, MaeEncoder):
            return None
        strategy: Strategy = self.mode.selection or encoder.options.selection  # type: ignore[assignment]
        if changed and strategy in ("score", "variance"):
            return Choice(strategy, count)
        return Choice(strategy, count, self._order(encoder, strategy)[index])

    def _order(self, encoder: MaeEncoder, strategy: Strategy) -> Tensor:
        if strategy not in self.orders:
            if strategy == "random":
                generator = Stream(self.seed).child("evaluate", "lottery").torch()
                lottery = torch.rand(len(self.labels), encoder.mae.patches, generator=generator)
                order = lottery.argsort(dim=1, descending=True).to(self.plan.device)
            elif strategy == "oracle":
                order = greedy_order(encoder, self.images, self._loss)
            else:
                with torch.no_grad():
                    order = torch.cat([encoder.order(images, strategy) for images in self.images.split(64)])
            self.orders[strategy] = order
        return self.orders[strategy]

    def _loss(self, pictures: Tensor, index: Tensor) -> Tensor:
        """Losses of all decoders of pictures (B, 3, H, W) that are painted of these test images, summed with their
        tasks' weights, (B,)."""
        total, examples = torch.zeros(len(index), device=pictures.device), self.examples.at(index)
        for listener in self.listeners:
            task = self.plan.task(listener.branch)
            if task.weight and self.plan.decoder_format(listener.branch).paints:
                nothing = torch.empty(1, len(index), 0, device=pictures.device)
                truth = task.truth(examples, Realisation(nothing, nothing, nothing, nothing))
                total = total + task.weight * task.objective(listener.decoder, pictures.unsqueeze(0), truth)[0]
        return total

    @property
    def images(self) -> Tensor:
        """Test images in [0, 1], (N, C, H, W)."""
        return self.examples.images

    @property
    def labels(self) -> Tensor:
        """Their classes, (N,)."""
        return self.examples.labels

    @classmethod
    def build(
        cls,
        plan: Plan,
        seed: int,
        shared: Parameters,
        decoders: dict[tuple[int, Branch], tuple[str, Parameters]],
    ) -> TrainedLink:
        """Assemble a link.

        Args:
            plan: what it was trained for.
            seed: the seed of its training.
            shared: parameters of the encoder.
            decoders: for each receiver and branch, the owner of the decoder and its parameters.
        """
        transmitter = plan.transmitter_with(shared)
        transmitter.precision = "float32"
        transmitter.eval().requires_grad_(False)
        transmitter.calibrate(plan.some_train_images(4096), plan.scenario.evaluation.batch)
        groups: dict[tuple[str, Branch], dict[str, None]] = {}
        holders: dict[tuple[str, Branch], set[int]] = {}
        parameters: dict[tuple[str, Branch], Parameters] = {}
        for receiver in plan.receivers:
            for branch in receiver.branches:
                who, values = decoders[receiver.id, branch]
                groups.setdefault((who, branch), {})[receiver.group] = None
                holders.setdefault((who, branch), set()).add(receiver.id)
                parameters[who, branch] = values
        listeners = []
        for (who, branch), named in groups.items():
            decoder = plan.decoder_with(branch, parameters[who, branch])
            decoder.eval().requires_grad_(False)
            held = frozenset(holders[who, branch])
            listeners.append(Listener(f"{who}/{branch.key}", "+".join(named), branch, decoder, held))
        test = plan.test_examples
        examples = replace(test, images=test.images.float() / 255)
        return cls(plan, seed, transmitter, tuple(listeners), examples)

    @property
    def averaged(self) -> int:
        """How many receptions are averaged before each decision."""
        return 1 if self.vote is None else self.vote.averaged

    def is_sensing(self, listener: Listener) -> bool:
        return self.plan.channel(listener.branch).is_sensing
