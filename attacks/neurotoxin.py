"""Neurotoxin."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedsem.hooks.step import StepAttack
from fedsem.registry import register


@register("attack", "neurotoxin")
class Neurotoxin(StepAttack):
    """Malicious receivers leave the coordinates alone that the last round moved most, where honest receivers will soon
    overwrite what they write, so that a backdoor outlives them (Zhang et al., Neurotoxin: Durable Backdoors in
    Federated Learning, 2022). After every local step the largest `top` share of |delta| of the last round, over all
    coordinates that the server averages, is put back: projected gradient descent onto the rest.

    Name it beside a backdoor in `use.attacks`. In the first round, which follows no other, it does nothing.

    Attributes:
        top: share of the coordinates that stay untouched; the paper's k, for which it takes few percent.
    """

    top: Annotated[float, Field(gt=0, lt=1)] = 0.05

    def untouched(self, moved: dict[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(moved)
        size = torch.cat([moved[name].flatten().abs() for name in names])
        mask = torch.zeros(len(size), dtype=torch.bool)
        mask[size.topk(int(self.top * len(size))).indices] = True
        parts = mask.split([moved[name].numel() for name in names])
        return {name: part.view_as(moved[name]) for name, part in zip(names, parts, strict=True)}
