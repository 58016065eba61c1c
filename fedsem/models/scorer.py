"""The multi-task scoring network of [S0] III-A: which patches matter to the tasks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer

from fedsem.models.mae import sine_cosine
from fedsem.models.places import uniform_scores

Size = Literal["base", "small"]


class Scorer(nn.Module):
    """A vision transformer that ends in attention: s_j = (1/H) sum_h softmax_j(q_CLS . k_j / sqrt d_h), [S0] III-A.

    The last block has no values, MLP or normalisation behind its attention: the weights that its class token gives to
    the patches, a softmax in each head, averaged over heads, are the scores. Blocks before it are the usual ones
    (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021). The network sees standardised pixels.

    Args:
        patch: pixels per side of a patch.
        side: patches per side of the picture.
        width, layers, heads: of the transformer; `layers` counts the scoring block.
        pooled: patches are averaged to `pooled` x `pooled` pixels first; None: not.
    """

    def __init__(self, patch: int, side: int, width: int, layers: int, heads: int, pooled: int | None) -> None:
        super().__init__()
        self.patch, self.heads, self.pooled = patch, heads, pooled
        self.embed = nn.Linear(3 * (pooled or patch) ** 2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        # Learnt, as in ViT. An eighth of the channels begins with the place's rank in an even grid: where patches are
        # worth the same, their scores differ by it at once, and what is kept of them is spread out.
        position = sine_cosine(side, width)
        rank = uniform_scores(side).argsort().argsort() / (side**2 - 1)
        position[0, 1:, -width // 8 :] = (2 * rank - 1).unsqueeze(1)
        self.position = nn.Parameter(position)
        block = ViTMAEConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
        block._attn_implementation = "eager"  # see Mae
        self.blocks = nn.Sequential(*(ViTMAELayer(block) for _ in range(layers - 1)))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardised pixels (B, 3, H, W) -> scores (B, L), positive, of sum 1."""
        p, n = self.patch, pixels.shape[-1] // self.patch
        if self.pooled is not None:
            pixels, p = F.avg_pool2d(pixels, self.patch // self.pooled), self.pooled
        patches = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), n * n, -1)
        tokens = torch.cat([self.class_token.expand(len(pixels), -1, -1), self.embed(patches)], dim=1) + self.position
        tokens = self.norm(self.blocks(tokens))
        query = self.query(tokens[:, :1]).unflatten(-1, (self.heads, -1))
        key = self.key(tokens[:, 1:]).unflatten(-1, (self.heads, -1))
        attention = torch.einsum("bqhd,bkhd->bhk", query, key) / math.sqrt(query.shape[-1])
        return attention.softmax(-1).mean(1)


def scorer(size: Size, patch: int, side: int, width: int, layers: int, heads: int) -> Scorer:
    """A scorer beside an encoder of these sizes: `base` is as large as the encoder, as in [S0]; `small` sees patches of
    4x4 averaged pixels through two blocks of width 32."""
    if size == "base":
        return Scorer(patch, side, width, layers, heads, None)
    return Scorer(patch, side, 32, 2, 2, 4 if patch % 4 == 0 else None)
