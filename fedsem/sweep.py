"""A sweep or an ablation: one scenario for each combination of the values that it lists for some of its keys, or of the
settings that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, Literal

from fedsem.errors import FedsemError, ScenarioError, shown
from fedsem.scenario import Scenario, check_scenario, dump_scenario, settings_of
from fedsem.strict import Strict


class Cell(Strict):
    """One combination of `sweep` or `ablate`: the value or name that each of its keys has, and the scenario tree with
    them in place."""

    block: Literal["sweep", "ablate"]
    settings: dict[str, Any]
    tree: dict[str, Any]

    @property
    def name(self) -> str:
        """What the table calls it: the settings; empty where there are none."""
        return "; ".join(f"{path}={_short(value)}" for path, value in self.settings.items())

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors inside the block say which values they belong to."""
        try:
            yield
        except FedsemError as error:
            if not self.settings:
                raise
            values = ", ".join(f"{self.block}.{path} = {shown(value)}" for path, value in self.settings.items())
            raise type(error)(f"With {values}: {error}") from error


def _short(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        rest = ", ".join(f"{key}: {option}" for key, option in value.items() if key != "kind")
        return f"{value['kind']}" + (f" ({rest})" if rest else "")
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def cells(scenario: Scenario, block: Literal["sweep", "ablate"] = "sweep") -> list[Cell]:
    """All combinations of `sweep`, in order, or of `ablate`, whose cells may sweep; one cell without settings where
    there are none.

    Raises:
        ScenarioError: a swept key cannot be set.
    """
    whole = {**dump_scenario(scenario), "ablate": {}}
    if block == "sweep":
        whole["sweep"] = {}
    axes = scenario.combined[block]
    combinations = []
    for values in product(*axes.values()):
        cell = Cell(block=block, settings=dict(zip(axes, values, strict=True)), tree=whole)
        with cell.named():
            for axis, value in cell.settings.items():
                for path, setting in settings_of(block, axis, axes[axis], value).items():
                    cell = cell.model_copy(update={"tree": assign(cell.tree, path.split("."), setting)})
        combinations.append(cell)
    return combinations


def check_cells(tree: Mapping[str, Any]) -> Scenario:
    """Validate a parsed scenario and every cell of its sweep, or of its ablation with their sweeps.

    Raises:
        ScenarioError: see `load_scenario`.
    """
    checked = check_scenario(tree)
    seen: dict[str, Cell] = {}
    for cell in cells(checked, "ablate" if checked.ablate else "sweep"):
        with cell.named():
            inner = check_cells(cell.tree) if cell.block == "ablate" else check_scenario(cell.tree)
            text = json.dumps(dump_scenario(inner), sort_keys=True)
            if text in seen:
                other = ", ".join(f"{path} = {shown(value)}" for path, value in seen[text].settings.items())
                raise ScenarioError(
                    f"In the scenario, '{cell.block}': this is the same as {other}; remove one of them."
                )
            seen[text] = cell
    return checked


def assign(tree: Any, keys: Sequence[str], value: Any, done: str = "") -> Any:
    """A copy of a nested mapping with `value` below `keys`; missing mappings on the way are made.

    Args:
        tree: mappings and lists; list items are numbered from 0.
        keys: the way down, one key for each level.
        value: what shall lie there.
        done: the way that led to `tree`, for errors.

    Raises:
        ScenarioError: the path runs through a scalar, or names a list item that does not exist.
    """
    if not keys:
        return value
    key, rest, here = keys[0], keys[1:], f"{done}.{keys[0]}" if done else keys[0]
    if isinstance(tree, list):
        if key not in map(str, range(len(tree))):
            raise ScenarioError(f"'{done}' has no item '{key}'; it has {len(tree)}, numbered from 0.")
        index = int(key)
        return [*tree[:index], assign(tree[index], rest, value, here), *tree[index + 1 :]]
    if tree is not None and not isinstance(tree, Mapping):
        raise ScenarioError(f"'{done}' is {shown(tree)}, not a mapping, so '{here}' cannot be set.")
    mapping = dict(tree or {})
    return {**mapping, key: assign(mapping.get(key), rest, value, here)}
