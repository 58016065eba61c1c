"""Decoded images on disk, mapped read-only, so that each picture is decoded once and worker processes share the pages.

The folder is named by the environment variable `FEDSEM_DATA` (default `~/.cache/fedsem`); decoded arrays lie in its
subfolder `decoded` and may be deleted at any time when no run uses them.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fedsem.errors import DataError

FORMAT = 1
"""Part of every key: raise it when decoding changes."""


def data_folder() -> Path:
    """Where fedsem keeps downloaded and decoded data: `FEDSEM_DATA`, or `~/.cache/fedsem`. It need not exist."""
    return Path(os.environ.get("FEDSEM_DATA") or "~/.cache/fedsem").expanduser()


def make_data_folder(name: str = "") -> Path:
    """The subfolder `name` of the data folder, made if needed.

    Raises:
        DataError: it cannot be made.
    """
    folder = data_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(error) from error
    return folder


def cached(sources: Sequence[Path], options: Mapping[str, Any], decode: Callable[[], np.ndarray]) -> np.ndarray:
    """`decode()`, through the cache.

    Args:
        sources: the files that are decoded; a change of path, size or modification time makes a new entry.
        options: everything else that the result depends on, as JSON types.
        decode: makes the array; called where no entry exists.

    Returns:
        the array as a read-only memory map.

    Raises:
        DataError: the cache folder cannot be written, or a source file is missing.
    """
    folder = make_data_folder("decoded")
    path = folder / f"{_key(sources, options)}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # Not there yet, or cut short by a crash of the machine: written below.
    array = decode()
    try:
        _write(path, array)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise _not_writable(error) from error


def remembered(kind: str, key: bytes, make: Callable[[], np.ndarray]) -> np.ndarray:
    """`make()`, kept in the subfolder `kind` of the data folder for the next time.

    For what is slow to make but small. Where the folder cannot be written, it is made anew every time.

    Args:
        kind: name of the subfolder.
        key: everything that the result depends on.
        make: makes the array; called where no entry exists.
    """
    path = data_folder() / kind / f"{hashlib.blake2b(key, digest_size=16).hexdigest()}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        pass  # Not there yet, or cut short by a crash of the machine.
    array = make()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, array)
    return array


def _key(sources: Sequence[Path], options: Mapping[str, Any]) -> str:
    stamps = []
    for source in sources:
        try:
            status = source.stat()
        except OSError as error:
            raise DataError(f"The data file '{source}' cannot be read ({error.strerror}).") from error
        stamps.append([str(source.resolve()), status.st_size, status.st_mtime_ns])
    text = json.dumps([FORMAT, stamps, options], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write(path: Path, array: np.ndarray) -> None:
    # Under a name of its own first: another process never sees half a file, and two writers do not disturb each other.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _not_writable(error: OSError) -> DataError:
    return DataError(
        f"The cache folder '{data_folder()}' cannot be written ({error.strerror or error}); set the environment "
        f"variable FEDSEM_DATA to a folder you can write to, with some hundred megabytes free."
    )
