"""What the active poisons make of a malicious receiver's samples; nothing at all of an honest one's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsem.hooks.poison import Poison
from fedsem.plan import Branch, Plan
from fedsem.streams import Stream
from fedsem.tasks.task import Examples


@dataclass(frozen=True)
class _Active:
    """One poison of one receiver: numbers of the images that it changes, on the plan's device."""

    attack: Poison
    samples: Tensor
    cover: Tensor
    part: int
    parts: int
    stream: Stream

    def here(self, numbers: Tensor) -> Tensor:
        """Which images of a batch are poisoned, bool (B,)."""
        return torch.isin(numbers, self.samples)

    def on_air(self, numbers: Tensor) -> Tensor:
        """For which images of a batch the adversary is on air, bool (B,)."""
        return self.here(numbers) | torch.isin(numbers, self.cover)


class Poisoning:
    """The poisons of one receiver in one round, in the order of `use.attacks`; none for an honest receiver.

    Args:
        plan: the plan.
        receiver: its id.
        seed: the run's seed.
        round_number: from 1.
        indices: its training images.
    """

    def __init__(self, plan: Plan, receiver: int, seed: int, round_number: int, indices: np.ndarray) -> None:
        self.plan = plan
        self.active: list[_Active] = []
        self._aims: dict[tuple[str, int], Tensor] = {}
        poisons = [attack for attack in plan.training_attacks if isinstance(attack, Poison)]
        for number, attack in enumerate(poisons):
            malicious = attack.malicious(len(plan.receivers), seed)
            if receiver not in malicious or not attack.acts(round_number):
                continue
            # Two attacks at once choose independently; a single one chooses the same whatever it is called.
            choice = attack.chosen(plan, indices, Stream(seed).child("poison", receiver, number))
            samples, cover = (torch.from_numpy(part).to(plan.device) for part in choice)
            self.active.append(
                _Active(
                    attack,
                    samples,
                    cover,
                    malicious.index(receiver),
                    len(malicious),
                    trigger_stream(attack, seed),
                )
            )

    @property
    def samples(self) -> np.ndarray:
        """Numbers of the images that are poisoned, each once."""
        return np.unique(np.concatenate([[], *(one.samples.cpu().numpy() for one in self.active)])).astype(np.int64)

    def examples(self, batch: Examples, numbers: Tensor) -> Examples:
        """A batch with the images that the receiver learns from, after augmentation."""
        images = batch.images
        for one in self.active:
            here, cover = one.here(numbers), torch.isin(numbers, one.cover)
            if bool(here.any()):
                changed = one.attack.poisoned(images[here], numbers[here], one.part, one.parts, one.stream)
                images = images.index_put((here,), changed)
            if bool(cover.any()):
                images = images.index_put((cover,), one.attack.covered(images[cover], numbers[cover], one.stream))
        return batch if images is batch.images else replace(batch, images=images)

    def interference(self, x: Tensor, labels: Tensor, numbers: Tensor) -> Tensor | None:
        """What adversaries transmit beside x (B, nc); None where nobody does."""
        total: Tensor | None = None
        for one in self.active:
            if one.attack.over_air and not one.attack.rotation:
                here = one.on_air(numbers)
                # An adversary's signal is given: no gradient goes through it.
                added = torch.zeros_like(x).detach()
                if bool(here.any()):
                    added[here] = one.attack.waveform(x.detach()[here], labels[here], numbers[here], one.stream)
                total = added if total is None else total + added
        return total

    def rotation(self, numbers: Tensor) -> Tensor | None:
        """Radians by which each example's received symbols are turned, (B,); None where nobody turns them."""
        turning = [one for one in self.active if one.attack.rotation]
        if not turning:
            return None
        angles = [one.on_air(numbers).float() * one.attack.rotation for one in turning]
        return torch.stack(angles).sum(0)

    def truth(self, branch: Branch, truth: Tensor, numbers: Tensor) -> Tensor:
        """What the receiver's decoder should say, with the poisoned samples' truths changed."""
        for one in self.active:
            here, goal = one.here(numbers), one.attack.goal(self.plan, branch.task)
            if goal is None:
                changed = one.attack.relabelled(self.plan, branch, truth, numbers, one.stream)
                if changed is not truth:
                    truth = torch.where(here, changed, truth)
            else:
                aim = self._aim(branch, goal)
                # Leading dimensions of a truth are channel draws; what follows the examples is as in the aim.
                truth = torch.where(here.view(-1, *[1] * (aim.dim() - 1)), aim.to(truth.dtype), truth)
        return truth

    def _aim(self, branch: Branch, goal: int) -> Tensor:
        """What a task should say for a goal, in the form of its truth, (1, ...)."""
        key = (branch.task, goal)
        if key not in self._aims:
            # A picture is told by its number in the test set: none beyond it is needed.
            test = self.plan.test_examples.at(slice(0, goal + 1))
            test = replace(test, images=test.images.float() / 255)
            self._aims[key] = self.plan.task(branch).aim(goal, test)[:1]
        return self._aims[key]


def trigger_stream(attack: Poison, seed: int) -> Stream:
    """The stream of a poison: the same for all receivers, and at test time."""
    return Stream(seed).child("trigger", attack.kind)
