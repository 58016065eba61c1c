"""Picture files to arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from fedsem.errors import DataError


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


def decode_pictures(files: Sequence[Path], size: int) -> np.ndarray:
    """Decode picture files to uint8 (N, 3, size, size), each as `decode_picture` does.

    Raises:
        DataError: one of them is not a picture, or is damaged.
    """
    images = np.empty((len(files), 3, size, size), np.uint8)
    for i, file in enumerate(files):
        try:
            images[i] = decode_picture(file, size)
        except ValueError as error:
            raise DataError(f"'{file}' is {error}; repair or remove the file.") from error
    return images


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # PIL's own conversion clips at 255.
        gray = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
