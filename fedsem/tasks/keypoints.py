"""Keypoints of the objects in the transmitted image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.models.picture import DenseHead
from fedsem.registry import register
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task

STRIDE = 4
SIGMA = 1.5
"""Deviation of a keypoint's peak, in cells of the heat map."""
PEAK = 0.3
"""A local maximum counts as a keypoint from this height on."""
NEAR = 0.1
"""A keypoint is found within this share of its object's size, the larger side of the box (PCK; Yang and Ramanan,
Articulated Human Detection with Flexible Mixtures of Parts, 2013)."""


@register("task", "keypoints")
class Keypoints(Task):
    """A heat map for each kind of keypoint, from the painted picture; mean squared error ([S0] III-A), times 100 so
    that it is of the order of the other losses.

    The truth is exp(-r^2 / 2 sigma^2) around each labelled keypoint, the largest where several are near, on maps of a
    quarter of the picture's side with sigma = 1.5 cells (Tompson et al., Joint Training of a Convolutional Network and
    a Graphical Model, 2014).
    """

    @property
    def needs(self) -> Literal["keypoints"]:
        return "keypoints"

    @property
    def headline(self) -> str:
        return "pck"

    def build(self, decoder: DecoderFormat) -> nn.Module:
        return DenseHead(decoder.keypoints, STRIDE)

    def truth(self, examples: Examples, realisation: Realisation) -> Tensor:
        """Keypoints (B, M, K, 4): x, y, visibility, and the size of their object, in pixels."""
        return _sized(examples)

    def goals(self, decoder: DecoderFormat, test_images: int) -> int:
        return test_images

    def aim(self, goal: int, examples: Examples) -> Tensor:
        """The keypoints of the test picture of that number, for every example."""
        truth = _sized(examples.at(slice(goal, goal + 1)))
        return truth.expand(len(examples), *truth.shape[1:])

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        return 100 * (output - heat(truth, output.shape[-1])).square().mean((-3, -2, -1))

    def metrics(self, output: Tensor, truth: Tensor, threshold: float | None) -> dict[str, Share]:
        """`pck`: share of labelled keypoints near which a peak of their kind lies; `keypoint_precision`: share of the
        peaks that lie near one; `heat_mse` of the maps."""
        near, peaks = self._near(output, truth)
        labelled = (truth[..., 2] > 0).float().expand(near.shape[:-1])
        found = near.any(-1).float() * labelled
        # (..., B, M, K, peaks): a peak of a kind is right if any keypoint of that kind is near it.
        right = (near & (truth[..., 2:3] > 0)).any(-3).float() * peaks
        mse = (output - heat(truth, output.shape[-1])).square().mean((-3, -2, -1))
        return {
            "pck": Share(found.sum((-2, -1)), labelled.sum((-2, -1))),
            "keypoint_precision": Share(right.sum((-2, -1)), peaks.sum((-2, -1))),
            "heat_mse": Share(mse, torch.ones_like(mse)),
        }

    def reached(self, output: Tensor, truth: Tensor, aim: Tensor) -> Share:
        """Share of the target's keypoints that are found."""
        return self.metrics(output, aim, None)["pck"]

    def _near(self, output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each of the highest peaks lies near each keypoint, (..., B, M, K, P); and which peaks there are."""
        flat = output.flatten(0, -4)
        top = flat == F.max_pool2d(flat, 3, 1, 1)
        height = torch.where(top & (flat > PEAK), flat, torch.zeros_like(flat)).flatten(-2)
        most = min(2 * max(1, truth.shape[-3]), height.shape[-1])
        values, place = height.topk(most, dim=-1)
        side = output.shape[-1]
        x, y = (place % side + 0.5) * STRIDE, (place // side + 0.5) * STRIDE
        shape = (*output.shape[:-3], 1, output.shape[-3], most)
        dx = x.view(shape) - truth[..., 0:1]
        dy = y.view(shape) - truth[..., 1:2]
        # Half a cell is what the map's resolution costs.
        near = torch.hypot(dx, dy) <= NEAR * truth[..., 3:4] + STRIDE / 2
        peaks = (values > 0).view(*output.shape[:-3], output.shape[-3], most)
        return near & peaks.unsqueeze(-3), peaks.float()


def _sized(examples: Examples) -> Tensor:
    assert examples.keypoints is not None
    assert examples.boxes is not None
    sides = examples.boxes[..., 2:4] - examples.boxes[..., :2]
    size = sides.amax(-1)[..., None, None].expand(*examples.keypoints.shape[:-1], 1)
    return torch.cat([examples.keypoints, size], dim=-1)


def heat(truth: Tensor, side: int) -> Tensor:
    """Heat maps (B, K, side, side) of keypoints (B, M, K, 4)."""
    cells = (torch.arange(side, device=truth.device) + 0.5) * STRIDE
    dx = (cells - truth[..., 0:1]) / STRIDE
    dy = (cells - truth[..., 1:2]) / STRIDE
    # Separable, (B, M, K, side, side) only at the end.
    wave_x, wave_y = (-dx.square() / (2 * SIGMA**2)).exp(), (-dy.square() / (2 * SIGMA**2)).exp()
    wave_x = wave_x * (truth[..., 2:3] > 0)
    return torch.einsum("bmky,bmkx->bmkyx", wave_y, wave_x).amax(1)
