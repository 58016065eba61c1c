"""What an adversary sees of the trained link: the objective, its gradient, and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import TRANSFORMS, Air
from fedsem.evaluation.airtime import most_patches
from fedsem.evaluation.flagging import Alarm, Alarms
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Evasion, Knowledge, Perturbation, SiteState
from fedsem.hooks.evasion_losses import differentiate, objective
from fedsem.link import Transmission
from fedsem.plan import examples_of
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.units import energy

MOST_OWN = 4096
"""Images of its own, evenly spaced, that an adversary fits a perturbation on: they are encoded and held at once."""
RECEPTIONS_AT_ONCE = 16384
"""Receptions that are differentiated at once: bounds memory; results do not depend on it beyond rounding."""


class LinkProblem:
    """A whole test set as one problem (`fedsem.hooks.evasion.Problem`).

    The objective of an example is the sum over tasks of weight times the loss, the mean over the task's listeners and
    over channel draws that are new in every step; negative and to the goal for a targeted attack; or the smallest
    normalised increase (`Evasion.objective`). Work is done in batches, but draws are made for the whole test set:
    results do not depend on the batch size beyond rounding.

    A row is a test image; of an adversary who knows the channel, a reception of one, in the order of the draws that
    score it.

    Args:
        link: the trained link; of an adversary with a surrogate, that.
        air: its channel draws.
        attack: what is attacked, and where.
        snr_db: SNR of communication channels.
        sensing_snr_db: SNR of sensing channels.
        surrogate: the same test set through the link that the adversary trained itself.
        alarms: a detector that the adversary knows and works around.

    Attributes:
        psr: the budget (linear); set before each perturbation.
    """

    def __init__(
        self,
        link: TrainedLink,
        air: Air,
        attack: Evasion,
        snr_db: float,
        sensing_snr_db: float,
        surrogate: LinkProblem | None = None,
        alarms: Alarms | None = None,
    ) -> None:
        self.link, self.air, self.attack = link, air, attack
        self.symbols = link.plan.scenario.link.symbols
        self.snr = {True: sensing_snr_db, False: snr_db}
        self.psr: float | Tensor = 0.0
        self.batch = link.plan.scenario.evaluation.batch
        weights = attack.goals(link.plan)
        heard = {task: sum(listener.branch.task == task for listener in link.listeners) for task in weights}
        self.weights: dict[Listener, float] = {
            listener: weights[listener.branch.task] / heard[listener.branch.task]
            for listener in link.listeners
            if weights.get(listener.branch.task)
        }
        self.count = most_patches(link, snr_db)
        images = torch.arange(len(link.labels), device=link.images.device)
        self.rows = images
        self._all = True  # rows are the test images, each once: slices do without copies
        self._known: tuple[Air, Tensor, Tensor] | None = None
        if attack.knowledge.channel == "csi":
            draws = link.plan.scenario.evaluation.draws.score
            self.rows, self._all = images.repeat(draws), False
            self._known = (air, torch.arange(draws, device=images.device).repeat_interleave(len(images)), self.rows)
        self._known_sent: tuple[tuple[int, int], Transmission] | None = None
        self._kept: dict[str, Any] = {}
        self._noise = True
        self._draws = attack.expectation(link.plan)
        self._chance = air.attack_transform(0, 1) is not None  # the link's transform is random
        self.sites: Mapping[str, SiteState] = {name: self._site(name) for name in attack.sites}
        self._surrogate = surrogate
        if surrogate is not None and "air" in self.sites:
            # The budget is of what is really sent.
            own = replace(surrogate.sites["air"], energy=self.sites["air"].energy)
            surrogate.sites = {**surrogate.sites, "air": own}
        self._made_once: dict[str, Any] = {}  # shared with all copies of this problem
        self._alarms = alarms
        self._penalty = 0.0 if alarms is None else alarms.detector.penalty

    @property
    def labels(self) -> Tensor:
        """True classes, or the goal of a targeted attack on one classification task."""
        listener = self._classifier()
        labels = self.link.labels[self.rows]
        goal = self.attack.targeted.get(listener.branch.task)
        return labels if goal is None else torch.full_like(labels, goal)

    def objective(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """The objective of each row of `index`, to which `delta` belongs; differentiable."""
        losses = self._losses(delta, step, index)
        if self.attack.objective != "joint":
            return torch.stack([weight * losses[one] for one, weight in self.weights.items()]).sum(0)
        clean, scale = self._clean_losses()
        increases: dict[str, Tensor] = {}
        for listener, weight in self.weights.items():
            task = listener.branch.task
            more = weight * (losses[listener] - clean[listener][self._images(index)]) / scale[listener]
            increases[task] = increases[task] + more if task in increases else more
        return torch.stack(list(increases.values())).amin(0)

    def gradient(self, delta: Perturbation, step: int) -> Perturbation:
        """Gradient of each row's objective with respect to its perturbation, at every site."""
        clean = step == 0 and not any(bool(value.any()) for value in delta.values())
        if clean and "gradient" in self._kept:
            return self._kept["gradient"]
        _, gradient = differentiate(self, delta, step, objective)
        if clean:
            self._kept["gradient"] = gradient
        return gradient

    def scores(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """Class scores for every draw and listener, (draws, B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        self._classifier()
        sent = self._sent(delta, step, index)
        outputs = [
            listener.decoder(self._heard(listener, sent, self._realisation(listener, step, index), delta))
            for listener in self.weights
        ]
        return torch.cat(outputs)

    def logits(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """log of the class probabilities, the mean over draws and listeners, (B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        probabilities = F.softmax(self.scores(delta, step, index), -1).mean(0)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    @property
    def classifies(self) -> bool:
        """Whether the objective is the loss of one classification task, untargeted."""
        tasks = {listener.branch.task: self.link.plan.task(listener.branch) for listener in self.weights}
        kinds = [isinstance(task, Classification) for task in tasks.values()]
        return kinds == [True] and not self.attack.targeted and self.attack.objective != "joint"

    def alarm(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor | float:
        """What being flagged costs each row, the mean over draws and listeners, (B,); differentiable."""
        if not self._penalty:
            return 0.0
        sent, costs = self._sent(delta, step, index), []
        for listener in self.weights:
            if (alarm := self._alarm(listener)) is not None:
                costs.append(alarm.excess(self._heard(listener, sent, self._realisation(listener, step, index), delta)))
        return self._penalty * torch.cat(costs).mean(0) if costs else 0.0

    def suspicion(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """How far above the detector's threshold each row's receptions are, the mean over draws and the listeners that
        it watches, (B,), in standard deviations of clean scores; negative below it. Differentiable."""
        sent = self._sent(delta, step, index)
        distances = [
            alarm.distance(self._heard(listener, sent, self._realisation(listener, step, index), delta))
            for listener in self.weights
            if (alarm := self._alarm(listener)) is not None
        ]
        return torch.cat(distances).mean(0)

    @property
    def watched(self) -> bool:
        """Whether there is a detector that the adversary knows and works around."""
        return self._alarms is not None

    def avoiding(self, penalty: float) -> LinkProblem:
        """The same problem, with so much weight on not being flagged."""
        other = self._copy()
        other._penalty = penalty
        return other

    def failures(self, delta: Perturbation, step: int, draws: int) -> Tensor:
        """How badly the objective's tasks fail at each row, (B,)."""
        parts, total = [], sum(self.weights.values())
        with torch.no_grad():
            for index in self._batches(draws):
                here = {name: value[index] for name, value in delta.items()}
                losses = self._losses(here, step, index, failing=True, draws=draws)
                parts.append(torch.stack([weight * losses[one] for one, weight in self.weights.items()]).sum(0))
        return torch.cat(parts) / total

    def batches(self) -> Sequence[slice]:
        """Slices that cut the rows into batches."""
        return self._batches(self._draws)

    def _batches(self, draws: int) -> Sequence[slice]:
        size = min(self.batch, max(8, RECEPTIONS_AT_ONCE // draws))
        if self._chance:  # each draw of the transform is encoded
            size = max(8, size // min(draws, TRANSFORMS))
        return [slice(i, i + size) for i in range(0, len(self.rows), size)]

    def select(self, rows: Tensor) -> LinkProblem:
        """The same problem for some of the rows."""
        some = self._copy()
        some.rows, some._all = self.rows[rows], False
        if self._known is not None:
            air, receptions, heard = self._known
            some._known = (air, receptions[rows], heard[rows])
        some.psr = self.psr[rows] if isinstance(self.psr, Tensor) else self.psr
        some.sites = {
            name: SiteState(site.clean[rows], site.energy[rows], site.bounded) for name, site in self.sites.items()
        }
        some._surrogate = self._surrogate and self._surrogate.select(rows)
        return some

    def quiet(self) -> LinkProblem:
        """The same problem without channel noise."""
        silent = self._copy()
        silent._noise = False
        steady = all(self.link.plan.channel(listener.branch).steady for listener in self.weights)
        if steady and not self._chance:
            silent._draws = 1  # all draws are alike
        return silent

    @property
    def own(self) -> int:
        """How many images the adversary has of its own."""
        dataset = self.link.plan.dataset
        return min(len(dataset.reserve or dataset.train), MOST_OWN)

    def imagine(self, images: Tensor) -> LinkProblem:
        """The same link with images of the adversary's own."""
        if "own" not in self._made_once:
            dataset = self.link.plan.dataset
            held = dataset.reserve or dataset.train
            some = np.linspace(0, len(held) - 1, self.own).round().astype(np.int64)
            examples = examples_of(held.take(some), self.link.plan.device)
            link = replace(self.link, examples=replace(examples, images=examples.images.float() / 255))
            open_eyed = self.attack.model_copy(update={"knowledge": Knowledge()})
            snrs = self.snr[False], self.snr[True]
            whole = LinkProblem(link, Air(link, "own"), open_eyed, *snrs, alarms=self._alarms)
            self._made_once["own"] = whole
        own: LinkProblem = self._made_once["own"].select(images)
        own.psr, own._noise, own._known, own._penalty = self.psr, self._noise, self._known, self._penalty
        return own

    def surrogate(self) -> LinkProblem | None:
        """The same rows through the adversary's surrogate link."""
        if self._surrogate is not None:
            self._surrogate.psr = self.psr
        return self._surrogate

    def shaped(self, delta: Perturbation) -> Perturbation:
        """A perturbation of all rows as receptions meet it: (N, ...), or (draws, N, ...) where each has its own."""
        if self._known is None:
            return delta
        return {name: value.unflatten(0, (-1, len(self.link.labels))) for name, value in delta.items()}

    def _copy(self) -> LinkProblem:
        other = object.__new__(LinkProblem)
        other.__dict__.update(self.__dict__)
        other._kept = {}
        return other

    def _losses(
        self, delta: Perturbation, step: int, index: slice, failing: bool = False, draws: int | None = None
    ) -> dict[Listener, Tensor]:
        """Loss of each listener (or how badly it fails), the mean over draws, (B,)."""
        images = self._images(index)
        examples, sent = self.link.examples.at(images), self._sent(delta, step, index, draws)
        losses = {}
        for listener in self.weights:
            task = self.link.plan.task(listener.branch)
            realisation = self._realisation(listener, step, index, draws)
            heard = self._heard(listener, sent, realisation, delta)
            goal = self.attack.targeted.get(listener.branch.task)
            if goal is None:
                truth = task.truth(examples, realisation)
            else:
                truth = task.aim(goal, self.link.examples)[images]
            measured = (task.failure if failing else task.objective)(listener.decoder, heard, truth)
            measured = measured if goal is None else -measured
            alarm = self._alarm(listener) if failing or self._penalty else None
            if alarm is not None and failing:
                # What is flagged has not failed, and not reached a goal.
                measured = measured.masked_fill(alarm.flags(heard), 0.0 if goal is None else -1.0)
            elif alarm is not None:
                measured = measured - self._penalty * alarm.excess(heard)
            losses[listener] = measured.mean(0)
        return losses

    def _clean_losses(self) -> tuple[dict[Listener, Tensor], dict[Listener, Tensor]]:
        """Of each listener the clean loss of every image, (N,), and the mean loss for the truth of another image (of
        a sensing task, for the wrong state), in units of which an increase is measured."""
        if "clean" not in self._made_once:
            clean: dict[Listener, list[Tensor]] = {listener: [] for listener in self.weights}
            wrong: dict[Listener, list[Tensor]] = {listener: [] for listener in self.weights}
            everything = torch.arange(len(self.link.labels), device=self.rows.device)
            order = Stream(self.link.seed).child("evaluate", "others").torch()
            shuffled = torch.randperm(len(everything), generator=order).to(everything.device)
            with torch.no_grad():
                for images in everything.split(self.batch):
                    sent = self._transmitted(images, {}, self._transforms(0, self._draws))
                    for listener in self.weights:
                        task = self.link.plan.task(listener.branch)
                        realisation = self.air.attack(listener, 0, self._draws).at(images)
                        heard = self._heard(listener, sent, realisation, {})
                        truth = task.truth(self.link.examples.at(images), realisation)
                        if realisation.target is None:
                            other = task.truth(self.link.examples.at(shuffled[images]), realisation)
                        else:
                            other = (truth == 0).to(truth.dtype)
                        clean[listener].append(task.objective(listener.decoder, heard, truth).mean(0))
                        wrong[listener].append(task.objective(listener.decoder, heard, other).mean(0))
            self._made_once["clean"] = (
                {listener: torch.cat(parts) for listener, parts in clean.items()},
                {listener: torch.cat(parts).mean() for listener, parts in wrong.items()},
            )
        return self._made_once["clean"]

    def _alarm(self, listener: Listener) -> Alarm | None:
        if self._alarms is None:
            return None
        return self._alarms.alarm(listener, self.snr[self.link.is_sensing(listener)])

    def _classifier(self) -> Listener:
        tasks = {listener.branch.task for listener in self.weights}
        first = next(iter(self.weights))
        if len(tasks) != 1 or not isinstance(self.link.plan.task(first.branch), Classification):
            raise ScenarioError(
                f"The attack '{self.attack.kind}' works on class scores: its objective must be one classification task."
            )
        return first

    def _site(self, name: str) -> SiteState:
        if name == "input":
            images = self.link.images[self._images(slice(None))]
            return SiteState(images, energy(images), bounded=True)
        x = self._clean_sent(0, self._draws).first[self.rows]
        return SiteState(x, energy(x), bounded=False)

    def _clean_sent(self, step: int, draws: int) -> Transmission:
        """What is sent for every test image, unperturbed, over a random transform's draws of a step."""
        wanted = (step, draws) if self._chance else (0, 0)
        if self._known_sent is None or self._known_sent[0] != wanted:
            everything = torch.arange(len(self.link.labels), device=self.rows.device)
            air = {"air": torch.empty(0)}
            with torch.no_grad():
                drawn = self._transforms(step, draws)
                parts = [self._transmitted(images, air, drawn) for images in everything.split(self.batch)]
            self._known_sent = wanted, Transmission.joined(parts)
        return self._known_sent[1]

    def _sent(self, delta: Perturbation, step: int, index: slice, draws: int | None = None) -> Transmission:
        rows, draws = self._images(index), draws or self._draws
        # What is only met on air is sent as it always is.
        if delta and "input" not in delta:
            return self._clean_sent(step, draws).at(rows)
        return self._transmitted(rows, delta, self._transforms(step, draws))

    def _transforms(self, step: int, draws: int) -> Tensor | None:
        """A step's draws of what is random in the link's transform."""
        if not self._chance:
            return None
        if self._kept.get("transformed") != (step, draws):
            self._kept["transformed"] = (step, draws)
            self._kept["transforms"] = self.air.attack_transform(step, draws)
        drawn: Tensor = self._kept["transforms"]
        return drawn

    def _images(self, index: slice) -> Tensor | slice:
        """Numbers of the test images in these rows."""
        return index if self._all else self.rows[index]

    def _transmitted(self, rows: Tensor | slice, delta: Perturbation, drawn: Tensor | None) -> Transmission:
        images = self.link.images[rows]
        images = images + delta["input"] if "input" in delta else images
        # Over the air an adversary meets the numbers that are sent; gates would put them elsewhere.
        return self.link.send(images, rows, self.count, "input" in delta, "air" not in delta, drawn)

    def _heard(self, listener: Listener, sent: Transmission, realisation: Realisation, delta: Perturbation) -> Tensor:
        plan, channel = self.link.plan, self.link.plan.channel(listener.branch)
        transmitter, symbols = self.link.transmitter, plan.scenario.link.symbols
        if transmitter.digital:
            return transmitter.hear(sent.drawn, sent)
        if channel.is_sensing:
            here = sent.in_draws(range(len(realisation.noise)), len(realisation.noise))
            interference = None if "air" not in delta else transmitter.waveform(here, delta["air"])
            return channel.apply(transmitter.waveform(here), realisation, self.snr[True], symbols, interference)
        uses = sent.x.shape[-1] if symbols == "real" else sent.x.shape[-1] // 2
        air = realisation.first(uses)
        here = sent.in_draws(range(len(air.noise)), len(air.noise))
        return transmitter.hear(channel.apply(here.x, air, self.snr[False], symbols, delta.get("air")), here)

    def _realisation(self, listener: Listener, step: int, index: slice, draws: int | None = None) -> Realisation:
        """Draws for some of the rows, (draws, B); an adversary who knows the channel has the gains of the receptions
        that score it, and new noise."""
        draws = draws or self._draws
        if self._kept.get("step") != (step, draws):
            self._kept["step"] = (step, draws)
            self._kept["draws"] = {one: self.air.attack(one, step, draws) for one in self.weights}
        air: Realisation = self._kept["draws"][listener].at(self._images(index))
        if self._known is not None:
            source, receptions, heard = self._known
            known, place = source.score(listener), (receptions[index], heard[index])
            h, g = known.h[place], known.g[place]
            air = replace(air, h=h.expand(air.h.shape), g=g.expand(air.g.shape))
        return air if self._noise else replace(air, noise=torch.zeros_like(air.noise))
