"""Training a network before it serves in a link: a MAE or a detector, on pictures that need no receiver.

What is trained depends on nothing but the options, the pictures and the step: every step has a random stream of its
own, so that a training which was killed and resumed ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedsem.data.dataset import DatasetOptions, Split
from fedsem.errors import FedsemError
from fedsem.files import reading, replace_file
from fedsem.models.pretrained import Pretraining
from fedsem.streams import Stream

FRESH = 512
"""Scenes composed at a time, where a data set composes them."""
SAVED_EVERY = 250
"""Steps between two checkpoints."""

Loss = Callable[[Split, Tensor, torch.Generator], Tensor]
"""Called with the pictures of a step and all that is known of them, the pictures (B, C, H, W) in [0, 1] on the device,
and a generator on the CPU."""
Progress = Callable[[int, int], None]
"""Called with steps done and their number."""


def pretrain(
    network: nn.Module,
    loss: Loss,
    options: Pretraining,
    data: DatasetOptions,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> list[float]:
    """Train a network in place; go on where a checkpoint in `folder` ends.

    Args:
        network: with the weights that it begins with.
        loss: what is minimised.
        options: of the training.
        data: where the pictures come from: fresh scenes, or else the training split.
        folder: for checkpoints.
        device: where to train; the network lies there.
        progress: told how far it is.

    Returns:
        the mean loss of each span of `SAVED_EVERY` steps.

    Raises:
        FedsemError: the loss became NaN or infinite.
    """
    stream = Stream(options.seed).child("pretrain")
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), options.lr, betas=(0.9, 0.95), weight_decay=options.weight_decay, fused=True
    )
    done, curve = _restore(trained, optimizer, folder)
    recent: list[Tensor] = []
    for step, split in _batches(data, options, stream, done):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _shape(step / options.steps)
        images = torch.tensor(split.images, device=device).float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            value = loss(split, images, stream.child("step", step).torch())
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        recent.append(value.detach())
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == options.steps:
            curve.append(float(torch.stack(recent).mean()))
            recent.clear()
            if not math.isfinite(curve[-1]):
                raise FedsemError(f"Pretraining diverged before step {step + 1}: the loss is {curve[-1]}; lower 'lr'.")
            _save(trained, optimizer, step + 1, curve, folder)
            progress(step + 1, options.steps)
    return curve


def _shape(progress: float) -> float:
    return progress / 0.03 if progress < 0.03 else 0.5 * (1 + math.cos(math.pi * (progress - 0.03) / 0.97))


def _batches(data: DatasetOptions, options: Pretraining, stream: Stream, done: int) -> Iterator[tuple[int, Split]]:
    """The pictures of each step from `done` on."""
    fixed = None if data.composes else data.load().train
    count = max(1, (FRESH * options.passes if fixed is None else len(fixed)) // options.batch)
    chunk, order, pictures = -1, np.empty(0, np.int64), fixed
    for step in range(done, options.steps):
        if step // count != chunk:
            chunk = step // count
            random = stream.child("order", chunk).numpy()
            if fixed is None:
                pictures = data.fresh(np.arange(chunk * FRESH, (chunk + 1) * FRESH))
                order = np.concatenate([random.permutation(FRESH) for _ in range(options.passes)])
            else:
                order = random.permutation(len(fixed))
        assert pictures is not None
        start = step % count * options.batch
        yield step, pictures.take(order[start : start + options.batch])


def _save(
    trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int, curve: list[float], folder: Path
) -> None:
    content = {"step": torch.tensor(step), "curve": torch.tensor(curve, dtype=torch.float64)}
    for name, parameter in trained.items():
        content[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for entry, value in optimizer.state[parameter].items():
            content[f"{entry}/{name}"] = value.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "checkpoint.safetensors", save(content))


@torch.no_grad()
def _restore(
    trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> tuple[int, list[float]]:
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        return 0, []
    with reading(path):
        content = load_file(path)
        for name, parameter in trained.items():
            parameter.copy_(content[f"weight/{name}"])
            optimizer.state[parameter] = {
                entry: content[f"{entry}/{name}"].to(parameter.device) for entry in ("step", "exp_avg", "exp_avg_sq")
            }
        return int(content["step"]), content["curve"].tolist()
