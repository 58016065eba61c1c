"""What the noise of the channel certifies of a single reception."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsem.hooks.binomial import clopper_pearson
from fedsem.hooks.vote import ManyReceptions
from fedsem.registry import register
from fedsem.tasks.classification import Classification
from fedsem.tasks.decision import Decision
from fedsem.tasks.sensing import Sensing
from fedsem.tasks.task import DecoderFormat, Share, Task


@register("defense", "single_shot_certificate")
class SingleShotCertificate(ManyReceptions):
    """The link as it is, each image decided by one reception; n receptions only measure how often it is right:
    P[right | w, h] >= Phi(Phi^-1(p) - r / s) with p the Clopper-Pearson bound of P[right | w = 0, h] (the argument of
    Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized Smoothing, 2019, with the channel's
    noise in place of the transmitter's). `certified_accuracy` is the mean of these bounds over images and gains, less
    alpha, and 0 where that is negative. The mean of p must not be put into the formula: it is not concave.
    """

    serves = (Classification, Sensing)

    def measure(self, output: Tensor, truth: Tensor, task: Task) -> dict[str, Share]:
        assert isinstance(task, Decision), "checked with the scenario"
        told, right = task.decisions(output, truth)
        share = (told == right).float().mean(0)
        return {"accuracy": Share(share, torch.ones_like(share))}

    def certify(
        self, output: Tensor, truth: Tensor, task: Task, distance: Tensor, decoder: DecoderFormat
    ) -> dict[str, Share]:
        assert isinstance(task, Decision), "checked with the scenario"
        told, right = task.decisions(output, truth)
        low = clopper_pearson((told == right).sum(0), self.n, self.alpha)
        bound = torch.special.ndtr(torch.special.ndtri(low) - distance) - self.alpha
        return {"certified_accuracy": Share(bound, torch.ones_like(bound))}
