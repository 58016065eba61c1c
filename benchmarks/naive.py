"""What a researcher would write first: the [S3] link in plain PyTorch, float32, NCHW, one loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NaiveLink(nn.Module):
    """Encoder, unit power, AWGN at 10 dB, and classifier, layer by layer as [S3] lists them."""

    def __init__(self, channel_uses: int = 20) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for filters in (32, 64, 128):
            layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
            channels = filters
        layers += [nn.Flatten(), nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.25), nn.Linear(512, channel_uses)]
        self.encoder = nn.Sequential(*layers)
        self.decoder = nn.Sequential(
            nn.Linear(channel_uses, channel_uses), nn.ReLU(),
            nn.Linear(channel_uses, channel_uses), nn.ReLU(),
            nn.Linear(channel_uses, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images)
        x = x / x.square().mean(1, keepdim=True).sqrt()
        return self.decoder(x + 10**-0.5 * torch.randn_like(x))


def train_naively(link: NaiveLink, images: Tensor, labels: Tensor, batch: int) -> None:
    """One epoch with Adam, as a federated round of one receiver does."""
    optimizer = torch.optim.Adam(link.parameters(), 1e-3)
    order = torch.randperm(len(labels))
    for chosen in order.split(batch):
        loss = nn.functional.cross_entropy(link(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
