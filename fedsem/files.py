"""Writing files whole or not at all, and reading what a stage of a run has written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fedsem.errors import OutputError

Content = TypeVar("Content", list, dict)


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: a reader sees the old file or the new one, never a part.

    The folder is made where it is missing.

    Raises:
        OutputError: the folder or the file cannot be written; the old file, if any, is as it was.
    """
    # In the same folder, since os.replace is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"'{path}' cannot be written ({reason}); free or unlock that folder.") from error


@contextmanager
def exclusive(path: Path, otherwise: str) -> Iterator[None]:
    """For the block, no other process may hold the lock of that file, which is made where it is missing.

    Args:
        path: of the file; its content stays as it is.
        otherwise: what is the case when another process holds it.

    Raises:
        OutputError: another process does, or the file cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written ({error.strerror}); free or unlock that folder.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{otherwise}; wait for its end.") from None
        yield


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For a block that reads `path`, a file in the folder of a stage, and takes its content apart.

    Raises:
        OutputError: the file is missing or damaged; the stage can be computed anew.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise OutputError(
            f"'{path}' is damaged ({type(error).__name__}: {error}); remove the folder '{path.parent}', and fedsem run "
            "--resume computes anew what it held."
        ) from error


def read_json(path: Path, kind: type[Content]) -> Content:
    """The list or mapping in a JSON file in the folder of a stage.

    Raises:
        OutputError: the file is missing or damaged.
    """
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise TypeError(f"it holds no {kind.__name__}")
        return content
