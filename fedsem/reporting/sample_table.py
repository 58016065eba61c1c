"""The saved examples of a run, `samples.parquet`: pictures, and symbols sent and received, for the figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsem.errors import FedsemError, OutputError, closest
from fedsem.files import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_COLUMNS: dict[str, str] = {
    "seed": "int64",
    "cell": "string",
    "image": "int64",
    "label": "string",
    "kind": "string",
    "round": "int64",
    "receiver": "string",
    "task": "string",
    "attack": "string",
    "psr_db": "float64",
    "snr_db": "float64",
    "symbols": "string",
    "selection": "string",
    "mask_ratio": "float64",
    "decision": "string",
    "shape": "list<int32>",
    "values": "list<float32>",
}
"""Column -> Arrow type, in order.

`kind` is `original`, `perturbed` or `reconstruction` (pictures in [0, 1], shape (channels, height, width)), or `sent`
or `received` (nc real numbers; with `symbols` = `complex`, pairs divided by sqrt 2 are I and Q). `decision` is what a
decoder said of the image: a class name, or whether a target is there. Of a transmitter of patches, `kept` is what
arrived of the image (NaN elsewhere) or, where all of it was sent, `scene` the image; `painted` what the receiver
painted; all at most 112 pixels wide; and `boxes` what a detector found in it: (boxes, 6) with corners in shares of the
picture's side, score and category. Of an attack on privacy, `private` is the picture and `leaked` what the adversary
made of it; `round` tells updates before the first round, 0, from those after the last. `trigger` is what a repair has
worked out of a backdoor, on black, with the class that it leads to as its label.
"""


def schema() -> pa.Schema:
    """The Parquet schema of `SAMPLE_COLUMNS`."""
    import pyarrow as pa

    simple = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    lists = {"list<int32>": pa.list_(pa.int32()), "list<float32>": pa.list_(pa.float32())}
    return pa.schema([(column, {**simple, **lists}[kind]) for column, kind in SAMPLE_COLUMNS.items()])


def write_samples(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `samples.parquet` in one step. `values` may be an array of any shape; `shape` is then read off it.

    Raises:
        FedsemError: an unknown column, or a value of the wrong type.
        OutputError: the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = []
    for row in rows:
        for unknown in (key for key in row if key not in SAMPLE_COLUMNS):
            raise FedsemError(f"The samples have no column '{unknown}'.{closest(unknown, SAMPLE_COLUMNS)}")
        values = np.asarray(row["values"], dtype=np.float32)
        shape = [int(size) for size in row.get("shape", values.shape)]
        listed.append({**row, "shape": shape, "values": values.ravel()})
    try:
        table = pa.Table.from_pylist(listed, schema=schema())
    except pa.ArrowException as error:
        raise FedsemError(f"The samples hold something of the wrong type ({error}).") from error
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    replace_file(folder / "samples.parquet", buffer.getvalue())


def read_samples(folder: Path) -> pd.DataFrame:
    """The saved examples, `values` as arrays of their `shape`; empty where the run kept none.

    Raises:
        OutputError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "samples.parquet"
    if not path.is_file():
        return pd.DataFrame(columns=list(SAMPLE_COLUMNS))
    try:
        samples = pq.read_table(path).to_pandas().reindex(columns=list(SAMPLE_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OutputError(f"The samples '{path}' cannot be read ({reason}); run the scenario again.") from error
    samples["values"] = pd.Series(
        [
            np.asarray(values, dtype=np.float32).reshape(tuple(shape))
            for values, shape in zip(samples["values"], samples["shape"], strict=True)
        ],
        index=samples.index,
        dtype=object,
    )
    return samples
