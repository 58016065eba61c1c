"""Training a network before it serves in a link: a MAE or a detector, on pictures that need no receiver.

What is trained depends on nothing but the options, the pictures and the step: every step has a random stream of its
own, so that a training which was killed and resumed ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedsem.data.cache import data_folder
from fedsem.data.dataset import Dataset, DatasetOptions, Split
from fedsem.errors import FedsemError, ScenarioError
from fedsem.files import reading, replace_file
from fedsem.models.detector_loss import detector_loss
from fedsem.models.fcos import Fcos
from fedsem.models.mae import Mae
from fedsem.models.mae_loss import mae_loss
from fedsem.models.pretrained import EMBEDDED, WEIGHTS, DetectorTraining, MaeTraining, Pretraining, save_network
from fedsem.scenario import Scenario
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


@dataclass(frozen=True)
class Wanted:
    """A network that a scenario wants trained on its own pictures.

    Attributes:
        kind: `mae` or `detector`.
        options: what it should be.
        path: the file that it is kept in, named by all that decides it.
    """

    kind: Literal["mae", "detector"]
    options: MaeTraining | DetectorTraining
    path: Path

    def untrained(self, dataset: Dataset) -> Mae | Fcos:
        """The network as it begins.

        Raises:
            ScenarioError: the patches do not divide the pictures.
        """
        with Stream(self.options.training.seed).child("pretrain", "initialise").fork():
            if isinstance(self.options, DetectorTraining):
                return Fcos(dataset.categories)
            architecture, side = self.options.architecture, dataset.train.images.shape[-1]
            if dataset.train.images.shape[-2] != side or side % architecture.patch:
                raise ScenarioError(
                    f"link.encoder.pretrained.architecture.patch: patches of {architecture.patch} pixels do not divide "
                    f"pictures of {dataset.train.images.shape[-2]}x{side}."
                )
            return Mae(architecture.config(side))

    def train(self, data: DatasetOptions, dataset: Dataset, device: torch.device, progress: Progress) -> None:
        """Train it and write its file.

        Raises:
            FedsemError: the loss became NaN or infinite.
            OutputError: the file cannot be written.
        """
        network = self.untrained(dataset).to(device)

        def loss(split: Split, images: Tensor, generator: torch.Generator) -> Tensor:
            if isinstance(network, Mae):
                return mae_loss(network, images, generator)
            assert split.objects is not None
            return detector_loss(network, images, split.objects, generator)

        folder = self.path.with_suffix("")
        curve = pretrain(network, loss, self.options.training, data, folder, device, progress)
        about: dict[str, Any] = {**self.options.model_dump(mode="json"), "data": data_key(data), "loss": curve}
        if isinstance(self.options, MaeTraining):
            about["image_size"] = int(dataset.train.images.shape[-1])
        else:
            about["categories"] = list(dataset.categories)
        save_network(network, about, self.path)
        shutil.rmtree(folder)


def wanted(scenario: Scenario, dataset: Dataset) -> tuple[Scenario, list[Wanted]]:
    """The networks that a scenario wants trained, and the scenario with their files in their place."""
    found: list[Wanted] = []

    def named(kind: Literal["mae", "detector"], plugin: Any) -> Any:
        if not isinstance(getattr(plugin, "pretrained", None), (MaeTraining, DetectorTraining)):
            return plugin
        one = Wanted(kind, plugin.pretrained, _path(kind, plugin.pretrained, scenario.data, dataset))
        found.append(one)
        return plugin.model_copy(update={"pretrained": str(one.path)})

    link = scenario.link.model_copy(update={"encoder": named("mae", scenario.link.encoder)})
    tasks = {name: named("detector", task) for name, task in scenario.tasks.items()}
    return (scenario.model_copy(update={"link": link, "tasks": tasks}) if found else scenario), found


def weights_of(scenario: Scenario) -> dict[str, str]:
    """Hashes of the files of trained networks that a scenario names: the same name may hold other weights tomorrow. A
    file that is to be trained is named by all that decides it."""
    found = {}
    for kind, plugin in (("mae", scenario.link.encoder), *(("detector", task) for task in scenario.tasks.values())):
        name = getattr(plugin, "pretrained", None)
        path = WEIGHTS / EMBEDDED[kind] if name == "embedded" else Path(str(name))
        files = [path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else []
        if isinstance(name, str) and files and path.parent != data_folder() / "pretrained":
            digest = hashlib.blake2b(digest_size=8)
            for file in (file for file in files if file.is_file()):
                digest.update(f"{file.name} ".encode() + hashlib.blake2b(file.read_bytes()).digest())
            found[f"{kind} {name}"] = digest.hexdigest()
    return found


def data_key(data: DatasetOptions) -> dict[str, Any]:
    """What the pictures of a pretraining depend on: not who holds them, nor, where scenes are composed, how many the
    splits have."""
    left_out = {"partition", "train_images", "test_images", "train_scenes", "test_scenes"}
    options = {key: value for key, value in data.model_dump(mode="json").items() if key not in left_out}
    return {"kind": data.kind, **options}


def _path(kind: str, options: MaeTraining | DetectorTraining, data: DatasetOptions, dataset: Dataset) -> Path:
    here = Path(__file__).parent
    sources = ["pretraining.py", *(f"models/{name}.py" for name in ("mae", "mae_loss", "fcos", "detector_loss"))]
    if data.composes:
        sources += [f"data/{data.kind}.py", "data/digits.py"]
    code = hashlib.blake2b(b"".join((here / name).read_bytes() for name in sources), digest_size=8).hexdigest()
    pictures = data_key(data) if data.composes else dataset.train.fingerprint
    libraries = {name: version(name) for name in ("torch", "torchvision", "transformers")}
    key = json.dumps([kind, options.model_dump(mode="json"), pictures, code, libraries], sort_keys=True)
    return (
        data_folder() / "pretrained" / f"{kind}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"
    )


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
