"""JPEG compression of the image before it is encoded."""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.transform import Transform
from fedsem.plan import Plan
from fedsem.registry import register


@register("defense", "jpeg")
class Jpeg(Transform):
    """The image is written as JPEG and read again, u -> decode(encode(round(255 u))) / 255 (Dziugaite, Ghahramani and
    Roy, A Study of the Effect of JPG Compression on Adversarial Images, 2016; Guo et al., Countering Adversarial Images
    Using Input Transformations, 2018): the transmitter encodes what is left of it.

    An adversary who knows it differentiates as if nothing was compressed.

    Attributes:
        quality: of the codec, from 1 to 100.
    """

    quality: Annotated[int, Field(ge=1, le=100)] = 75

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if plan.images.shape[0] not in (1, 3):
            raise ScenarioError(
                f"In the scenario, '{path}': JPEG has 1 or 3 colours, not {plan.images.shape[0]}; use another defense."
            )

    def transform(self, signal: Tensor, drawn: Tensor) -> Tensor:
        pixels = (signal.detach() * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        read = torch.from_numpy(np.stack([self._read(image) for image in pixels])).permute(0, 3, 1, 2)
        return read.to(signal.device, signal.dtype) / 255

    def _read(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (H, W, C) as they are read again."""
        file = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, "JPEG", quality=self.quality)
        with Image.open(file) as image:
            return np.asarray(image).reshape(pixels.shape)
