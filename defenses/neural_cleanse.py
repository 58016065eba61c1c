"""Neural Cleanse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from fedsem.hooks.repair import Finding, Repair, Repairable, Repaired, Trigger
from fedsem.registry import register
from fedsem.repairing import LinkCopy
from fedsem.streams import Stream


@register("defense", "neural_cleanse")
class NeuralCleanse(Repair):
    """Looks for the smallest trigger u' = (1 - m) u + m p that sends clean images to a class, for each class in turn;
    where one is much smaller than the others it is taken for a backdoor's, and the link learns on with it on some of
    the images, which keep their classes (Wang et al., Neural Cleanse: Identifying and Mitigating Backdoor Attacks in
    Neural Networks, 2019). Mask m (H, W) and pattern p (C, H, W) minimise cross-entropy + lambda ||m||_1 by Adam,
    through the encoder and fresh draws of every listener's channel; lambda grows by `factor` after `patience` steps in
    a row in which a share `success` of the receptions was taken for the class, and falls by factor^1.5 after as many in
    which it was not. The smallest mask among those that succeeded counts, or the last one where none did.

    With L1 norms l_t of all classes, the anomaly index of class t is |l_t - median| / (1.4826 MAD); flagged are classes
    below the median with an index above `flag`. The paper finds triggers that are small; one as wide as the image
    passes. The table has, for each class, `trigger_norm` (pixels), `trigger_success` and `anomaly_index`, and for each
    task `flagged_classes`. Where no class is flagged, nothing is changed.

    Attributes:
        steps: of Adam for each class.
        images: in each step.
        rate: Adam's, for the trigger.
        cost: lambda in the first step.
        success: share of the receptions of a step that must be taken for the class.
        patience: steps in a row after which lambda changes.
        factor: by which lambda grows then, and by whose power 1.5 it falls.
        flag: anomaly index from which a class is suspicious.
        share: of the images that carry a trigger while the link learns on.
    """

    steps: PositiveInt = 300
    images: PositiveInt = 32
    rate: PositiveFloat = 0.1
    cost: PositiveFloat = 1e-3
    success: Annotated[float, Field(gt=0, le=1)] = 0.99
    patience: PositiveInt = 5
    factor: Annotated[float, Field(gt=1)] = 2.0
    flag: PositiveFloat = 2.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.2

    def repair(self, link: Repairable, stream: Stream) -> Repaired:
        made = LinkCopy(link)
        findings: list[Finding] = []
        suspicious: list[Trigger] = []
        for task in dict.fromkeys(made.branches[name].task for name in made.deciding()):
            found = [
                self.trigger(made, task, goal, stream.child("trigger", task, goal))
                for goal in range(len(made.plan.dataset.classes))
            ]
            norms = np.array([float(trigger.mask.sum()) for trigger, _ in found])
            index = anomaly(norms)
            flagged = (index > self.flag) & (norms < np.median(norms))
            for (trigger, success), norm, value in zip(found, norms, index, strict=True):
                findings += [
                    Finding("trigger_norm", float(norm), task, trigger.goal),
                    Finding("trigger_success", success, task, trigger.goal),
                    Finding("anomaly_index", float(value), task, trigger.goal),
                ]
            findings.append(Finding("flagged_classes", float(flagged.sum()), task))
            suspicious += [trigger for (trigger, _), bad in zip(found, flagged, strict=True) if bad]

        def change(images: Tensor, stream: Stream) -> Tensor:
            drawn = stream.numpy()
            carries = torch.from_numpy(drawn.random(len(images)) < self.share).to(images.device)
            which = torch.from_numpy(drawn.integers(len(suspicious), size=len(images))).to(images.device)
            for number, trigger in enumerate(suspicious):
                here = (carries & (which == number)).view(-1, 1, 1, 1)
                images = torch.where(here, trigger.on(images), images)
            return images

        if suspicious:
            made.learn(made.examples, self.epochs, self.lr, stream.child("learn"), change)
        return made.finished(findings, suspicious)

    def trigger(self, made: LinkCopy, task: str, goal: int, stream: Stream) -> tuple[Trigger, float]:
        """The smallest trigger found for a class, and the share of receptions that it sends there."""
        examples, device = made.examples, made.plan.device
        channels, height, width = made.plan.images.shape
        start = stream.child("start").torch()
        # Both are kept in (0, 1) as the paper does.
        raw_mask = torch.randn(height, width, generator=start).to(device).requires_grad_(True)
        raw_pattern = torch.randn(channels, height, width, generator=start).to(device).requires_grad_(True)
        optimizer = torch.optim.Adam([raw_mask, raw_pattern], self.rate, betas=(0.5, 0.9))
        order, cost, good, bad = stream.child("order").torch(), self.cost, 0, 0
        best: tuple[Trigger, float] | None = None
        others = (examples.labels != goal).nonzero().flatten()
        for step in range(self.steps):
            chosen = others[torch.randint(len(others), (self.images,), generator=order).to(device)]
            now = Trigger(task, goal, (raw_mask.tanh() + 1) / 2, (raw_pattern.tanh() + 1) / 2)
            x = made.transmitter.send(now.on(examples.images[chosen])).x
            losses, reached = [], []
            for name in made.deciding(task):
                heard, _ = made.received(name, x, 1, stream.child("air", step, name))
                said = made.decoders[name](heard)[0]
                losses.append(F.cross_entropy(said, torch.full((len(chosen),), goal, device=device)))
                reached.append((said.argmax(-1) == goal).float().mean())
            success = float(torch.stack(reached).mean())
            kept = Trigger(task, goal, now.mask.detach(), now.pattern.detach())
            if success >= self.success and (best is None or float(kept.mask.sum()) < float(best[0].mask.sum())):
                best = kept, success
            optimizer.zero_grad(set_to_none=True)
            (torch.stack(losses).mean() + cost * now.mask.sum()).backward()
            optimizer.step()
            good, bad = (good + 1, 0) if success >= self.success else (0, bad + 1)
            if good == self.patience:
                cost, good = cost * self.factor, 0
            elif bad == self.patience:
                cost, bad = cost / self.factor**1.5, 0
        return best or (kept, success)

    def adaptive(self) -> Mapping[str, Any] | None:
        """A trigger that is not small."""
        return {"kind": "blend"}


def anomaly(norms: np.ndarray) -> np.ndarray:
    """How many standard deviations of a normal distribution each is from the median, by the median absolute deviation;
    0 where all deviations that count are."""
    away = np.abs(norms - np.median(norms))
    scale = 1.4826 * np.median(away)
    made: np.ndarray = away / scale if scale > 0 else np.zeros_like(away)
    return made
