"""(d) The encoder's cost over the mask ratio, and the scorer's share of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fedsem.data.digit_scenes import DigitScenes
from fedsem.models.encoder import ImageFormat
from fedsem.models.mae import Kept, kept_patches
from fedsem.models.mae_encoder import MaeOptions

IMAGES, REPEATS = 32, 5
FORMAT = ImageFormat((3, 224, 224), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time of a transmitter's parts for 32 scenes, one thread; ratios to the encoder without masking."""
    torch.set_num_threads(1)
    images = torch.tensor(DigitScenes().compose(np.arange(IMAGES), "test").images).float() / 255
    encoders = {size: MaeOptions(scorer=size).build(FORMAT).eval() for size in ("base", "small")}
    mae = encoders["base"].mae
    order = torch.rand(IMAGES, mae.patches, generator=torch.Generator().manual_seed(0)).argsort(1)
    parts: dict[str, Callable[[], Any]] = {}
    for ratio in (0.0, 0.2, 0.4, 0.6, 0.8):
        kept = Kept(order[:, : kept_patches(mae.patches, ratio)])
        parts[f"encoder, mask ratio {ratio}"] = lambda kept=kept: mae.encode(images, kept)  # type: ignore[misc]
    for size, encoder in encoders.items():
        parameters = sum(value.numel() for value in encoder.scorer.parameters())
        of_encoder = sum(value.numel() for value in mae.vitmae.vit.parameters())
        name = f"scorer {size} ({parameters / of_encoder:.0%} of the encoder's parameters)"
        parts[name] = lambda encoder=encoder: encoder.scores(images)  # type: ignore[misc]
    seconds = {name: _seconds(part) for name, part in parts.items()}
    whole = next(iter(seconds.values()))
    rows: list[dict[str, Any]] = [
        {"benchmark": "d: patches", "variant": name, "cpu_s": value, "ratio": value / whole}
        for name, value in seconds.items()
    ]
    rows[-1]["goal"] = "under 0.2"
    for name in list(seconds)[-2:]:
        share = seconds[name] / (seconds[name] + seconds["encoder, mask ratio 0.6"])
        variant = f"share of {name.partition(' (')[0]} in the transmitter's time at mask ratio 0.6"
        rows.append({"benchmark": "d: patches", "variant": variant, "ratio": share})
    return rows


@torch.no_grad()
def _seconds(part: Callable[[], Any]) -> float:
    part()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        part()
        times.append(time.process_time() - start)
    return float(np.median(times))
