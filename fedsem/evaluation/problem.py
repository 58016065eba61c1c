"""What a white-box adversary sees of the trained link: the objective, its gradient, and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import most_patches
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation, SiteState
from fedsem.link import Transmission
from fedsem.tasks.classification import Classification
from fedsem.units import energy


class LinkProblem:
    """The whole test set as one problem (`fedsem.hooks.evasion.Problem`).

    The objective of an example is the sum over tasks of weight times the loss, the mean over the task's listeners and
    over channel draws that are new in every step; negative and to the goal for a targeted attack. Work is done in
    batches, but draws are made for the whole test set: results do not depend on the batch size beyond rounding.

    Args:
        link: the trained link.
        air: its channel draws.
        attack: what is attacked, and where.
        snr_db: SNR of communication channels.
        sensing_snr_db: SNR of sensing channels.

    Attributes:
        psr: the budget (linear); set before each perturbation.
    """

    def __init__(self, link: TrainedLink, air: Air, attack: Evasion, snr_db: float, sensing_snr_db: float) -> None:
        self.link, self.air, self.attack = link, air, attack
        self.snr = {True: sensing_snr_db, False: snr_db}
        self.psr = 0.0
        self.batch = link.plan.scenario.evaluation.batch
        weights = attack.goals(link.plan)
        heard = {task: sum(listener.branch.task == task for listener in link.listeners) for task in weights}
        self.weights: dict[Listener, float] = {
            listener: weights[listener.branch.task] / heard[listener.branch.task]
            for listener in link.listeners
            if weights.get(listener.branch.task)
        }
        self.count = most_patches(link, snr_db)
        self.sites: Mapping[str, SiteState] = {name: self._site(name) for name in attack.sites}
        self._draws: tuple[int, dict[Listener, Realisation]] | None = None
        self._first: Perturbation | None = None

    @property
    def labels(self) -> Tensor:
        """True classes, or the goal of a targeted attack on one classification task."""
        listener = self._classifier()
        goal = self.attack.targeted.get(listener.branch.task)
        return self.link.labels if goal is None else torch.full_like(self.link.labels, goal)

    def objective(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """The objective of each example of `index`, to which `delta` belongs; differentiable."""
        examples = self.link.examples.at(index)
        sent = self._sent(delta, index)
        total = torch.zeros(len(examples), device=sent.x.device)
        for listener, weight in self.weights.items():
            task = self.link.plan.task(listener.branch)
            realisation = self._realisation(listener, step).at(index)
            heard = self._heard(listener, sent, realisation, delta)
            goal = self.attack.targeted.get(listener.branch.task)
            truth = task.truth(examples, realisation) if goal is None else task.aim(goal, self.link.examples)[index]
            loss = task.objective(listener.decoder, heard, truth)
            loss = loss if goal is None else -loss
            total = total + weight * loss.mean(0)
        return total

    def gradient(self, delta: Perturbation, step: int) -> Perturbation:
        """Gradient of each example's objective with respect to its perturbation, at every site."""
        clean = step == 0 and not any(bool(value.any()) for value in delta.values())
        if clean and self._first is not None:
            return self._first
        parts: dict[str, list[Tensor]] = {name: [] for name in delta}
        for index in self.batches():
            leaves = {name: value[index].detach().requires_grad_(True) for name, value in delta.items()}
            whole = self.objective(leaves, step, index).sum()
            for name, gradient in zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True):
                parts[name].append(gradient)
        gradients = {name: torch.cat(values) for name, values in parts.items()}
        if clean:
            self._first = gradients
        return gradients

    def logits(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        """log of the class probabilities, the mean over draws and listeners, (B, classes); differentiable.

        Raises:
            ScenarioError: the objective is not one classification task.
        """
        self._classifier()
        sent = self._sent(delta, index)
        outputs = [
            listener.decoder(self._heard(listener, sent, self._realisation(listener, step).at(index), delta))
            for listener in self.weights
        ]
        probabilities = torch.stack([F.softmax(output, -1).mean(0) for output in outputs]).mean(0)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

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
            return SiteState(self.link.images, energy(self.link.images), bounded=True)
        with torch.no_grad():
            x = torch.cat([self._sent({"air": torch.empty(0)}, index).x for index in self.batches()])
        return SiteState(x, energy(x), bounded=False)

    def _sent(self, delta: Perturbation, index: slice) -> Transmission:
        images = self.link.images[index]
        images = images + delta["input"] if "input" in delta else images
        which = torch.arange(len(self.link.labels), device=images.device)[index]
        # Over the air an adversary meets the numbers that are sent; gates would put them elsewhere.
        choice = self.link.choice(which, self.count, changed="input" in delta)
        return self.link.transmitter.send(images, choice, gates="air" not in delta)

    def _heard(self, listener: Listener, sent: Transmission, realisation: Realisation, delta: Perturbation) -> Tensor:
        plan, channel = self.link.plan, self.link.plan.channel(listener.branch)
        transmitter, symbols = self.link.transmitter, plan.scenario.link.symbols
        if transmitter.digital:
            return transmitter.hear(sent.x.unsqueeze(0), sent)
        if channel.is_sensing:
            interference = None if "air" not in delta else transmitter.waveform(sent, delta["air"])
            return channel.apply(transmitter.waveform(sent), realisation, self.snr[True], symbols, interference)
        uses = sent.x.shape[1] if symbols == "real" else sent.x.shape[1] // 2
        air = realisation.first(uses)
        return transmitter.hear(channel.apply(sent.x, air, self.snr[False], symbols, delta.get("air")), sent)

    def _realisation(self, listener: Listener, step: int) -> Realisation:
        if self._draws is None or self._draws[0] != step:
            self._draws = (step, {one: self.air.attack(one, step) for one in self.weights})
        return self._draws[1][listener]

    def batches(self) -> Sequence[slice]:
        """Slices that cut the test set into batches."""
        return [slice(i, i + self.batch) for i in range(0, len(self.link.labels), self.batch)]
