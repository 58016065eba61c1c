"""One picture file to one array."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image


def decode_picture(file: Path | BinaryIO, size: int) -> np.ndarray:
    """Decode a picture to uint8 (3, size, size), red, green, blue.

    Gray is repeated, a palette is resolved, alpha is dropped, 16-bit gray keeps its upper 8 bits. A picture of another
    size is resized bilinearly (with antialiasing where it shrinks) without keeping its aspect ratio.

    Raises:
        ValueError: this is not a picture, or it is damaged.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            picture = _rgb(opened)
    except Exception as error:  # Damaged files make PIL raise almost anything (OSError, SyntaxError, struct.error).
        raise ValueError(f"not a readable picture: {error}") from error
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # PIL's own conversion clips at 255.
        gray = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
