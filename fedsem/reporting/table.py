"""The table of a run: one number a row, in long format, with the columns of design section 5."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsem.errors import FedsemError, OutputError, closest
from fedsem.files import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: dict[str, str] = {
    "scenario": "string",
    "run_id": "string",
    "seed": "Int64",
    "cell": "string",
    "stage": "string",
    "round": "Int64",
    "rounds": "Int64",
    "receiver": "string",
    "task": "string",
    "encoder": "string",
    "decoder": "string",
    "channel": "string",
    "fading": "string",
    "csi": "string",
    "symbols": "string",
    "train_snr_db": "string",
    "snr_db": "Float64",
    "sensing_snr_db": "Float64",
    "channel_uses": "Int64",
    "selection": "string",
    "transport": "string",
    "mask_ratio": "Float64",
    "kept": "Float64",
    "bits": "Float64",
    "latency_s": "Float64",
    "nominal_latency_s": "Float64",
    "outage": "Float64",
    "attack": "string",
    "attack_params": "string",
    "objective": "string",
    "sites": "string",
    "knowledge": "string",
    "targeted": "boolean",
    "norm": "string",
    "psr_db": "Float64",
    "psr_achieved_db": "Float64",
    "pnr_db": "Float64",
    "draws": "Int64",
    "adversary_fraction": "Float64",
    "f_assumed": "Int64",
    "defense": "string",
    "aggregator": "string",
    "verdict": "string",
    "bytes_up": "Int64",
    "bytes_down": "Int64",
    "metric": "string",
    "value": "Float64",
    "ci_low": "Float64",
    "ci_high": "Float64",
    "n": "Int64",
}
"""Column -> pandas dtype, in order (design section 5, and `cell`).

Of an encoder that sends patches: `kept` patches arrive on average, `bits` and `latency_s` are means of what was sent
for one decision (of noisy copies, all of them), `nominal_latency_s` is that of [S0], Table I, `outage` the share of
images that do not arrive.

`stage` is `federate`, `evaluate`, `certificate`, `reference`, `twin`, `repair` or `leakage`. Rows of stage
`certificate` say what holds under every perturbation of norm `norm`, at `sites`, of `psr_db` (`certified_<metric>`).
Rows of stage `twin` are those of the same link trained with the same seed and no attack, which a poisoned cell is
compared with (`<metric>_vs_twin`); they belong to no cell's own results. Of attacks on privacy, `leakage`, `decoder`
tells what the adversary made from the guess of someone who has seen nothing, and `snr_db` is the adversary's own. Of
what a repair found, `repair`, `objective` holds the task and the class that it is about.

`cell` holds the settings of the scenario's `sweep`, such as ``link.encoder.channel_uses=20; channels.down=rayleigh``;
it is empty without a sweep. `rounds` is the number of last rounds, up to `round`, that a figure is the mean of, where
`evaluation.rounds` asks for several. `seed` is NA for a figure pooled over all seeds. `train_snr_db` is text, since a
range is no number: ``10`` or ``0 to 20``. `verdict` stands in the table of an ablation: see
`fedsem.reporting.verdicts`.
"""

ARROW = {"string": "string", "Int64": "int64", "Float64": "float64", "boolean": "bool_"}


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows -> table. Absent columns are NA; a mapping or list in a text column becomes JSON with sorted keys.

    Raises:
        FedsemError: an unknown column, a value of the wrong type, or a number with neither `n` nor an interval
            (design section 5: "a number without interval or n is not reported").
    """
    listed = list(rows)
    for unknown in (key for row in listed for key in row if key not in COLUMNS):
        raise FedsemError(f"The table has no column '{unknown}'.{closest(unknown, COLUMNS)}")
    columns = {}
    for column, dtype in COLUMNS.items():
        values = [row.get(column) for row in listed]
        if dtype == "string":
            values = [_text(value) for value in values]
        try:
            columns[column] = pd.Series(values, dtype=dtype)
        except (TypeError, ValueError) as error:
            raise FedsemError(f"The table's column '{column}' holds something that is no {dtype} ({error}).") from error
    table = pd.DataFrame(columns, columns=list(COLUMNS))
    unsupported = table["n"].isna() & (table["ci_low"].isna() | table["ci_high"].isna())
    if unsupported.any():
        row = table[unsupported].iloc[0]
        given = ", ".join(f"{key} {row[key]}" for key in ("stage", "task", "attack", "metric") if pd.notna(row[key]))
        raise FedsemError(f"A number without interval or n is not reported: {given or 'an empty row'}.")
    return table


def _text(value: Any) -> str | None:
    """A cell of a text column; None stays NA."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, sort_keys=True)
    return f"{value:g}" if isinstance(value, float) else str(value)


def schema() -> pa.Schema:
    """The Parquet schema: column names and types, and nothing that depends on the day or the machine."""
    import pyarrow as pa

    return pa.schema([(column, getattr(pa, ARROW[dtype])()) for column, dtype in COLUMNS.items()])


def write(table: pd.DataFrame, folder: Path) -> None:
    """Write `table.parquet` and `table.csv`, each in one step; equal tables give equal bytes.

    Raises:
        OutputError: the folder cannot be written.
        FedsemError: the table's columns are not `COLUMNS`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if list(table.columns) != list(COLUMNS):
        raise FedsemError("Only a table made by fedsem.reporting.table.frame can be written: its columns differ.")
    buffer = io.BytesIO()
    # Without pandas' own metadata, which name the index and the versions.
    pq.write_table(pa.Table.from_pandas(table, schema=schema(), preserve_index=False).replace_schema_metadata(), buffer)
    replace_file(folder / "table.parquet", buffer.getvalue())
    replace_file(folder / "table.csv", table.to_csv(index=False, lineterminator="\n").encode())


def read(folder: Path) -> pd.DataFrame:
    """The table of a run folder; columns that an older version did not write are NA.

    Raises:
        OutputError: there is no table, it cannot be read, or a newer version wrote it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "table.parquet"
    if not path.is_file():
        raise OutputError(
            f"'{folder}' has no table yet; finish the run with 'fedsem run --resume {folder}', an ablation with "
            f"'fedsem ablate --resume {folder}'."
        )
    try:
        # By default whole numbers of a column with gaps come as floats, which seeds beyond 2^53 do not survive.
        table = pq.read_table(path).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        table = table.astype({name: dtype for name, dtype in COLUMNS.items() if name in table})
    except (OSError, TypeError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OutputError(f"The table '{path}' cannot be read ({reason}); run the scenario again.") from error
    for unknown in (column for column in table.columns if column not in COLUMNS):
        raise OutputError(f"The table '{path}' has a column '{unknown}' that this version of fedsem does not know.")
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)
