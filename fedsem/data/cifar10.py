"""CIFAR-10: 50,000 training and 10,000 test colour images of 32x32 pixels in 10 classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, technical report, 2009.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
from pydantic import Field

from fedsem.data.cache import cached, data_folder, make_data_folder
from fedsem.data.dataset import DataPath, DatasetOptions, Split
from fedsem.data.parquet import read_images, read_labels
from fedsem.errors import DataError
from fedsem.registry import register

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"
ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHAPES = "'cifar10-train.parquet' and 'cifar10-test.parquet', or the unpacked folder 'cifar-10-batches-py'"


@register("dataset", "cifar10")
class Cifar10(DatasetOptions):
    """CIFAR-10 from Parquet files or from the original Python batches.

    Looked for in `path`, or without it in the data folder (`FEDSEM_DATA`, default `~/.cache/fedsem`), and downloaded
    there (170 MB) where it is missing and `download` is true. Labels are the standard ones, 0 airplane to 9 truck.
    """

    path: DataPath | None = Field(default=None, description=f"a folder with {SHAPES}; default: the data folder")
    download: bool = Field(
        default=True, description="download to the data folder where it is not there and no path is given"
    )

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        if self.path is not None:
            folder = Path(self.path).expanduser()
            found = _find(folder)
            if found is None:
                raise DataError(
                    f"There is no CIFAR-10 in '{folder}' (data.path); the folder must hold {SHAPES} from {ARCHIVE} "
                    f"(relative paths start at '{Path.cwd()}')."
                )
            return *found, CLASSES
        found = _find(data_folder(), "cifar10-") or (_download() if self.download else None)
        if found is None:
            raise DataError(
                f"There is no CIFAR-10 in '{data_folder()}'; set data.path, or FEDSEM_DATA, to a folder with "
                f"{SHAPES} from {ARCHIVE}, or set data.download to true."
            )
        return *found, CLASSES


def _find(folder: Path, prefix: str = "") -> tuple[Split, Split] | None:
    """Training and test split of whatever form of CIFAR-10 lies in `folder`; None where there is none.

    Parquet files must have names that begin with `prefix`.
    """
    if folder.name == BATCHES and folder.is_dir():
        folder = folder.parent
    if (folder / BATCHES).is_dir():
        return _batches(folder, "train"), _batches(folder, "test")
    train, test = (_parquet(folder, prefix, part) for part in ("train", "test"))
    return None if train is None or test is None else (_rows(train), _rows(test))


def _parquet(folder: Path, prefix: str, part: str) -> Path | None:
    exact = folder / f"cifar10-{part}.parquet"
    if exact.is_file():
        return exact
    found = sorted(file for file in folder.glob(f"*{part}*.parquet") if file.name.startswith(prefix))
    if len(found) > 1:
        raise DataError(
            f"'{folder}' has {len(found)} files that could be the {part} images of CIFAR-10; leave one, or call it "
            f"'{exact.name}'."
        )
    return found[0] if found else None


def _rows(file: Path) -> Split:
    labels = np.asarray(read_labels(file, "label").values)
    if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise DataError(f"'{file}' is not CIFAR-10: the column 'label' must hold integers 0 to 9; correct data.path.")
    return Split(read_images(file, None, 32), labels.astype(np.int64))


def _batches(folder: Path, part: str) -> Split:
    files = sorted((folder / BATCHES).glob("data_batch_*" if part == "train" else "test_batch"))

    def read(what: str) -> np.ndarray:
        from torchvision.datasets import CIFAR10

        try:
            source = CIFAR10(str(folder), train=part == "train")
        except (RuntimeError, OSError, EOFError, KeyError) as error:
            raise DataError(
                f"'{folder / BATCHES}' is incomplete or damaged; remove it and unpack {ARCHIVE} again."
            ) from error
        if what == "labels":
            return np.asarray(source.targets, np.int64)
        return np.ascontiguousarray(source.data.transpose(0, 3, 1, 2))

    images = cached(files, {"cifar10": "images"}, lambda: read("images"))
    labels = cached(files, {"cifar10": "labels"}, lambda: read("labels"))
    return Split(images, labels)


def _download() -> tuple[Split, Split]:
    """Put the original batches into the data folder and read them.

    Raises:
        DataError: there is no network, or the download is damaged.
    """
    from torchvision.datasets import CIFAR10

    folder = make_data_folder()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        # Into a folder of its own first: another process never sees half a data set.
        with tempfile.TemporaryDirectory(dir=folder, prefix="cifar10-") as temporary:
            CIFAR10(temporary, download=True)
            try:
                os.replace(Path(temporary) / BATCHES, folder / BATCHES)
            except OSError:
                if not (folder / BATCHES).is_dir():  # Another process was first.
                    raise
    except (OSError, RuntimeError, shutil.ReadError, EOFError) as error:
        raise DataError(
            f"CIFAR-10 is not in '{folder}' and cannot be downloaded ({error}); set data.path, or FEDSEM_DATA, to a "
            f"folder with {SHAPES} from {ARCHIVE}."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return _batches(folder, "train"), _batches(folder, "test")
