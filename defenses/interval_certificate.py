"""Certificates of dense decoders by interval bounds."""

from __future__ import annotations

from torch import Tensor, nn

from fedsem.hooks.certificate import Certificate
from fedsem.registry import register
from fedsem.tasks.task import Task


@register("defense", "interval_certificate")
class IntervalCertificate(Certificate):
    """Bounds of the decoder's outputs by interval arithmetic: a layer W x + b maps a box with centre c and radius r
    into the one with centre W c + b and radius |W| r (Gowal et al., On the Effectiveness of Interval Bound Propagation
    for Training Verifiably Robust Models, 2018), in float64. The bounds hold for every dense decoder of classification
    and sensing; they say little of those that were not trained with the defense `ibp`.
    """

    def serves(self, task: Task, decoder: nn.Module) -> bool:
        return task.bounded(decoder)

    def fails(self, task: Task, decoder: nn.Module, heard: Tensor, radius: Tensor, truth: Tensor) -> Tensor:
        return task.worst_failure(decoder, heard, radius, truth)
