"""The convolutional encoder of [S3]."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.errors import ScenarioError
from fedsem.models.encoder import FixedLength, ImageFormat
from fedsem.models.glorot import glorot
from fedsem.registry import register


@register("encoder", "cnn")
class Cnn(FixedLength):
    """[S3] section II and figure 2: three 3x3 'same' convolutions (32, 64, 128), each ReLU + 2x2 max-pool + dropout;
    dense 512 with ReLU and dropout; dense nc, linear. Weights begin as `glorot` says. 1.15 million parameters at
    nc = 20 for 32x32x3 images.

    Attributes:
        dropout: rate of every dropout layer; 0.25 in [S3].
    """

    dropout: float = Field(0.25, ge=0, lt=1)

    def build(self, images: ImageFormat) -> nn.Module:
        """The network; images of at least 8x8 pixels.

        Raises:
            ScenarioError: the images are smaller than that.
        """
        if min(images.shape[1:]) < 8:
            raise ScenarioError(f"link.encoder: 'cnn' needs images of at least 8x8 pixels, not {images.shape[1:]}.")
        return _Network(self.channel_uses, self.dropout, images)


class _Network(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, channel_uses: int, dropout: float, images: ImageFormat) -> None:
        super().__init__()
        # Not persistent: what is averaged over receivers holds parameters only.
        self.register_buffer("mean", torch.tensor(images.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(images.std).view(-1, 1, 1), persistent=False)
        layers: list[nn.Module] = []
        channels, height, width = images.shape
        for filters in (32, 64, 128):
            # max-pooling commutes with the monotone ReLU, bit for bit; pooling first leaves a quarter of the work.
            layers += [nn.Conv2d(channels, filters, 3, padding="same"), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(dropout)]
            channels, height, width = filters, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(channels * height * width, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, channel_uses)
        )
        glorot(self)

    def forward(self, images: Tensor) -> Tensor:
        u = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        # An explicit NCHW order of the flattened features: weights do not depend on the memory format.
        return self.head(self.features(u).contiguous().flatten(1))
