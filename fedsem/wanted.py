"""Networks that a scenario wants trained before its link: which, from what, and the files that they are kept in."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedsem.data.cache import data_folder
from fedsem.data.dataset import Dataset, DatasetOptions, Split
from fedsem.errors import ScenarioError
from fedsem.files import exclusive
from fedsem.models.detector_loss import detector_loss
from fedsem.models.fcos import Fcos
from fedsem.models.mae import Mae
from fedsem.models.mae_loss import mae_loss
from fedsem.models.pretrained import EMBEDDED, WEIGHTS, DetectorTraining, MaeTraining, save_network
from fedsem.pretraining import Progress, pretrain
from fedsem.scenario import Scenario
from fedsem.streams import Stream


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
            OutputError: the file cannot be written, or another run is training it.
        """
        with exclusive(self.path.with_suffix(".lock"), f"'{self.path}' is being trained by another run"):
            if not self.path.is_file():  # else that run has just ended
                self._train(data, dataset, device, progress)

    def _train(self, data: DatasetOptions, dataset: Dataset, device: torch.device, progress: Progress) -> None:
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
    sources = [
        "pretraining.py",
        "wanted.py",
        *(f"models/{name}.py" for name in ("mae", "mae_loss", "fcos", "detector_loss")),
    ]
    if data.composes:
        sources += [f"data/{data.kind}.py", "data/digits.py"]
    code = hashlib.blake2b(b"".join((here / name).read_bytes() for name in sources), digest_size=8).hexdigest()
    pictures = data_key(data) if data.composes else dataset.train.fingerprint
    libraries = {name: version(name) for name in ("torch", "torchvision", "transformers")}
    key = json.dumps([kind, options.model_dump(mode="json"), pictures, code, libraries], sort_keys=True)
    return (
        data_folder() / "pretrained" / f"{kind}-{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.safetensors"
    )
