"""DETR, for people with its weights ([S0] uses facebook/detr-resnet-50)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection

from fedsem.errors import DataError
from fedsem.models.detector import Detector, padded
from fedsem.models.mae import IMAGENET_MEAN, IMAGENET_STD


class Detr(Detector):
    """Carion et al., End-to-End Object Detection with Transformers, 2020: transformers' network on pictures at their
    own size.

    Args:
        network: the network.
        most: boxes kept for a picture, at most the number of its queries.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: DetrForObjectDetection, most: int = 100) -> None:
        super().__init__()
        self.network = network
        self.most = min(most, int(network.config.num_queries))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        told = self.network((images.clamp(0, 1) - self.mean) / self.std)
        # The last class is "no object".
        scores, categories = told.logits.softmax(-1)[..., :-1].max(-1)
        boxes = self._corners(told.pred_boxes, images)
        rows = torch.cat([boxes, scores.unsqueeze(-1), categories.unsqueeze(-1).float()], dim=-1)
        best = scores.topk(self.most, dim=1).indices
        return padded([one[index] for one, index in zip(rows, best, strict=True)], self.most)

    def loss(self, images: Tensor, truth: Tensor) -> Tensor:
        side = images.new_tensor([images.shape[-1], images.shape[-2]] * 2)
        losses = []
        for image, rows in zip(images, truth, strict=True):
            there = rows[rows[:, 4] >= 0]
            boxes = there[:, :4] / side
            centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
            labels = [{"class_labels": there[:, 4].long(), "boxes": centred}]
            losses.append(self.network(((image - self.mean) / self.std).unsqueeze(0), labels=labels).loss)
        return torch.stack(losses)

    def _corners(self, boxes: Tensor, images: Tensor) -> Tensor:
        x, y, width, height = boxes.unbind(-1)
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        return corners.clamp(0, 1) * boxes.new_tensor([images.shape[-1], images.shape[-2]] * 2)


def load_detr(name: str) -> tuple[Detr, tuple[str, ...]]:
    """A DETR of Hugging Face's format and the names of its categories, by their numbers.

    Raises:
        DataError: it cannot be found or read.
    """
    try:
        config = DetrConfig.from_pretrained(name)
        network = DetrForObjectDetection.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"The detector '{name}' cannot be loaded ({str(error).splitlines()[0]}); download it first "
            "(huggingface-cli download), name its folder, or use pretrained: embedded."
        ) from error
    labels = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    return Detr(network), tuple(labels[number] for number in sorted(labels))
