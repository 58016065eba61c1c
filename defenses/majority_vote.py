"""Majority votes over receptions: what randomised smoothing and the vote over the air share."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedsem.hooks.binomial import clopper_pearson, outnumbers
from fedsem.hooks.vote import Vote
from fedsem.tasks.decision import Decision
from fedsem.tasks.task import DecoderFormat, Share, Task


class MajorityVote(Vote):
    """The class that most of n receptions name; where a binomial test of the first against the second cannot tell them
    apart at level alpha, it abstains (PREDICT of the paper). Abstained images count as not right in `accuracy`;
    `abstained` is their share. `certified_accuracy` is the share of images whose class the vote of infinitely many
    receptions keeps, and has right: n0 receptions guess it, k of n others name it too, and p = Clopper-Pearson(k, n,
    alpha) > 1/2 certifies r / s < Phi^-1(p) (CERTIFY). Within that radius a vote of n names the right class or
    abstains, but with probability alpha.

    Attributes:
        n0: receptions that guess the class whose share the n others bound.
    """

    n0: Annotated[int, Field(ge=1, le=100_000)] = 100

    @property
    def receptions(self) -> int:
        return self.n0 + self.n

    def measure(self, output: Tensor, truth: Tensor, task: Task) -> dict[str, Share]:
        assert isinstance(task, Decision), "checked with the scenario"
        told, right = task.decisions(output[self.n0 :], truth)
        votes, classes = counted(told, output.shape[-1]).topk(2, dim=-1)
        winner, sure = classes[..., 0], outnumbers(votes[..., 0], votes[..., 1], self.alpha)
        one = torch.ones(sure.shape, device=sure.device)
        return {
            "accuracy": Share((sure & (winner == right)).float(), one),
            "abstained": Share((~sure).float(), one),
        }

    def certify(
        self, output: Tensor, truth: Tensor, task: Task, distance: Tensor, decoder: DecoderFormat
    ) -> dict[str, Share]:
        assert isinstance(task, Decision), "checked with the scenario"
        told, right = task.decisions(output, truth)
        guess = counted(told[: self.n0], output.shape[-1]).argmax(-1)
        agreeing = (told[self.n0 :] == guess).sum(0)
        low = clopper_pearson(agreeing, self.n, self.alpha)
        holds = (guess == right) & (low > 0.5) & (distance < torch.special.ndtri(low))
        return {"certified_accuracy": Share(holds.float(), torch.ones(holds.shape, device=holds.device))}


def counted(told: Tensor, classes: int) -> Tensor:
    """How many of the receptions (n, B) name each class, (B, classes)."""
    return F.one_hot(told, classes).sum(0)
