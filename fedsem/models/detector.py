"""The interface of every object detector, and how boxes are laid out."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Detector(nn.Module):
    """Pictures -> boxes with a score and a category.

    Truth is (B, M, 5): x1, y1, x2, y2 in pixels and the category; rows without an object have the category -1, objects
    to be ignored (crowds) -2. What is found is (B, `most`, 6): the box, its score in (0, 1] and its category, the best
    first; rows without one are zero.
    """

    most: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> what is found."""

    @abstractmethod
    def loss(self, images: Tensor, truth: Tensor) -> Tensor:
        """The loss that the detector is trained with, of each picture, (B,); differentiable in the pictures."""


def padded(found: list[Tensor], most: int) -> Tensor:
    """Rows (n_i, 6) of each picture -> (B, most, 6)."""
    return torch.stack([nn.functional.pad(rows[:most], (0, 0, 0, max(0, most - len(rows)))) for rows in found])
