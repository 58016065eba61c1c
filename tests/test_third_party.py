"""An attack in a package of somebody else's: installed with its entry point, it works in a scenario by name."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

COMMAND = Path(sys.executable).parent / "fedsem"
MODULE = '''"""Somebody's attack."""

from pydantic import PositiveFloat

from fedsem.hooks.budget import fill
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.units import l2_radius


@register("attack", "fog")
class Fog(Evasion):
    """Brightens every picture evenly, which no encoder should mind."""

    thickness: PositiveFloat = 1.0

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        site = problem.sites["input"]
        energy = self.thickness * l2_radius(site.energy, problem.psr).square()
        return {"input": fill(1.0 - site.clean, site, energy)}
'''
SCENARIO = """
name: foggy
seeds: [0]
compute: {engine: local, device: cpu}
data: {kind: digits, train_images: 60, test_images: 12}
link: {encoder: {kind: cnn, channel_uses: 8}}
channels: {down: {kind: awgn}}
tasks: {label: {kind: classification}}
receivers: {all: {count: 2, tasks: [label], channel: down}}
federation: {rounds: 1}
attacks:
  mist: {kind: fog, thickness: 0.5}
evaluation:
  draws: {attack: 1, score: 2}
  samples: 0
  grids:
    - {attacks: [none, mist], snr_db: [10], psr_db: [-10]}
"""
Fedsem = Callable[..., "subprocess.CompletedProcess[str]"]


def wheel(folder: Path) -> Path:
    """A wheel as a build tool writes it: one module, and an entry point in the group `fedsem.plugins`."""
    info = "somebodys_attacks-1.0.dist-info"
    files = {
        "somebodys_attacks/__init__.py": "",
        "somebodys_attacks/fog.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: somebodys-attacks\nVersion: 1.0\nRequires-Dist: fedsem\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[fedsem.plugins]\nsomebody = somebodys_attacks\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = folder / "somebodys_attacks-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, without a network."""
    folder = tmp_path_factory.mktemp("somebody")
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), str(wheel(folder))], check=True, timeout=120)
    (folder / "foggy.yaml").write_text(SCENARIO, encoding="utf-8")
    return target


@pytest.fixture
def fedsem(installed: Path) -> Fedsem:
    """The command as a person calls it who has the package beside fedsem, or, with `without`, has removed it."""

    def call(*arguments: str, site: Path = installed) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(part for part in (str(site), os.environ.get("PYTHONPATH", "")) if part)
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
        environment.pop("FEDSEM_DEBUG", None)
        return subprocess.run(
            [str(COMMAND), *arguments],
            cwd=installed.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_a_strangers_attack_runs_in_a_scenario_by_its_name(fedsem: Fedsem, installed: Path) -> None:
    result = fedsem("run", "foggy.yaml", "--out", "results")
    assert result.returncode == 0, result.stderr
    (path,) = (installed.parent / "results" / "foggy").glob("*/table.parquet")
    table = pd.read_parquet(path)
    attacked = table[(table["attack"] == "mist") & (table["metric"] == "accuracy") & (table["seed"] == 0)]
    assert len(attacked) == 1
    assert attacked["value"].notna().all()
    # Half of the budget, -10 dB, in every example: its own option has arrived.
    assert attacked["psr_achieved_db"].iloc[0] == pytest.approx(-13.01, abs=0.1)
    assert (table["attack"] == "none").any()


def test_it_is_listed_with_what_it_says(fedsem: Fedsem) -> None:
    result = fedsem("list", "attacks")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("fog ")]
    assert line.split(None, 1)[1].strip() == "Brightens every picture evenly, which no encoder should mind."
    assert any(line.startswith("pgd ") for line in result.stdout.splitlines())


def test_a_typo_in_its_option_is_one_sentence(fedsem: Fedsem) -> None:
    line = sentence(fedsem("validate", "foggy.yaml", "--set", "attacks.mist={kind: fog, thicknes: 2}"))
    assert "'attacks.mist.thicknes': unknown key. Did you mean 'thickness'?" in line


def test_without_the_package_the_attack_is_unknown(fedsem: Fedsem, tmp_path: Path) -> None:
    gone = tmp_path / "site"
    gone.mkdir()
    line = sentence(fedsem("validate", "foggy.yaml", site=gone))
    assert re.search(r"'attacks\.mist': unknown attack 'fog'\. (Did you mean '\w+'\? )?Known: .*pgd.*\.$", line)
