"""The masked auto-encoder of [S0]: Hugging Face's ViTMAE, its patches chosen by us.

Of an image's L patches the encoder reads the kept ones alone; the decoder paints the whole picture from their features.
He et al., Masked Autoencoders Are Scalable Vision Learners, 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from fedsem.strict import Strict

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Pixels are standardised with them, as in every published ViTMAE checkpoint."""


class MaeArchitecture(Strict):
    """Sizes of a MAE that is trained here. The defaults are those of the shipped one, 1.4 million parameters.

    Attributes:
        patch: pixels per side of a patch; must divide the picture's side.
        width, layers, heads: of the encoder; the MLPs are four times as wide.
        decoder_width, decoder_layers, decoder_heads: of the decoder.
    """

    patch: PositiveInt = Field(16, le=64)
    width: PositiveInt = Field(128, le=4096)
    layers: PositiveInt = Field(4, le=64)
    heads: PositiveInt = 2
    decoder_width: PositiveInt = Field(128, le=4096)
    decoder_layers: PositiveInt = Field(2, le=64)
    decoder_heads: PositiveInt = 2

    @model_validator(mode="after")
    def _widths_divide(self) -> MaeArchitecture:
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) % (4 * getattr(self, heads)):
                raise ValueError(f"'{width}' must be a multiple of 4 times '{heads}' (sine-cosine positions, heads)")
        return self

    def config(self, image_size: int) -> ViTMAEConfig:
        """Hugging Face's configuration for square pictures of that size."""
        return ViTMAEConfig(
            image_size=image_size,
            patch_size=self.patch,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            decoder_hidden_size=self.decoder_width,
            decoder_num_hidden_layers=self.decoder_layers,
            decoder_num_attention_heads=self.decoder_heads,
            decoder_intermediate_size=4 * self.decoder_width,
        )


@dataclass(frozen=True)
class Kept:
    """Which patches of each image are kept.

    Attributes:
        index: int64 (B, K), numbers of the patches in 0..L - 1, the best first.
        count: int64 (B,), how many of them are meant; None where it is K for every image.
    """

    index: Tensor
    count: Tensor | None = None

    def valid(self) -> Tensor:
        """bool (B, K)."""
        place = torch.arange(self.index.shape[1], device=self.index.device)
        if self.count is None:
            return torch.ones_like(self.index, dtype=torch.bool)
        return place < self.count.unsqueeze(1)

    def mask(self, patches: int) -> Tensor:
        """bool (B, L): True where a patch is kept."""
        return torch.zeros(len(self.index), patches, dtype=torch.bool, device=self.index.device).scatter_reduce(
            1, self.index, self.valid(), "amax"
        )


class Mae(nn.Module):
    """ViTMAE as transmitter and receiver: `encode` and `decode`.

    `encode` and `decode` drop tokens for real. `encode_gated` and `decode_gated` compute the same from gates in
    [0, 1], 1 for kept patches and 0 for dropped ones, and pass gradients to the gates of both.

    Args:
        config: of the ViTMAE.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        # The quick attention kernels of the CPU are slower than the plain one in bfloat16, backwards by far.
        config._attn_implementation = "eager"
        self.vitmae = ViTMAEForPreTraining(config)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)
        assert isinstance(config.patch_size, int)
        assert isinstance(config.image_size, int)
        self.patch = config.patch_size
        self.side = config.image_size // self.patch
        self.patches = self.side**2
        self.width, self.layers, self.heads = (
            int(config.hidden_size),
            int(config.num_hidden_layers),
            int(config.num_attention_heads),
        )
        # transformers 5 leaves both at zero in a new network, which then cannot tell one patch from another.
        for position in (self.vitmae.vit.embeddings.position_embeddings, self.vitmae.decoder.decoder_pos_embed):
            position.requires_grad_(False).copy_(sine_cosine(self.side, position.shape[-1]))
        nn.init.normal_(self.vitmae.decoder.mask_token, std=config.initializer_range)
        nn.init.normal_(self.vitmae.vit.embeddings.cls_token, std=config.initializer_range)

    def patchify(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> patches (B, L, C p p), row by row."""
        p = self.patch
        return images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of `patchify`."""
        n, p = self.side, self.patch
        return patches.view(-1, n, n, 3, p, p).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, n * p, n * p)

    def encode(self, images: Tensor, kept: Kept) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> features (B, 1 + K, D) of the class token and the kept patches; those beyond
        `kept.count` are zero. Only kept patches are computed."""
        patches = _at(self._standardised(images), kept.index)
        features = self._encoder(self._embedded(patches, kept.index), _ignore(kept))
        return features if kept.count is None else features * _with_class(kept.valid()).unsqueeze(-1)

    def encode_gated(self, images: Tensor, gate: Tensor) -> Tensor:
        """Features (B, 1 + L, D) of all patches, of which each attends to those that the gate (B, L) keeps."""
        patches = self._standardised(images)
        everywhere = torch.arange(self.patches, device=images.device).expand(len(images), -1)
        # As a factor on the attention's exponentials, a gate of 1 changes nothing and one of 0 drops the token.
        mask = F.pad(gate, (1, 0), value=1.0).clamp_min(1e-12).log()
        return self._encoder(self._embedded(patches, everywhere), mask[:, None, None, :])

    def decode(self, features: Tensor, kept: Kept) -> Tensor:
        """Features (B, 1 + K, D) -> pictures (B, 3, H, W), painted whole, since the receiver has no pixels; values may
        lie a little outside [0, 1]."""
        decoder = self.vitmae.decoder
        embedded = decoder.decoder_embed(features)
        tokens = decoder.mask_token.to(embedded.dtype).expand(len(features), self.patches + 1, -1)
        # Places beyond the count all write the mask token to one spare place behind the last patch.
        place = torch.where(kept.valid(), kept.index, self.patches)
        spread = F.pad(tokens[:, 1:], (0, 0, 0, 1)).scatter(1, _wide(place, embedded), embedded[:, 1:])
        return self._picture(torch.cat([embedded[:, :1], spread[:, :-1]], dim=1))

    def decode_gated(self, features: Tensor, gate: Tensor) -> Tensor:
        """The same from `encode_gated`'s features: a gate of 0 leaves the decoder its mask token."""
        decoder = self.vitmae.decoder
        embedded = decoder.decoder_embed(features)
        g = F.pad(gate, (1, 0), value=1.0).unsqueeze(-1)
        return self._picture(g * embedded + (1 - g) * decoder.mask_token)

    def _standardised(self, images: Tensor) -> Tensor:
        return self.patchify((images - self.mean) / self.std)

    def _embedded(self, patches: Tensor, index: Tensor) -> Tensor:
        """Patches (B, K, C p p) -> tokens (B, 1 + K, D) with their positions, the class token first."""
        embeddings = self.vitmae.vit.embeddings
        projection = embeddings.patch_embeddings.projection
        tokens = F.linear(patches, projection.weight.flatten(1), projection.bias)
        position = embeddings.position_embeddings[0]
        tokens = tokens + position[1:][index]
        first = (embeddings.cls_token + position[:1]).expand(len(tokens), -1, -1)
        return torch.cat([first.to(tokens.dtype), tokens], dim=1)

    def _encoder(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.vitmae.vit.layers:
            tokens = layer(tokens, mask)
        return self.vitmae.vit.layernorm(tokens)

    def _picture(self, tokens: Tensor) -> Tensor:
        decoder = self.vitmae.decoder
        tokens = tokens + decoder.decoder_pos_embed
        for layer in decoder.decoder_layers:
            tokens = layer(tokens, None)
        patches = decoder.decoder_pred(decoder.decoder_norm(tokens))[:, 1:].float()
        # Hugging Face orders a patch's numbers by row, column, colour; `patchify` by colour, row, column.
        patches = patches.unflatten(-1, (self.patch**2, 3)).transpose(-1, -2).flatten(-2)
        return self.unpatchify(patches) * self.std + self.mean


def sine_cosine(side: int, width: int) -> Tensor:
    """Positions (1, 1 + side^2, width) in the layout of the published checkpoints: of the column the sines and cosines
    at frequencies 10000^(-4 i / width), then of the row; zero for the class token."""
    frequency = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64).unsqueeze(1) * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = wave.repeat(side, 1), wave.repeat_interleave(side, 0)
    return F.pad(torch.cat([column, row], dim=1), (0, 0, 1, 0)).float().unsqueeze(0)


def kept_patches(patches: int, mask_ratio: float) -> int:
    """Patches that stay at a mask ratio: L (1 - ratio), rounded to the nearest.

    At L = 196: 157, 118, 78 and 39 of ratios 0.2, 0.4, 0.6 and 0.8.
    """
    return math.floor(patches * (1 - mask_ratio) + 0.5)


def _ignore(kept: Kept) -> Tensor | None:
    """Additive attention mask (B, 1, 1, 1 + K) that hides what is beyond the count; None where nothing is."""
    if kept.count is None:
        return None
    hidden = ~_with_class(kept.valid())
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)[:, None, None, :]


def _with_class(valid: Tensor) -> Tensor:
    return F.pad(valid, (1, 0), value=True)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, _wide(index, values))
