"""From a file, the name of a shipped scenario or a mapping, with ``--set`` overrides, to a checked scenario."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fedsem.errors import ScenarioError, closest, shown
from fedsem.scenario import Scenario, dump_scenario
from fedsem.sweep import assign, check_cells


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = False
    return yaml


def find_scenario(scenario: str | Path) -> Path:
    """The file of that path, or the shipped scenario of that name.

    Raises:
        ScenarioError: there is neither.
    """
    path = Path(scenario)
    try:
        if path.is_file():
            return path
        folder = path.is_dir()
    except OSError as error:
        raise ScenarioError(f"The scenario file '{scenario}' cannot be read ({error.strerror}).") from error
    shipped = shipped_scenarios()
    if str(scenario) in shipped:
        return shipped[str(scenario)]
    if path.suffix in (".yaml", ".yml") and path.stem in shipped and path.parent.name == "scenarios":
        return shipped[path.stem]
    what = f"'{scenario}' is a folder, not a scenario file" if folder else f"There is no scenario file '{scenario}'"
    raise ScenarioError(f"{what}, and no shipped scenario has that name.{closest(path.stem, shipped)}")


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with fedsem, by name."""
    folder = Path(str(files("fedsem.scenarios")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file with ruamel (YAML 1.2: 1e-3 is a number; duplicate keys are errors).

    Raises:
        ScenarioError: the file cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(f"The scenario file '{path}' is not a text file in UTF-8.") from error
    except OSError as error:
        raise ScenarioError(f"The scenario file '{path}' cannot be read ({error.strerror}).") from error
    content = _parse(text, f"The scenario file '{path}'")
    if not isinstance(content, dict):
        have = "is empty" if content is None else f"holds {shown(content)}"
        raise ScenarioError(f"The scenario file '{path}' {have}; it needs a mapping of keys such as 'name' and 'data'.")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return _yaml().load(io.StringIO(text))
    except RecursionError as error:
        raise ScenarioError(f"{where} is nested too deeply.") from error
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        # ruamel lets a scalar's ValueError through, such as that of the date 2020-99-99, and worse for odd tags.
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).strip().partition("\n")[0].rstrip(".")
        raise ScenarioError(f"{where}{line} is not valid YAML: {problem}.") from error


def override(tree: dict[str, Any], settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Apply ``a.b=value`` settings to a parsed scenario; values are YAML, list items are numbered from 0.

    Args:
        tree: the scenario.
        settings: what to set; of ``--vary`` each is an axis of `ablate`.
        option: of the command line, for errors: `--set` or `--vary`.

    Raises:
        ScenarioError: a setting has no '=', its value is not YAML, or its path runs through something that is no
            mapping or list.
    """
    for setting in settings:
        path, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or not path:
            example = "--set federation.rounds=2" if option == "--set" else "--vary train.batch=[16,32]"
            raise ScenarioError(f"{option} needs the form a.b=value, for example {example}, not '{setting}'.")
        value = _parse(text, f"{option} {path}: the value '{text}'")
        head, _, rest = path.partition(".")
        try:
            # The keys of `sweep` and `ablate` are dotted paths themselves.
            keys = (head, rest) if head in ("sweep", "ablate") and rest else path.split(".")
            tree = assign(tree, ("ablate", path) if option == "--vary" else keys, value)
        except ScenarioError as error:
            raise ScenarioError(f"{option} {path}: {error}") from None
    return tree


Source = str | Path | Mapping[str, Any] | Scenario
"""A YAML file, the name of a shipped scenario, a mapping of the same shape, or a `Scenario`."""


def read_tree(scenario: Source, settings: Sequence[str] = (), seed: int | None = None) -> dict[str, Any]:
    """A scenario as it was written, with overrides applied but not checked; see `load_scenario`.

    Raises:
        ScenarioError: it cannot be read, or an override cannot be applied.
    """
    if isinstance(scenario, Scenario):
        tree = dump_scenario(scenario)
    elif isinstance(scenario, Mapping):
        tree = dict(scenario)
    else:
        tree = read_yaml(find_scenario(scenario))
    tree = override(tree, settings)
    return tree if seed is None else {**tree, "seeds": [seed]}


def load_scenario(scenario: Source, settings: Sequence[str] = (), seed: int | None = None) -> Scenario:
    """Read and check a scenario.

    Args:
        scenario: a YAML file, the name of a shipped scenario, a mapping of the same shape, or a `Scenario`.
        settings: overrides of the form ``a.b=value``.
        seed: replaces `seeds` by this one.

    Raises:
        ScenarioError: one sentence with the YAML path and, for names, the closest match.
    """
    return check_cells(read_tree(scenario, settings, seed))
