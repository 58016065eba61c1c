"""The multi-task scoring network of [S0] III-A: which patches matter to the tasks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer

from fedsem.models.mae import Mae, sine_cosine
from fedsem.models.places import uniform_scores

Size = Literal["base", "small"]


class Scorer(nn.Module):
    """A vision transformer that ends in attention: s_j = (1/H) sum_h softmax_j(q_CLS . k_j / sqrt d_h), [S0] III-A.

    The last block has no values, MLP or normalisation behind its attention: the weights that its class token gives to
    the patches, a softmax in each head, averaged over heads, are the scores. Blocks before it are the usual ones
    (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021). The network sees standardised pixels.

    Places, which are learnt, are added twice: to the patches, and again before the last block, where an eighth of the
    channels begins with the place's rank in an even grid. Where patches are worth the same, their scores then differ by
    it at once, and what is kept of them is spread out.

    Args:
        patch: pixels per side of a patch.
        side: patches per side of the picture.
        config: of the transformer, as of a MAE's encoder; its layers count the scoring block.
        pooled: patches are averaged to `pooled` x `pooled` pixels first; None: not.
    """

    def __init__(self, patch: int, side: int, config: ViTMAEConfig, pooled: int | None) -> None:
        super().__init__()
        width, layers = int(config.hidden_size), int(config.num_hidden_layers)
        self.patch, self.heads, self.pooled = patch, int(config.num_attention_heads), pooled
        self.embed = nn.Linear(3 * (pooled or patch) ** 2, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(sine_cosine(side, width))
        config._attn_implementation = "eager"  # see Mae
        self.blocks = nn.Sequential(*(ViTMAELayer(config) for _ in range(layers - 1)))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        rank = uniform_scores(side).argsort().argsort() / (side**2 - 1)
        place = torch.zeros(1, 1 + side**2, width)
        place[0, 1:, -width // 8 :] = (2 * rank - 1).unsqueeze(1)
        self.place = nn.Parameter(place)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)

    @torch.no_grad()
    def begin_as(self, mae: Mae) -> None:
        """Take over what the encoder of a MAE of the same sizes knows of pictures: all but the scoring block."""
        embeddings = mae.vitmae.vit.embeddings
        projection = embeddings.patch_embeddings.projection
        assert projection.bias is not None
        self.embed.weight.copy_(projection.weight.flatten(1))
        self.embed.bias.copy_(projection.bias)
        self.class_token.copy_(embeddings.cls_token)
        self.position.copy_(embeddings.position_embeddings)
        for block, layer in zip(self.blocks, mae.vitmae.vit.layers[:-1], strict=True):
            block.load_state_dict(layer.state_dict())
        self.norm.load_state_dict(mae.vitmae.vit.layernorm.state_dict())

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardised pixels (B, 3, H, W) -> scores (B, L), positive, of sum 1."""
        p, n = self.patch, pixels.shape[-1] // self.patch
        if self.pooled is not None:
            pixels, p = F.avg_pool2d(pixels, self.patch // self.pooled), self.pooled
        patches = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), n * n, -1)
        tokens = torch.cat([self.class_token.expand(len(pixels), -1, -1), self.embed(patches)], dim=1) + self.position
        tokens = self.norm(self.blocks(tokens)) + self.place
        query = self.query(tokens[:, :1]).unflatten(-1, (self.heads, -1))
        key = self.key(tokens[:, 1:]).unflatten(-1, (self.heads, -1))
        attention = torch.einsum("bqhd,bkhd->bhk", query, key) / math.sqrt(query.shape[-1])
        return attention.softmax(-1).mean(1)


def scorer(size: Size, mae: Mae) -> Scorer:
    """A scorer beside a MAE: `base` is as large as its encoder, as in [S0], and begins as a copy of it; `small` sees
    patches of 4x4 averaged pixels through two blocks of width 32."""
    if size == "small":
        options = ViTMAEConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
        return Scorer(mae.patch, mae.side, options, 4 if mae.patch % 4 == 0 else None)
    base = Scorer(mae.patch, mae.side, mae.vitmae.config, None)
    base.begin_as(mae)
    return base
