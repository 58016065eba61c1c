"""Networks that were trained before: shipped, trained in the stage `pretrain`, or of Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fedsem.errors import DataError
from fedsem.files import replace_file
from fedsem.models.fcos import Fcos
from fedsem.models.mae import Mae, MaeArchitecture
from fedsem.strict import Strict

WEIGHTS = Path(__file__).parent / "weights"
"""What ships: half-precision safetensors, each with a model card beside it."""
EMBEDDED = {"mae": "mae_digit_scenes.safetensors", "detector": "fcos_digit_scenes.safetensors"}


def _absolute(name: str) -> str:
    """Files and folders by their whole path: workers and a resumed run may have another current directory."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


Named = Annotated[str, AfterValidator(_absolute)]
"""`embedded`, a name on the Hugging Face hub, a folder in its format, or a file of the stage `pretrain`."""


class Pretraining(Strict):
    """How a network is trained before it serves: AdamW (betas 0.9 and 0.95), a linear rise of the learning rate over
    the first 3 % of the steps and a cosine fall to zero, gradients clipped to norm 1.

    Attributes:
        steps: of the optimiser.
        batch: pictures per step.
        lr: the greatest learning rate.
        weight_decay: of AdamW.
        passes: how often freshly composed scenes are used before new ones are composed.
        precision: of the forward pass; weights and the optimiser are float32.
        seed: of the training, whatever the scenario's seeds are.
    """

    steps: PositiveInt = Field(description="of the optimiser")
    batch: PositiveInt = Field(16, le=4096)
    lr: PositiveFloat = 2e-3
    weight_decay: PositiveFloat = 0.05
    passes: PositiveInt = 4
    precision: Literal["float32", "bf16"] = "float32"
    seed: NonNegativeInt = 0


class MaeTraining(Strict):
    """A MAE that is trained in the stage `pretrain`, on the scenario's own pictures.

    Attributes:
        architecture: its sizes.
        training: how.
    """

    architecture: MaeArchitecture = MaeArchitecture()
    training: Pretraining


class DetectorTraining(Strict):
    """A small FCOS that is trained in the stage `pretrain`, on the scenario's own pictures and boxes.

    Attributes:
        training: how.
    """

    training: Pretraining


def text_or_mapping(value: object) -> str | None:
    """Which branch of `pretrained` a value is meant for."""
    if isinstance(value, str):
        return "name"
    return "training" if isinstance(value, (Mapping, Strict)) else None


_stand_ins: dict[str, nn.Module] = {}


def stand_in(name: str, network: nn.Module | None) -> None:
    """Let an untrained network stand for a file that is to be trained, while a scenario is checked; None ends that."""
    if network is None:
        _stand_ins.pop(name, None)
    else:
        _stand_ins[name] = network.eval().requires_grad_(False)


def load_mae(name: str, device: torch.device | str = "cpu") -> Mae:
    """A frozen MAE, loaded once in a process.

    Raises:
        DataError: it cannot be found or read.
    """
    if isinstance(waiting := _stand_ins.get(name), Mae):
        return waiting
    return _load_mae(name, str(device))


def load_detector(name: str, device: torch.device | str = "cpu") -> tuple[nn.Module, tuple[str, ...]]:
    """A frozen detector and the names of its categories, loaded once in a process.

    Raises:
        DataError: it cannot be found or read.
    """
    if isinstance(waiting := _stand_ins.get(name), Fcos):
        return waiting, waiting.categories
    return _load_detector(name, str(device))


@lru_cache(maxsize=8)
def _load_mae(name: str, device: str) -> Mae:
    path = WEIGHTS / EMBEDDED["mae"] if name == "embedded" else Path(name)
    if path.suffix == ".safetensors":
        about = _about(path)
        with _no_draws():
            mae = Mae(MaeArchitecture.model_validate(about["architecture"]).config(about["image_size"]))
        _fill(mae, path)
    else:
        with _no_draws():
            mae = _from_hub(name)
    return mae.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=8)
def _load_detector(name: str, device: str) -> tuple[nn.Module, tuple[str, ...]]:
    path = WEIGHTS / EMBEDDED["detector"] if name == "embedded" else Path(name)
    if path.suffix == ".safetensors":
        categories = tuple(_about(path)["categories"])
        with _no_draws():
            detector: nn.Module = Fcos(categories)
        _fill(detector, path)
    else:
        from fedsem.models.detr import load_detr

        with _no_draws():
            detector, categories = load_detr(name)
    return detector.eval().requires_grad_(False).to(device), categories


def _no_draws() -> AbstractContextManager[None]:
    """Construction draws initial weights that are overwritten at once. Whoever loads first, perhaps while its own
    weights are drawn, must not draw others than who loads next and is given the same network."""
    return torch.random.fork_rng(devices=[])


def save_network(network: nn.Module, about: dict, path: Path) -> None:
    """Write the trained parameters of a network in half precision, with what is needed to build it again.

    Args:
        network: the network; parameters that are not trained are not written.
        about: `architecture` and `image_size` of a MAE, `categories` of a detector; and whatever else readers should
            know.
        path: a .safetensors file.

    Raises:
        OutputError: it cannot be written.
    """
    content = {
        name: value.detach().half().cpu().contiguous()
        for name, value in network.named_parameters()
        if value.requires_grad
    }
    replace_file(path, save(content, {"about": json.dumps(about, sort_keys=True)}))


def _about(path: Path) -> dict:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["about"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(
            f"'{path}' is no network that fedsem has trained ({error}); name one that a run's stage 'pretrain' left in "
            "its folder."
        ) from error


def _fill(network: nn.Module, path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            content = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # no mapping
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        missing, unexpected = network.load_state_dict(content, strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(f"The network in '{path}' cannot be read ({str(error).splitlines()[0]}).") from error
    if unexpected or trained & set(missing):
        raise DataError(f"The network in '{path}' has other parts than its description says.")


def _from_hub(name: str) -> Mae:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    try:
        config = ViTMAEConfig.from_pretrained(name)
        weights = ViTMAEForPreTraining.from_pretrained(name).state_dict()
    except (OSError, ValueError) as error:
        raise DataError(
            f"The MAE '{name}' cannot be loaded ({str(error).splitlines()[0]}); download it first "
            "(huggingface-cli download), name its folder, or use pretrained: embedded."
        ) from error
    if config.norm_pix_loss:
        raise DataError(
            f"The MAE '{name}' paints patches of normalised pixels (norm_pix_loss), whose mean and contrast no "
            "receiver knows; use one that was trained without."
        )
    mae = Mae(config)
    mae.vitmae.load_state_dict(weights)
    return mae
