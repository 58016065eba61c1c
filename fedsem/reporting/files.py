"""Writing files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from fedsem.errors import OutputError


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
