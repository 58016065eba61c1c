"""fedsem: a testbed for the robustness of federated semantic communications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Results", "ablate", "compare", "load_scenario", "run"]

if TYPE_CHECKING:
    from fedsem.ablation import ablate
    from fedsem.comparison import compare
    from fedsem.reporting.results import Results
    from fedsem.runner import run
    from fedsem.scenario_file import load_scenario


def __getattr__(name: str) -> Any:
    # torch, pandas and Flower take seconds to import: only what is used is loaded.
    if name == "run":
        from fedsem.runner import run

        return run
    if name == "ablate":
        from fedsem.ablation import ablate

        return ablate
    if name == "compare":
        from fedsem.comparison import compare

        return compare
    if name == "load_scenario":
        from fedsem.scenario_file import load_scenario

        return load_scenario
    if name == "Results":
        from fedsem.reporting.results import Results

        return Results
    raise AttributeError(f"module 'fedsem' has no attribute '{name}'")
