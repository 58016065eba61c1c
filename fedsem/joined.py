"""The runs whose rows a table holds: the one that wrote it, or those that an ablation has joined."""

from __future__ import annotations

from dataclasses import dataclass

from fedsem.errors import OutputError
from fedsem.scenario import Scenario, check_scenario
from fedsem.scenario_file import read_tree
from fedsem.store import Store

JOINED = ("finished", "incomplete")
"""What an ablation's manifest says when its table is written."""


@dataclass(frozen=True)
class Part:
    """A run whose rows a table holds.

    Attributes:
        name: its settings of the ablation; empty where the table is its own.
        store: its folder.
        scenario: what was run.
    """

    name: str
    store: Store
    scenario: Scenario

    def cell(self, inner: str) -> str:
        """What the table calls a cell of its sweep."""
        return "; ".join(name for name in (self.name, inner) if name)


def parts_of(store: Store) -> list[Part]:
    """The run in a folder, or the runs of the ablation in it that finished, in the order of the table.

    Raises:
        OutputError: the ablation has not joined any, or a run cannot be read.
    """
    scenario = check_scenario(read_tree(store.folder / "scenario.yaml"))
    if not scenario.ablate:
        return [Part("", store, scenario)]
    finish = f"fedsem ablate --resume {store.folder}"
    if store.manifest["status"] not in JOINED:
        raise OutputError(f"The ablation in '{store.folder}' is not finished; finish it with: {finish}")
    ended = [one for one in store.manifest.get("cells", []) if one["status"] == "finished"]
    if not ended:
        raise OutputError(f"No run of the ablation in '{store.folder}' finished; try them again with: {finish}")
    stores = {one["cell"]: Store.open(store.folder / one["folder"]) for one in ended}
    return [Part(name, run, check_scenario(read_tree(run.folder / "scenario.yaml"))) for name, run in stores.items()]
