"""Gradient inversion: an honest-but-curious server looks for the images behind an update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from fedsem.channels.channel import Realisation
from fedsem.errors import ScenarioError, closest
from fedsem.hooks.leakage import Exposed, Leak, Leakage, Parameters, Picture
from fedsem.plan import Branch, Plan, Receiver
from fedsem.registry import register
from fedsem.scenario import Many, Name, Optimizer
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Examples, Share
from fedsem.training import ReceiverTask, train_receiver

if TYPE_CHECKING:
    pass

MOST_IMAGES = 4
"""Images of a batch: beyond, what is found is no longer what the receiver has."""
Gradient = list[Tensor]


@register("attack", "gradient_inversion")
class GradientInversion(Leakage):
    """Images whose gradient points where the update does (Geiping, Bauermeister, Dröge and Moeller, Inverting Gradients
    - How easy is it to break privacy in federated learning?, 2020): minimise over u in [0, 1]

        1 - <g(u), g> / (||g(u)|| ||g||) + tv TV(u)

    by Adam on the sign of the gradient, its rate divided by 10 after 3/8, 5/8 and 7/8 of the iterations, from Gaussian
    noise with the mean and deviation of the pixels; of several starts the one with the lowest cost is taken. TV is the
    mean absolute difference of neighbouring pixels, over rows plus over columns.

    The server is honest but curious. It sees what one receiver sends after one step of plain SGD on one batch (FedSGD,
    whatever `train.optimizer` says): the update of the encoder and of its decoders, which must be of policy `group`.
    The update is that of the receiver's own training, with its loss, channel draws and dropout; images are not
    augmented. The server knows all parameters before the step and how many images the batch has.

    Found images are matched with the private ones so that the summed squared error is least, as the order in a batch
    does not show. Metrics of each image: mse, psnr_db, ssim, and `gradient_distance`, 1 - cosine between the gradient
    of what was found and the update. Beside them: the mean of all training images, and another training image.

    Attributes:
        batch: images of the step, at most 4.
        updates: how many updates are inverted, one batch each, of the group's receivers in turn.
        receivers: the group whose updates they are; null: the first with a decoder of policy `group`.
        moment: before the first round, after the last, or both.
        iterations: of each start.
        restarts: starts.
        lr: of Adam, in pixels.
        tv: weight of the total variation.
        labels: `known`: the classes of the batch; `inferred`: of a batch of one, by the only negative gradient of the
            last layer's bias (Zhao, Mopuri and Bilen, iDLG: Improved Deep Leakage from Gradients, 2020).
        knows_channel: the receiver's gains, noise and SNRs of the step; else the server draws its own.
        knows_dropout: the receiver's dropout masks of the step; else the server drops nothing.
        draws: channel draws of its own for each image, where it does not know the receiver's.
    """

    batch: PositiveInt = 1
    updates: Many = 8
    receivers: Name | None = None
    moment: list[Literal["initial", "trained"]] = Field(["initial", "trained"], min_length=1)
    iterations: Annotated[int, Field(ge=8)] = 400
    restarts: PositiveInt = 1
    lr: PositiveFloat = 0.1
    tv: NonNegativeFloat = 0.1
    labels: Literal["known", "inferred"] = "known"
    knows_channel: bool = False
    knows_dropout: bool = False
    draws: Many = 8

    @field_validator("batch")
    @classmethod
    def _few(cls, batch: int) -> int:
        if batch > MOST_IMAGES:
            raise ValueError(f"of one step on {batch} images too little is left of each; use at most {MOST_IMAGES}")
        return batch

    @model_validator(mode="after")
    def _makes_sense(self) -> GradientInversion:
        if self.labels == "inferred" and self.batch > 1:
            raise ValueError("'labels: inferred' tells the class of a single image; use batch: 1, or labels: known")
        if len(set(self.moment)) != len(self.moment):
            raise ValueError("'moment' lists one twice")
        return self

    def check(self, path: str, plan: Plan) -> None:
        scenario = plan.scenario
        if scenario.federation.kind == "none":
            raise ScenarioError(
                f"In the scenario, '{path}': the centralised reference sends no update that a server could look into; "
                "use federation.kind: flower."
            )
        if scenario.link.encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': gradients of an encoder that sends patches are not inverted; use an "
                "encoder that sends a fixed number of symbols, such as 'cnn'."
            )
        if self.receivers is not None and self.receivers not in scenario.receivers:
            near = closest(self.receivers, scenario.receivers)
            raise ScenarioError(f"In the scenario, '{path}.receivers': unknown group '{self.receivers}'.{near}")
        victims = self.victims(plan)
        for seed in scenario.seeds:
            if victims and {one.id for one in victims} <= plan.accomplices(seed):
                raise ScenarioError(
                    f"In the scenario, '{path}.receivers': with seed {seed} all receivers of '{victims[0].group}' work "
                    "for the adversary; name another group, or lower the fraction of the attacks in 'use.attacks'."
                )
        if not victims or victims[0].decoder != "group":
            raise ScenarioError(
                f"In the scenario, '{path}.receivers': the server does not know decoders of policy 'local', through "
                "which the gradient comes; name a group with decoder: group."
            )
        if self.labels == "inferred" and self._classifier(plan, victims[0]) is None:
            raise ScenarioError(
                f"In the scenario, '{path}.labels': only an update of a classifier shows the class, and "
                f"'{victims[0].group}' trains none; use labels: known."
            )
        for seed in scenario.seeds:
            held = plan.partition(seed)
            least = min(len(held[receiver.id]) // self.batch for receiver in victims)
            needed = -(-self.updates // len(victims))
            if least < needed:
                raise ScenarioError(
                    f"In the scenario, '{path}.updates': {needed} batches of {self.batch} from each of {len(victims)} "
                    f"receivers are more images than one of them holds; lower it."
                )

    def points(self, snrs: int) -> int:
        return len(self.moment)

    def knowledge(self) -> dict[str, str]:
        return {
            "weights": "all, before the step",
            "update": "of one receiver, one step",
            "labels": self.labels,
            "channel": "oracle" if self.knows_channel else "statistics",
            "dropout": "masks" if self.knows_dropout else "none",
        }

    def victims(self, plan: Plan) -> list[Receiver]:
        """The receivers whose updates are inverted, in turn."""
        groups = [self.receivers] if self.receivers else [one.group for one in plan.receivers if one.decoder == "group"]
        return [receiver for receiver in plan.receivers if groups and receiver.group == groups[0]]

    def measure(self, link: Exposed, stream: Stream) -> Iterator[Leak]:
        plan = link.plan
        stepping = single_step(plan, self.batch)
        # Not named by the attack: several of them look for the same images.
        images = Stream(link.seed).child("evaluate", "leakage", "images")
        victims, batches = self.victims(plan), self._batches(plan, link.seed, images)
        columns = {
            "task": "+".join(branch.task for branch in plan.trained_branches(victims[0])),
            "receiver": victims[0].group,
            "encoder": plan.scenario.link.encoder.kind,
            "symbols": plan.scenario.link.symbols,
            "channel_uses": plan.channel_uses,
        }
        truth = _examples(plan, torch.cat([indices for _, indices in batches]))
        for moment in self.moment:
            trained = moment == "trained"
            number = plan.scenario.federation.rounds if trained else 0
            found, distances = [], []
            for i, (receiver, indices) in enumerate(batches):
                shared, decoders = link.parameters(receiver, trained)
                step = Step(stepping, receiver, link.seed, number + 1, shared, decoders)
                update, order = step.update(indices)
                private = _examples(plan, indices)
                made, distance = self.invert(step, update, private.labels[order], stream.child(moment, i))
                place = matched(made, private.images)
                found.append(made[place])
                distances += [distance] * len(place)
            leaked = torch.cat(found)
            metrics = _metrics(leaked, truth.images)
            metrics["gradient_distance"] = _share(torch.tensor(distances, dtype=torch.float64))
            shown = [
                Picture(i, int(truth.labels[i]), truth.images[i], leaked[i])
                for i in range(min(plan.scenario.evaluation.samples, len(leaked)))
            ]
            yield Leak({**columns, "round": number, "decoder": "gradient_inversion"}, metrics, 1, pictures=shown)
        mean = plan.train_examples.images.float().mean(0) / 255
        yield Leak(
            {**columns, "decoder": "mean_image"}, _metrics(mean.expand_as(truth.images), truth.images), 1, guess=True
        )
        others = self._others(plan, torch.cat([indices for _, indices in batches]), stream.child("others"))
        yield Leak({**columns, "decoder": "other_image"}, _metrics(others, truth.images), 1, guess=True)

    def invert(self, step: Step, update: Gradient, labels: Tensor, stream: Stream) -> tuple[Tensor, float]:
        """Images whose gradient resembles an update, and 1 - cosine between the two.

        Args:
            step: what the server knows of the step.
            update: the gradient that it saw.
            labels: the true classes; not looked at where they are to be inferred.
            stream: of first images, and of the channel draws that the server makes up.
        """
        if self.labels == "inferred":
            labels = step.inferred_label(update)
        model = step.model(self, len(labels), stream.child("air"))
        best: tuple[float, Tensor, float] | None = None
        for restart in range(self.restarts):
            images = step.start(len(labels), stream.child("start", restart)).requires_grad_(True)
            optimizer = torch.optim.Adam([images], self.lr)
            milestones = [self.iterations * part // 8 for part in (3, 5, 7)]
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
            for _ in range(self.iterations):
                distance = cosine_distance(model(images, labels), update)
                (gradient,) = torch.autograd.grad(distance + self.tv * total_variation(images), images)
                images.grad = gradient.sign()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    images.clamp_(0, 1)
            distance = cosine_distance(model(images, labels), update).detach()
            cost = float(distance + self.tv * total_variation(images.detach()))
            if best is None or cost < best[0]:
                best = cost, images.detach(), float(distance)
        assert best is not None
        return best[1], best[2]

    def _batches(self, plan: Plan, seed: int, stream: Stream) -> list[tuple[Receiver, Tensor]]:
        """Whose update each is, and its images: batches of one receiver have none in common."""
        victims, held = self.victims(plan), plan.partition(seed)
        shuffled = {one.id: stream.child(one.id).numpy().permutation(held[one.id]) for one in victims}
        batches = []
        for i in range(self.updates):
            receiver, turn = victims[i % len(victims)], i // len(victims)
            chosen = shuffled[receiver.id][turn * self.batch : (turn + 1) * self.batch]
            batches.append((receiver, torch.from_numpy(chosen.copy())))
        return batches

    def _others(self, plan: Plan, private: Tensor, stream: Stream) -> Tensor:
        """For each private image another training image."""
        total = len(plan.dataset.train)
        shift = torch.from_numpy(stream.numpy().integers(1, total, len(private)))
        return _examples(plan, (private + shift) % total).images

    def _classifier(self, plan: Plan, receiver: Receiver) -> Branch | None:
        found = (one for one in plan.trained_branches(receiver) if isinstance(plan.task(one), Classification))
        return next(found, None)


@dataclass(frozen=True)
class Step:
    """One local step of one receiver: the update that it sends, and a model of it that the server can differentiate.

    Attributes:
        plan: with one step of plain SGD as its training (`single_step`).
        receiver: who takes it.
        seed, round: of the run, and of the round that it belongs to.
        shared, decoders: parameters before the step.
    """

    plan: Plan
    receiver: Receiver
    seed: int
    round: int
    shared: Parameters
    decoders: dict[str, Parameters]

    @property
    def branches(self) -> dict[Branch, float]:
        """What the receiver trains for, with weights."""
        return {branch: self.plan.task(branch).weight for branch in self.plan.trained_branches(self.receiver)}

    @property
    def stream(self) -> Stream:
        """The receiver's own, as `fedsem.training.train_receiver` names it."""
        return Stream(self.seed).child("train", self.receiver.id, self.round)

    def update(self, indices: Tensor) -> tuple[Gradient, Tensor]:
        """The gradient that the receiver's training sends for these images, and the order in which it took them."""
        numbers = indices.numpy()
        reply = train_receiver(
            self.plan,
            ReceiverTask(
                receiver=self.receiver.id,
                seed=self.seed,
                round=self.round,
                branches=self.branches,
                indices=numbers,
                shared=self.shared,
                decoders=self.decoders,
            ),
        )
        lr = self.plan.scenario.train.optimizer.lr
        deltas = [reply.delta]
        for branch in self.branches:
            before = self.decoders[branch.key]
            deltas.append({name: after - before[name] for name, after in reply.decoders[branch.key].items()})
        sent = [-delta.to(self.plan.device) / lr for part in deltas for delta in part.values()]
        order = torch.randperm(len(indices), generator=self.stream.child("order").torch())
        return sent, order

    def start(self, images: int, stream: Stream) -> Tensor:
        """Gaussian noise with mean and deviation of the training pixels, which the encoder standardises with."""
        noise = torch.randn((images, *self.plan.images.shape), generator=stream.torch())
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.plan.images.mean, self.plan.images.std))
        return (mean + std * noise).clamp(0, 1).to(self.plan.device)

    def inferred_label(self, update: Gradient) -> Tensor:
        """The class of a single image: the only entry of the last bias whose gradient, p - onehot averaged over channel
        draws, is negative."""
        place = len(self.shared)
        for branch in self.branches:
            place += len(self.decoders[branch.key])
            if isinstance(self.plan.task(branch), Classification):
                return update[place - 1].argmin().unsqueeze(0)
        raise AssertionError("checked: the receiver trains a classifier")

    def model(self, options: GradientInversion, images: int, stream: Stream) -> GradientModel:
        """The gradient as a function of the images, as far as the server knows it.

        Args:
            options: what it knows.
            images: of the batch.
            stream: of what it makes up.
        """
        plan, train = self.plan, self.plan.scenario.train
        draws = train.draws if options.knows_channel else options.draws
        source = self.stream if options.knows_channel else stream
        levels, shape = source.child("snr").torch(plan.device), (draws, images)
        air: dict[Branch, Realisation] = {}
        snrs: dict[Branch, float | Tensor] = {}
        for branch in self.branches:
            generator = source.child("air", branch.key).torch(plan.device)
            air[branch] = plan.channel(branch).draw(shape, plan.channel_uses, plan.scenario.link.symbols, generator)
            snrs[branch] = plan.drawn_snr(branch, shape, levels)
        return GradientModel(self, air, snrs, self.stream.child("dropout") if options.knows_dropout else None)


class GradientModel:
    """Images (B, C, H, W), classes (B,) -> gradient of the receiver's loss, differentiable with respect to the images.

    Args:
        step: parameters and tasks.
        air, snrs: channel draws and SNRs of each branch.
        dropout: of the masks; None: nothing is dropped.
    """

    def __init__(
        self,
        step: Step,
        air: Mapping[Branch, Realisation],
        snrs: Mapping[Branch, float | Tensor],
        dropout: Stream | None,
    ) -> None:
        self.plan, self.branches = step.plan, step.branches
        self.air, self.snrs, self.dropout = air, snrs, dropout
        self.transmitter = step.plan.transmitter_with(step.shared)
        self.decoders = {branch: step.plan.decoder_with(branch, step.decoders[branch.key]) for branch in self.branches}
        self.transmitter.train(dropout is not None)
        modules: Sequence[nn.Module] = [self.transmitter.encoder, *self.decoders.values()]
        self.parameters = [parameter for module in modules for parameter in module.parameters()]

    def __call__(self, images: Tensor, labels: Tensor) -> Gradient:
        plan, symbols = self.plan, self.plan.scenario.link.symbols
        total = sum(self.branches.values())
        loss = torch.zeros((), device=images.device)
        with nullcontext() if self.dropout is None else self.dropout.fork(images.device):
            x = self.transmitter.send(images).x
        for branch, weight in self.branches.items():
            task, air = plan.task(branch), self.air[branch]
            received = plan.channel(branch).apply(x, air, self.snrs[branch], symbols)
            truth = task.truth(Examples(images, labels), air)
            losses = task.objective(self.decoders[branch], received if weight else received.detach(), truth)
            loss = loss + (weight / total if weight else 1.0) * losses.mean()
        return list(torch.autograd.grad(loss, self.parameters, create_graph=True))


def single_step(plan: Plan, batch: int) -> Plan:
    """The plan with one step of plain SGD on one batch as a receiver's training."""
    train = plan.scenario.train
    # Rate 1: the update is the gradient, and float32 rounds their difference least.
    one = train.model_copy(
        update={"epochs": 1, "batch": batch, "optimizer": Optimizer(kind="sgd", lr=1.0), "augment": []}
    )
    # A malicious receiver's step would not be that of its images: the server looks at honest training.
    use = plan.scenario.use.model_copy(update={"attacks": []})
    return replace(plan, scenario=plan.scenario.model_copy(update={"train": one, "use": use}))


def cosine_distance(one: Gradient, other: Gradient) -> Tensor:
    """1 - cosine of the angle between two gradients, over all parameters together."""
    inner = sum((a * b).sum() for a, b in zip(one, other, strict=True))
    lengths = [sum(part.square().sum() for part in gradient) for gradient in (one, other)]
    tiny = torch.finfo(one[0].dtype).tiny
    distance: Tensor = 1 - inner / torch.sqrt(torch.as_tensor(lengths[0] * lengths[1])).clamp_min(tiny)
    return distance


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in a column plus that of neighbours in a row."""
    rows, columns = images.diff(dim=-2).abs().mean(), images.diff(dim=-1).abs().mean()
    return rows + columns


def matched(found: Tensor, private: Tensor) -> Tensor:
    """For each private image the number of the found one that it is compared with: the one-to-one assignment with the
    least summed squared error."""
    from scipy.optimize import linear_sum_assignment

    error = (private.unsqueeze(1) - found.unsqueeze(0)).square().flatten(2).mean(-1)
    _, place = linear_sum_assignment(error.detach().cpu().numpy())
    return torch.from_numpy(place).to(found.device)


def _examples(plan: Plan, indices: Tensor) -> Examples:
    held = plan.train_examples.at(indices.to(plan.device))
    return Examples(held.images.float() / 255, held.labels)


def _metrics(images: Tensor, truth: Tensor) -> dict[str, Share]:
    shares: dict[str, Any] = Reconstruction(ssim=True).metrics(images.flatten(1), truth.flatten(1), None)
    return {metric: shares[metric] for metric in ("mse", "psnr_db", "ssim")}


def _share(values: Tensor) -> Share:
    return Share(values, torch.ones_like(values))
