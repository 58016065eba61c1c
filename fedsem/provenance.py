"""Which code computed a stage: a hash of the sources that decide its result.

A result that mixes two versions of the code belongs to neither; the hash is written beside each stage and compared
before the stage is continued or taken by another run.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedsem.plan import Plan
from fedsem.registry import Options, find

_HERE = Path(__file__).parent
_TRAINING = (
    "channels", "data", "federation", "hooks", "link.py", "local_step.py", "models", "plan.py", "poisoning.py",
    "sanitising.py", "scenario.py", "stepping.py", "streams.py", "tasks", "training.py", "trial.py", "units.py",
)  # fmt: skip
_LIBRARIES = (
    *("flwr-datasets", "numpy", "pillow", "pycocotools", "scikit-learn", "scipy", "torch", "torchattacks"),
    *("torchmetrics", "torchvision", "transformers"),
)
"""Whose version can change a number: random streams, kernels, partitions, how a JPEG is decoded, attacks."""


def training_code(plan: Plan) -> str:
    """Hash of what decides a training: fedsem's own sources of floors 0 to 3 and the federation, the plug-ins that the
    scenario uses in training wherever they come from, and the versions of the numerical libraries."""
    content = plan.scenario
    active = [content.attacks[name] for name in content.use.attacks]
    active += [content.defenses[name] for name in content.use.defenses]
    return _hash(_TRAINING, [content.data, content.link, content.channels, content.tasks, content.federation, active])


def evaluation_code(plan: Plan) -> str:
    """Hash of what decides an evaluation: all of `training_code`, the evaluation's sources, and the attacks."""
    # Grids name the Gaussian noise without a plug-in of the scenario.
    return _hash(
        (*_TRAINING, "adaptive.py", "evaluation", "repairing.py", "surrogate.py"),
        [plan.scenario, find("attack", "noise").model_validate({})],
    )


def _hash(parts: Iterable[str], options: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    own = {str(file.relative_to(_HERE)): file for part in parts for file in _sources(_HERE / part)}
    for name, file in sorted((own | _plugin_files(options)).items()):
        digest.update(f"{name} {_digest(file)}\n".encode())
    for name in (*_LIBRARIES, *sorted({name for plugin in _plugins(options) for name in plugin.distributions})):
        digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()


def _sources(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else path.rglob("*.py")


def _plugin_files(options: Any) -> dict[str, Path]:
    """Files of the plug-ins in use, of the classes that they are derived from, and of what these take from the other
    modules of their package, by module."""
    wanted = {cls.__module__ for plugin in _plugins(options) for cls in plugin.__mro__ if issubclass(cls, Options)}
    files: dict[str, Path] = {}
    while wanted:
        name = wanted.pop()
        # A class of a notebook has no file: nothing of it can be compared.
        file = getattr(sys.modules[name], "__file__", None)
        if file and name not in files:
            files[name] = Path(file)
            used = {getattr(value, "__module__", None) for value in vars(sys.modules[name]).values()}
            package = name.rpartition(".")[0]
            wanted |= {
                other for other in used if isinstance(other, str) and package and other.startswith(f"{package}.")
            }
    return files


@cache
def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def _plugins(value: Any) -> Iterator[type[Options]]:
    """Classes of all plug-ins below a value of the scenario."""
    if isinstance(value, Options):
        yield type(value)
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for entry in value:
            yield from _plugins(entry)
