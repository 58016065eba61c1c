"""Parquet files with one encoded picture and one label per row, as Hugging Face `datasets` writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from fedsem.data.cache import cached
from fedsem.data.dataset import DataPath, DatasetOptions, Split
from fedsem.data.picture import decode_picture
from fedsem.data.stratify import hold_out
from fedsem.errors import DataError
from fedsem.registry import register


@register("dataset", "parquet")
class Parquet(DatasetOptions):
    """Your own images in Parquet files.

    The image column holds encoded pictures (PNG, JPEG, ...) as binary, or as a struct with a field `bytes`. The label
    column holds integers or text; class names come from the Hugging Face metadata of the training file where it has
    some, otherwise from the sorted values. Pictures are resized to `image_size` (see `picture.decode_picture`).
    """

    train: DataPath = Field(description="Parquet file with the training images, relative to the current directory")
    test: DataPath | None = Field(
        default=None, description="Parquet file with the test images; default: hold out test_fraction"
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="used where there is no 'test'")
    image_column: str | None = Field(
        default=None, description="default: 'image', 'img', or the only column of pictures"
    )
    label_column: str = "label"
    image_size: PositiveInt = Field(default=32, le=1024, description="height and width in pixels")

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        train_file = existing_file(self.train, "data.train")
        if self.test is None:
            labels, classes = index_labels([read_labels(train_file, self.label_column)])
            train, test = hold_out(labels[0], round(self.test_fraction * len(labels[0])), f"'{train_file}'")
            return self._split(train_file, labels[0], train), self._split(train_file, labels[0], test), classes
        test_file = existing_file(self.test, "data.test")
        columns = [read_labels(file, self.label_column) for file in (train_file, test_file)]
        labels, classes = index_labels(columns)
        return self._split(train_file, labels[0]), self._split(test_file, labels[1]), classes

    def _split(self, file: Path, labels: np.ndarray, rows: np.ndarray | None = None) -> Split:
        images = read_images(file, self.image_column, self.image_size, rows)
        return Split(images, labels if rows is None else labels[rows])


@dataclass(frozen=True)
class LabelColumn:
    """The labels of one file, as they are written there.

    Attributes:
        file: where they come from.
        values: one integer or text per row, at least one row.
        names: class names from the Hugging Face metadata, by label; empty where there are none.
    """

    file: Path
    values: list[int] | list[str]
    names: tuple[str, ...]


def existing_file(path: str, key: str) -> Path:
    """`path`, checked; `key` is the scenario key that names it.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(
            f"There is no file '{file}' ({key}); correct the path (relative paths start at '{Path.cwd()}')."
        )
    return file


def read_labels(file: Path, column: str) -> LabelColumn:
    """Read the label column of a Parquet file.

    Raises:
        DataError: the file is no Parquet file, is empty, or has no such column of integers or text.
    """
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        if column not in schema.names:
            raise DataError(
                f"'{file}' has no column '{column}'; set data.label_column to one of: {', '.join(schema.names)}."
            )
        values = parquet.read(columns=[column], use_threads=False).column(column).to_pylist()
        names = _class_names(schema.metadata, column)
    if not values:
        raise DataError(f"'{file}' has no rows; give a Parquet file with at least one image.")
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        raise DataError(
            f"The column '{column}' of '{file}' must hold an integer or a text in every row, but holds "
            f"{' and '.join(sorted(kind.__name__ for kind in kinds))}; repair it or set data.label_column."
        )
    return LabelColumn(file, values, names)


def index_labels(columns: Sequence[LabelColumn]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Number the labels of several files in one common way.

    Returns:
        int64 (N,) for each file, and the class names.

    Raises:
        DataError: one file has integers and another text, the files name their classes differently, or a label lies
            outside the file's own class names.
    """
    names = columns[0].names
    for column in columns[1:]:
        if names and column.names and column.names != names:
            raise DataError(
                f"'{columns[0].file}' and '{column.file}' name or order their classes differently; write both with the "
                "same class names."
            )
    if names and isinstance(columns[0].values[0], int):
        known: list[Any] = list(range(len(names)))
    else:
        distinct: set[Any] = set().union(*(column.values for column in columns))
        if len({type(value) for value in distinct}) > 1:
            raise DataError(
                f"The labels of '{columns[0].file}' and '{columns[1].file}' are integers in one and text in the "
                f"other; write them in the same way."
            )
        known = sorted(distinct)
        names = tuple(str(value) for value in known)
    number = {value: i for i, value in enumerate(known)}
    for column in columns:
        for row, value in enumerate(column.values):
            if value not in number:
                raise DataError(
                    f"Row {row} of '{column.file}' has the label {value!r}, which is none of the {len(names)} classes "
                    f"of '{columns[0].file}'; repair or remove the row."
                )
    return [np.array([number[value] for value in column.values], np.int64) for column in columns], names


def read_images(file: Path, column: str | None, size: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Decode the pictures of a Parquet file, through the cache.

    Args:
        file: the Parquet file.
        column: the image column; None looks for it.
        size: height and width of the result.
        rows: int64 (N,), ascending: the rows to decode; None takes all.

    Returns:
        uint8 (N, 3, size, size), mapped read-only.

    Raises:
        DataError: no image column, or a row that is no picture (file and row are named).
    """
    options = {"column": column, "size": size, "rows": None if rows is None else rows.tolist()}
    return cached([file], options, lambda: _decode(file, column, size, rows))


def _decode(file: Path, column: str | None, size: int, rows: np.ndarray | None) -> np.ndarray:
    with _opened(file) as parquet:
        name = column or _image_column(file, parquet.schema_arrow)
        if name not in parquet.schema_arrow.names:
            raise DataError(
                f"'{file}' has no column '{name}'; set data.image_column to one of: "
                f"{', '.join(parquet.schema_arrow.names)}."
            )
        wanted = np.ones(parquet.metadata.num_rows, bool)
        if rows is not None:
            wanted[:] = False
            wanted[rows] = True
        images = np.empty((int(wanted.sum()), 3, size, size), np.uint8)
        done = 0
        for row, content in enumerate(_cells(parquet, name)):
            if not wanted[row]:
                continue
            encoded = content.get("bytes") if isinstance(content, dict) else content
            if not isinstance(encoded, bytes):
                raise DataError(
                    f"Row {row} of '{file}' holds no picture bytes in the column '{name}'; repair the row or set "
                    f"data.image_column."
                )
            try:
                images[done] = decode_picture(io.BytesIO(encoded), size)
            except ValueError as error:
                raise DataError(f"Row {row} of '{file}' is {error}; repair or remove the row.") from error
            done += 1
    return images


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; errors of pyarrow inside the block become DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"'{file}' cannot be read as a Parquet file ({reason}).") from error


def _cells(parquet: Any, column: str) -> Iterator[Any]:
    for batch in parquet.iter_batches(batch_size=512, columns=[column], use_threads=False):
        yield from batch.column(0).to_pylist()


def _image_column(file: Path, schema: Any) -> str:
    import pyarrow as pa

    def holds_pictures(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found: list[str] = [field.name for field in schema if holds_pictures(field.type)]
    for name in ("image", "img"):
        if name in found:
            return name
    if len(found) != 1:
        raise DataError(
            f"'{file}' has {len(found)} columns that could hold pictures; set data.image_column to one of: "
            f"{', '.join(schema.names)}."
        )
    return found[0]


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Names of a Hugging Face `ClassLabel` column; empty where the file has none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column].get("names", ()))
    except (KeyError, ValueError, TypeError, AttributeError):
        return ()
