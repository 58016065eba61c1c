"""Run the benchmarks and write `benchmarks/out/benchmarks.csv`.

`python -m benchmarks [rounds] [fixed_cost] [throughput] [patches] [grid] [evasion] [byzantine]
[aggregators] [votes]` runs some of them. `python -m benchmarks costs` is not among those that run without a name: it
takes half an hour, and writes `results/reference/defense_costs.csv` anew.
"""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

import pandas as pd

from fedsem.store import hardware

ALL = ("throughput", "rounds", "fixed_cost", "patches", "grid", "evasion", "byzantine", "aggregators", "votes")


def main() -> None:
    """Measure, print, write."""
    rows = []
    for name in sys.argv[1:] or ALL:
        rows += importlib.import_module(f"benchmarks.{name}").measure()
    table = pd.DataFrame(rows)
    order = ["benchmark", "variant", "wall_s", "cpu_s", "byzfl_cpu_s", "samples_per_cpu_s", "ratio"]
    order += ["memory", "over_own_loop", "goal"]
    table = table[[column for column in order if column in table]].round(3)
    machine = hardware()
    table["machine"] = f"{machine['cpu']}, {machine['cores']} cores, Python {platform.python_version()}"
    folder = Path(__file__).parent / "out"
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "benchmarks.csv", index=False)
    print(table.drop(columns="machine").to_string(index=False, na_rep=""))
    print(f"\n{table['machine'].iloc[0]}\nWritten to {folder / 'benchmarks.csv'}")


if __name__ == "__main__":
    main()
