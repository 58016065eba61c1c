"""Detection of the objects in the transmitted image."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, NonNegativeFloat, Tag
from torch import Tensor, nn
from torchvision.ops import box_iou

from fedsem.channels.channel import Realisation
from fedsem.errors import ScenarioError
from fedsem.models.detector import Detector
from fedsem.models.pretrained import DetectorTraining, Named, load_detector, text_or_mapping
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task

MATCHED = 0.5
"""IoU from which a box counts as found."""


@register("task", "detection")
class Detection(Task):
    """A detector that is trained already, fed by the painted picture ([S0] III-C): it only runs at the receiver.

    Attributes:
        pretrained: `embedded` (a small FCOS, trained on `digit_scenes`), a name on the Hugging Face hub or a folder
            (DETR, such as facebook/detr-resnet-50), a .safetensors file that a run's stage `pretrain` left, or
            {training: ...}: it is trained in that stage, on the scenario's own pictures.
        weight: 0, so that nothing is trained by it; else the scorer learns from the detector's own loss.
        confidence: score from which a box counts in `iou`, `detection_accuracy` and `f1`; average precision uses all.
    """

    evaluation_only: ClassVar[frozenset[str]] = frozenset(["confidence"])

    pretrained: Annotated[
        Annotated[Named, Tag("name")] | Annotated[DetectorTraining, Tag("training")],
        Discriminator(text_or_mapping, "choice", "should be a name or a file, or a mapping with 'training'"),
    ] = "embedded"
    weight: NonNegativeFloat = 0.0
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.4

    @property
    def needs(self) -> Literal["boxes"]:
        return "boxes"

    @property
    def headline(self) -> str:
        return "f1"

    def build(self, decoder: DecoderFormat) -> nn.Module:
        """The detector, its categories numbered as the data set's.

        Raises:
            ScenarioError: it does not know the data set's categories.
        """
        assert isinstance(self.pretrained, str)  # one that is to be trained is named by its plan
        _, known = load_detector(self.pretrained)
        if missing := [name for name in decoder.categories if name not in known]:
            raise ScenarioError(
                f"The detector '{self.pretrained}' does not know the category '{missing[0]}' of the data set; it knows "
                f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}. Train one "
                "(pretrained: {training: {steps: ...}})."
            )
        return _Frozen(self.pretrained, [known.index(name) for name in decoder.categories])

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        """Boxes (B, M, 5), laid out as `Detector` says."""
        assert examples.boxes is not None
        return examples.boxes

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return test_images

    def aim(self, goal: int, examples: Examples) -> Tensor:
        """The objects of the test picture of that number, for every example."""
        assert examples.boxes is not None
        return examples.boxes[goal].expand(len(examples), *examples.boxes.shape[1:])

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """1 - F1 of each image: what is left of the boxes has no useful gradient; see `objective`."""
        share = self.metrics(output, truth, None)["f1"]
        return 1 - share.numerator / share.denominator.clamp_min(1)

    def objective(self, decoder: nn.Module, heard: Tensor, truth: Tensor) -> Tensor:
        """The loss that the detector itself was trained with."""
        assert isinstance(decoder, _Frozen)
        return decoder.loss(heard, truth.expand(*heard.shape[:-3], *truth.shape[-2:]))

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """At IoU 0.5 and the task's confidence, matched greedily from the best score on, category by category as COCO
        does: `iou` of matched boxes, `detection_accuracy` TP / (TP + FP + FN), `f1` 2 TP / (2 TP + FP + FN). Crowds
        are left out: boxes in them count neither way."""
        flat = output.flatten(0, -3)
        truths = truth.expand(*output.shape[:-2], *truth.shape[-2:]).flatten(0, -3)
        counted = torch.stack([_counts(*pair, self.confidence) for pair in zip(flat, truths, strict=True)])
        tp, fp, fn, overlap = counted.view(*output.shape[:-2], 4).unbind(-1)
        return {
            "iou": Share(overlap, tp),
            "detection_accuracy": Share(tp, tp + fp + fn),
            "f1": Share(2 * tp, 2 * tp + fp + fn),
        }

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """F1 against the objects of the target picture."""
        return self.metrics(output, aim, None)["f1"]


class _Frozen(nn.Module):
    """The shared detector, no submodule: it has no parameters that a receiver would train or send."""

    def __init__(self, pretrained: str, categories: list[int]) -> None:
        super().__init__()
        self.pretrained = pretrained
        order = torch.full((1 + max(categories, default=0),), -1)
        order[torch.tensor(categories, dtype=torch.long)] = torch.arange(len(categories))
        self.register_buffer("order", order, persistent=False)

    order: Tensor

    @property
    def detector(self) -> Detector:
        detector, _ = load_detector(self.pretrained, self.order.device)
        assert isinstance(detector, Detector)
        return detector

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.detector(pictures.flatten(0, -4))
        category = found[..., 5].long()
        known = (category < len(self.order)) & (self.order[category.clamp_max(len(self.order) - 1)] >= 0)
        mine = self.order[category.clamp_max(len(self.order) - 1)].float()
        rows = torch.cat([found[..., :5], mine.unsqueeze(-1)], dim=-1) * known.unsqueeze(-1)
        return rows.view(*pictures.shape[:-3], *rows.shape[1:])

    def loss(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """The detector's loss (..., B) against boxes (..., B, M, 5) of the data set's categories."""
        # Back from the data set's categories to the detector's.
        numbers = torch.argsort(torch.where(self.order < 0, len(self.order), self.order))
        category = torch.where(
            truth[..., 4] < 0, truth[..., 4], numbers[truth[..., 4].long().clamp_min(0)].to(truth.dtype)
        )
        theirs = torch.cat([truth[..., :4], category.unsqueeze(-1)], dim=-1)
        losses = self.detector.loss(pictures.flatten(0, -4), theirs.flatten(0, -3))
        return losses.view(pictures.shape[:-3])


def _counts(found: Tensor, truth: Tensor, confidence: float) -> Tensor:
    """True positives, false positives, misses and the summed IoU of matched boxes of one image."""
    found = found[found[:, 4] >= confidence]
    there, crowd = truth[truth[:, 4] >= 0], truth[truth[:, 4] == -2]
    overlaps = box_iou(found[:, :4], there[:, :4])
    overlaps = torch.where(found[:, 5:6] == there[:, 4].unsqueeze(0), overlaps, torch.zeros_like(overlaps))
    free = torch.ones(len(there), dtype=torch.bool, device=truth.device)
    matched, total, false = 0, 0.0, 0
    for row, box in zip(overlaps, found, strict=True):
        candidates = torch.where(free, row, torch.zeros_like(row))
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and float(candidates[best]) >= MATCHED:
            free[best] = False
            matched, total = matched + 1, total + float(candidates[best])
        elif not _in_crowd(box, crowd):
            false += 1
    return torch.tensor([matched, false, len(there) - matched, total], device=truth.device, dtype=torch.float32)


def _in_crowd(box: Tensor, crowd: Tensor) -> bool:
    """Whether half of the box lies in a crowd, COCO's overlap with crowds."""
    if not len(crowd):
        return False
    sides = (torch.minimum(box[2:4], crowd[:, 2:4]) - torch.maximum(box[:2], crowd[:, :2])).clamp_min(0)
    return bool((sides.prod(1) / (box[2:4] - box[:2]).prod().clamp_min(1e-6) >= MATCHED).any())
