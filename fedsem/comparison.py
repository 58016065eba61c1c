"""Two attacks of a finished run or ablation, paired over the images that both were measured on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedsem.adaptive import with_adaptive
from fedsem.errors import OutputError, closest
from fedsem.evaluation.point import load_points
from fedsem.evaluation.tabulate import differences
from fedsem.joined import parts_of
from fedsem.scenario import check_scenario
from fedsem.store import Store
from fedsem.sweep import cells

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "cell", "stage", "receiver", "task", "channel", "snr_db", "sensing_snr_db", "psr_db", "metric", "value",
    "other_value", "difference", "ci_low", "ci_high", "n",
)  # fmt: skip


def compare(folder: str | Path, attack: str, other: str) -> pd.DataFrame:
    """What one attack of a run leaves minus what another one leaves, wherever both were measured at the same SNR and
    nominal PSR: `difference` with its 95 % interval, paired over images, channel draws and seeds, all seeds together;
    of an ablation, in each of its runs.

    Noise of the energy that an attack achieved stands in the table already (`<metric>_vs_noise`), and so does what it
    changes (`<metric>_change`).

    Args:
        folder: of the run, or of the ablation.
        attack: name of an attack in the scenario.
        other: name of another one.

    Returns:
        Rows of the columns `COLUMNS`; `value` is under `attack`, `other_value` under `other`.

    Raises:
        OutputError: the folder holds no finished run, the run knows no attack of that name, or it measured the two
            nowhere alike.
    """
    import pandas as pd

    swept = [(part, cells(part.scenario)) for part in parts_of(Store.open(Path(folder)))]
    named = {name for part, _ in swept for name in part.scenario.attacks}
    for cell in (cell for _, inner in swept for cell in inner):  # what `adaptive` stands for is called after them
        named |= set(with_adaptive(check_scenario(cell.tree)).attacks)
    for name in (attack, other):
        if name not in named:
            raise OutputError(f"The run in '{folder}' has no attack '{name}' in its scenario.{closest(name, named)}")
    rows = []
    for part, inner in swept:
        for number, cell in enumerate(inner):
            points = [load_points(part.store.evaluation(number, seed)) for seed in part.scenario.seeds]
            rows += [{"cell": part.cell(cell.name), **row} for row in differences(points, attack, other)]
    if not rows:
        raise OutputError(
            f"The run in '{folder}' measured '{attack}' and '{other}' nowhere at the same SNR and PSR; name both in "
            "one grid of its scenario."
        )
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))
