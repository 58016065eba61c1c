"""The folder of one run: where its results lie, what is finished, and what it ran on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedsem.errors import OutputError
from fedsem.files import exclusive, read_json, reading, replace_file
from fedsem.scenario import Scenario, write_scenario

PACKAGES = ("fedsem", "flwr", "ray", "torch", "torchvision", "torchattacks", "transformers", "numpy", "pandas")

CODE = "code.json"


class Store:
    """A run's folder.

    Attributes:
        folder: `<out>/<scenario>/<run id>`.
        manifest: what stands in `manifest.json`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(cls, scenario: Scenario, out: Path, device: str) -> Store:
        """Make a new folder; run ids never collide, because the folder must not exist.

        Raises:
            OutputError: it cannot be written.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return cls.begin(scenario, out / scenario.name / f"{stamp}-{secrets.token_hex(3)}", device)

    @classmethod
    def begin(cls, scenario: Scenario, folder: Path, device: str) -> Store:
        """Make this folder, which must not exist.

        Raises:
            OutputError: it cannot be written.
        """
        out = folder.parents[1]
        try:
            folder.mkdir(parents=True, exist_ok=False)
            store = cls(folder, _manifest(scenario, device))
            write_scenario(scenario, folder / "scenario.yaml")
            store.write_manifest()
        except (OSError, OutputError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise OutputError(
                f"Results cannot be written to '{out}' ({reason}); choose another folder with --out."
            ) from error
        return store

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The folder of a run that was started before.

        Raises:
            OutputError: it is none, or its manifest cannot be read.
        """
        manifest = folder / "manifest.json"
        if not manifest.is_file() or not (folder / "scenario.yaml").is_file():
            raise OutputError(f"'{folder}' is not the folder of a run: it has no manifest.json and scenario.yaml.")
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            if missing := [key for key in ("git", "stages", "status") if key not in content]:
                raise ValueError(f"it has no '{missing[0]}'")
            return cls(folder, content)
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(
                f"The manifest of the run in '{folder}' cannot be read ({error}); start a new run."
            ) from error

    @property
    def run_id(self) -> str:
        return self.folder.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For the block, no other process may run in this folder.

        Raises:
            OutputError: another one does.
        """
        with exclusive(self.folder / "run.log", f"The run in '{self.folder}' is still going on"):
            yield

    def write_manifest(self, **changes: Any) -> None:
        """Change entries of the manifest and write it."""
        self.manifest |= changes
        replace_file(self.folder / "manifest.json", json.dumps(self.manifest, indent=2).encode())

    def stage(self, kind: str, key: str, label: str) -> Path:
        """The folder of a stage; its name ends with the hash of what decides its result."""
        digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        return self.folder / kind / f"{label}-{digest}"

    def evaluation(self, cell: int, seed: int) -> Path:
        """The folder of a finished evaluation.

        Raises:
            OutputError: it is not finished.
        """
        found = list(self.folder.glob(f"stages/evaluate-{label_of(cell, seed)}-*/points.json"))
        if len(found) != 1:
            raise OutputError(
                f"The run in '{self.folder}' is not finished; finish it with: fedsem run --resume {self.folder}"
            )
        return found[0].parent

    def claim(self, folder: Path, code: str) -> None:
        """Make a stage's folder and write which code computes it: its hash, and the revision for people.

        Raises:
            OutputError: other code has begun it.
        """
        if not any(folder.glob("*.json")):
            replace_file(folder / CODE, json.dumps({"hash": code, "git": self.manifest["git"]}).encode())
        elif (before := code_of(folder)["hash"]) != code:
            raise OutputError(
                f"'{self.folder}' was begun with other code ({before}, now {code}): another version of fedsem, of a "
                "plug-in or of a numerical library. Resume it with that version, or start a new run."
            )

    @contextmanager
    def timed(self, stage: str, cell: str, seed: int | None) -> Iterator[None]:
        """Add the wall time of the block to the manifest."""
        start = time.perf_counter()
        yield
        entry = {"stage": stage, "cell": cell, "seed": seed, "seconds": round(time.perf_counter() - start, 3)}
        self.write_manifest(stages=[*self.manifest["stages"], entry])


def label_of(cell: int, seed: int) -> str:
    """What stages of a cell (from 0) and a seed are called."""
    return f"cell{cell}-seed{seed}"


def code_of(folder: Path) -> dict[str, str | None]:
    """Hash and revision of the code that computed a stage; the hash is None where it was not written down."""
    file = folder / CODE
    if not file.is_file():
        return {"hash": None, "git": None}
    content = read_json(file, dict)
    with reading(file):
        return {"hash": content["hash"], "git": content["git"]}


def now() -> str:
    """The time as ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _manifest(scenario: Scenario, device: str) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "fedsem": version("fedsem"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "seeds": list(scenario.seeds),
        "engine": scenario.compute.engine if scenario.federation.kind == "flower" else "none",
        "device": device,
        "hardware": hardware(),
        "git": _git(),
        "command": _command(),
        "started": now(),
        "finished": None,
        "status": "running",
        "stages": [],
    }


def _command() -> str:
    """The command line that started this run, as a person would type it."""
    name = Path(sys.argv[0]).name
    return shlex.join(["fedsem" if name == "__main__.py" else name, *sys.argv[1:]])


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPU of this machine."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _git() -> str | None:
    """Revision of fedsem's own checkout, with a + where a Python file was changed or added; None outside a checkout."""
    here = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Installed into an environment inside somebody else's repository, this file is not one of theirs.
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
