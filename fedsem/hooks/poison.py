"""Hooks `data` and `air` in training: malicious receivers learn from samples that were tampered with.

A poison changes some of a malicious receiver's samples: the image, what the decoder should say of it, or what reaches
the receiver's antenna. Which ones is drawn once, by seed and receiver, and holds for the whole training: poisoned data
sets do not change from round to round. A backdoor is a poison with a trigger, which the adversary applies at test time
too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from fedsem.errors import ScenarioError, closest
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.evasion import Site
from fedsem.models.mae_encoder import MaeOptions
from fedsem.streams import Stream

if TYPE_CHECKING:
    from fedsem.plan import Branch, Plan


Portion = Annotated[float, Field(gt=0, le=1)]
"""A share, in (0, 1]."""


class Poison(TrainingAttack):
    """Poisoned training of malicious receivers; subclasses say what becomes of a chosen sample.

    Whatever is random in it is drawn by the image's number: it depends neither on batches nor on the engine. Images are
    changed after augmentation, so that a trigger stays where it was put.

    Attributes:
        samples: share of the images of each malicious receiver (of those that the attack can use) that are poisoned,
            rounded, at least one.
    """

    over_air: ClassVar[bool] = False
    """Whether it changes what reaches the antenna."""

    samples: Portion = 0.5

    def eligible(self, plan: Plan, labels: np.ndarray) -> np.ndarray:
        """Which images of these classes the attack can use, bool (N,)."""
        return np.ones(len(labels), dtype=bool)

    def chosen(self, plan: Plan, indices: np.ndarray, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the images that are poisoned, and of those that cover it up (see `cover_ratio`), each sorted;
        empty where the receiver holds none that the attack can use.

        Args:
            plan: the plan.
            indices: numbers of the receiver's images.
            stream: random, by seed and receiver.
        """
        usable = np.sort(indices[self.eligible(plan, plan.dataset.train.labels[indices])])
        order = stream.numpy().permutation(usable)
        count = min(len(usable), max(1, round(self.samples * len(usable))))
        cover = round(self.cover_ratio * count)
        return np.sort(order[:count]), np.sort(order[count : count + cover])

    @property
    def cover_ratio(self) -> float:
        """Images that are changed by `covered` and keep their truth, for each one that is poisoned."""
        return 0.0

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        """The images (B, C, H, W) in [0, 1] of these numbers as the malicious receiver learns from them.

        Args:
            images: must not be changed in place.
            numbers: of the images, (B,).
            part: which of the malicious receivers it is, from 0.
            parts: how many there are.
            stream: random, by seed; its children belong to images.
        """
        return images

    def covered(self, images: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        """The images that cover the attack up."""
        return images

    def waveform(self, x: Tensor, labels: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        """What the adversary transmits while x (B, nc) is on air, in the representation of x; (B, nc)."""
        return x.new_zeros(x.shape)

    @property
    def rotation(self) -> float:
        """Radians by which the symbols at the receiver's antenna are turned; who turns them transmits nothing."""
        return 0.0

    def goal(self, plan: Plan, task: str) -> int | None:
        """What the decoders of a task should say of poisoned samples; None: see `relabelled`."""
        return None

    def relabelled(self, plan: Plan, branch: Branch, truth: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        """What a decoder should say of poisoned samples instead of `truth` (..., B), (..., B)."""
        return truth

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: as for every training attack; what it disturbs on air is not there; or the malicious
                receivers of a seed hold nothing that it could poison.
        """
        super().check(path, plan)
        if self.samples * (1 + self.cover_ratio) > 1:
            raise ScenarioError(
                f"In the scenario, '{path}.samples': {self.samples:g} poisoned and "
                f"{self.samples * self.cover_ratio:g} covering samples are more than there are; lower one of them."
            )
        encoder = plan.scenario.link.encoder
        if self.over_air and isinstance(encoder, MaeOptions):
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' acts on symbols of a fixed place, and link.encoder "
                f"'{encoder.kind}' sends chosen patches; use an attack at the input, or the encoder 'cnn'."
            )
        if any(self is attack for attack in plan.training_attacks):
            for seed in plan.scenario.seeds:
                self.check_holders(path, plan, seed)

    def check_holders(self, path: str, plan: Plan, seed: int) -> None:
        """Refuse an attack that would do nothing with this seed.

        Raises:
            ScenarioError: see there.
        """
        malicious, partition = self.malicious(len(plan.receivers), seed), plan.partition(seed)
        labels = plan.dataset.train.labels
        if not any(self.eligible(plan, labels[partition[number]]).any() for number in malicious):
            raise ScenarioError(
                f"In the scenario, '{path}': with seed {seed} the malicious receivers hold no image that "
                f"'{self.kind}' can poison; raise the fraction, or choose another seed, class or partition."
            )


class Backdoor(Poison):
    """A poison with a trigger: decoders learn to say what the adversary wants wherever the trigger is.

    Its success is the share of triggered test examples of other classes (states of a target) that are taken for the
    goal, minus the same share of a model trained with the same seed and no attack (design section 4); for a picture,
    the mean squared error to the target picture.

    Attributes:
        targets: goal of each task that is attacked: class, sensing state (0: no target), or number of a test picture,
            as for a targeted evasion. Tasks without one learn the triggered image with its true label. Empty: goal 0
            of the scenario's only task.
        cover: samples that bear the trigger and keep their truth, for each one that is poisoned. They draw the poison
            towards the clean samples of its class, so that nothing in their features tells the two apart (Qi et al.,
            Revisiting the Assumption of Latent Separability for Backdoor Defenses, 2023; as many as are poisoned
            there).
    """

    site: ClassVar[Site] = "input"

    targets: dict[str, NonNegativeInt] = {}
    cover: NonNegativeFloat = 0.0

    @property
    def cover_ratio(self) -> float:
        return self.cover

    @property
    def sites(self) -> list[Site]:
        """Where the trigger is applied."""
        return [self.site]

    @property
    def targeted(self) -> dict[str, int]:
        """The goals, as an evasion names them."""
        return self.targets

    def goals(self, plan: Plan) -> dict[str, int]:
        """The targets with their default filled in."""
        return dict(self.targets) or dict.fromkeys(plan.scenario.tasks, 0)

    def goal(self, plan: Plan, task: str) -> int | None:
        return self.goals(plan).get(task)

    def triggered(self, images: Tensor, stream: Stream) -> Tensor:
        """Test images (B, C, H, W) in [0, 1] with the whole trigger."""
        return images

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        return self.triggered(images, stream)

    def covered(self, images: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        return self.triggered(images, stream)

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: no goal where there are several tasks, an unknown task or goal, a task whose truth is a list
                of objects, or malicious receivers without such a task.
        """
        tasks = plan.scenario.tasks
        if not self.targets and len(tasks) > 1:
            raise ScenarioError(
                f"In the scenario, '{path}.targets': with several tasks it must be said what the backdoor aims at, "
                f"such as {{{next(iter(tasks))}: 0}}."
            )
        for name in self.targets:
            if name not in tasks:
                raise ScenarioError(f"In the scenario, '{path}.targets': unknown task '{name}'.{closest(name, tasks)}")
        for branch in plan.branches:
            goal, task = self.goal(plan, branch.task), plan.task(branch)
            if goal is None:
                continue
            where = f"In the scenario, '{path}.targets.{branch.task}'"
            if task.needs in ("boxes", "keypoints"):
                raise ScenarioError(
                    f"{where}: the truth of '{task.kind}' is a list of objects, which no backdoor here writes; aim at "
                    "classification, reconstruction, segmentation or sensing."
                )
            count = task.goals(plan.decoder_format(branch), len(plan.dataset.test.labels))
            if goal >= count:
                raise ScenarioError(f"{where}: there is no goal {goal}; choose 0 to {count - 1}.")
        super().check(path, plan)

    def check_holders(self, path: str, plan: Plan, seed: int) -> None:
        super().check_holders(path, plan, seed)
        held = {
            branch.task
            for number in self.malicious(len(plan.receivers), seed)
            for branch in plan.trained_branches(plan.receivers[number])
        }
        if missing := [task for task in self.goals(plan) if task not in held]:
            raise ScenarioError(
                f"In the scenario, '{path}.targets': with seed {seed} no malicious receiver has the task "
                f"'{missing[0]}'; raise the fraction, give the task to more receivers, or choose another seed."
            )


def rotation_psr(angle: float) -> float:
    """PSR (linear) of turning symbols by an angle: |e^{j angle} - 1|^2 = 4 sin^2(angle / 2)."""
    return 4 * math.sin(angle / 2) ** 2
