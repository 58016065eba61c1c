"""Data sets: against scikit-learn, torch and hand-made files; every way to be missing or damaged says what to do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from fedsem.data import cache, cifar10, parquet
from fedsem.data.cache import cached, data_folder
from fedsem.data.cifar10 import CLASSES, Cifar10
from fedsem.data.dataset import Dataset, DatasetOptions, Split
from fedsem.data.digits import Digits
from fedsem.data.image_folder import ImageFolder
from fedsem.data.parquet import Parquet
from fedsem.data.partition import Iid
from fedsem.data.stratify import stratified_order
from fedsem.errors import DataError
from fedsem.streams import Stream

REAL = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10-test.parquet"


@pytest.fixture(autouse=True)
def data_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSEM_DATA", str(tmp_path / "fedsem-data"))
    monkeypatch.chdir(tmp_path)


def message(options: DatasetOptions) -> str:
    """The one sentence with which loading fails."""
    with pytest.raises(DataError) as caught:
        options.load()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, "PNG")
    return buffer.getvalue()


def flat(red: int, green: int, blue: int, side: int = 32) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (side, side, 3)).copy()


def has_colour(image: np.ndarray, colour: list[int]) -> bool:
    """Whether every pixel of uint8 (3, H, W) is that colour."""
    return bool((image == np.array(colour)[:, None, None]).all())


def write_parquet(
    path: Path, pictures: Sequence[bytes | None], labels: list[Any], image: str = "img", names: list[str] | None = None
) -> Path:
    column = pa.array([{"bytes": picture, "path": None} for picture in pictures], IMAGE)
    table = pa.table({image: column, "label": pa.array(labels)})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)
    return path


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEN = [png(flat(20 * i, 0, 255 - i)) for i in range(10)]


# ------------------------------------------------------------------------------------------------------ digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


def test_digits_splits(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    assert digits.train.images.shape == (1438, 3, 32, 32)
    assert digits.test.images.shape == (359, 3, 32, 32)
    assert digits.classes == tuple("0123456789")
    train, test = np.bincount(digits.train.labels), np.bincount(digits.test.labels)
    assert np.array_equal(train + test, np.bincount(target))
    assert (abs(test - np.bincount(target) * 359 / 1797) < 1).all()


def test_digits_pixels_are_sklearns_enlarged_by_torch(digits: Dataset) -> None:
    import torch
    from sklearn.datasets import load_digits

    source = load_digits()
    small = torch.from_numpy(source.images)[:, None]
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    expected = (large[:, 0] * 255 / 16).numpy()
    # Put every expected image beside the stored one with the same pixels: the split is a permutation.
    stored = np.concatenate([digits.train.images, digits.test.images])
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    assert (stored[:, 0] == stored[:, 1]).all()
    assert (stored[:, 0] == stored[:, 2]).all()
    assert stored.min() == 0
    assert stored.max() == 255
    by_bytes = {image[0].tobytes(): label for image, label in zip(stored, labels, strict=True)}
    found = [by_bytes.get(np.rint(image).astype(np.uint8).tobytes()) for image in expected]
    same = [label == target for label, target in zip(found, source.target, strict=True) if label is not None]
    assert all(same)
    assert len(same) > 0.95 * len(expected)  # The rest differs by a rounding of exact halves.


def test_pixel_statistics_are_numpys(digits: Dataset) -> None:
    pixels = digits.train.images / 255
    assert digits.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), abs=1e-12)
    assert digits.std == pytest.approx(pixels.std(axis=(0, 2, 3)), abs=1e-12)


def test_everything_is_read_only(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        digits.train.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        digits.test.labels[0] = 0


def test_the_same_in_every_run(digits: Dataset) -> None:
    again = Digits().load()
    assert np.array_equal(digits.train.images, again.train.images)
    assert np.array_equal(digits.test.labels, again.test.labels)


# ------------------------------------------------------------------------------------------------- common options


def test_limits_keep_a_nested_stratified_subset(digits: Dataset) -> None:
    small, large = Digits(train_images=100, test_images=50).load(), Digits(train_images=200).load()
    assert (len(small.train), len(small.test)) == (100, 50)
    assert (len(large.train), len(large.test)) == (200, 359)
    share = np.bincount(digits.train.labels) / len(digits.train)
    assert (abs(np.bincount(small.train.labels) - 100 * share) < 1).all()
    of_large = {image.tobytes() for image in large.train.images}
    assert all(image.tobytes() in of_large for image in small.train.images)


def test_a_reserve_is_held_by_nobody_else() -> None:
    whole, some = Digits().load(), Digits(reserve=300, train_images=1000).load()
    assert whole.reserve is None
    assert some.reserve is not None
    assert (len(some.train), len(some.reserve), len(some.test)) == (1000, 300, len(whole.test))
    every = Digits(reserve=300).load()
    assert every.reserve is not None
    assert every.reserve.fingerprint == some.reserve.fingerprint
    rejoined = np.concatenate([every.train.images, every.reserve.images]).reshape(1438, -1)
    np.testing.assert_array_equal(np.unique(rejoined, axis=0), np.unique(whole.train.images.reshape(1438, -1), axis=0))
    share = np.bincount(some.reserve.labels) / np.bincount(whole.train.labels)
    assert np.abs(share - 300 / 1438).max() < 0.02
    assert "data.reserve keeps 1438 images, but the train split of 'digits' has 1438" in message(Digits(reserve=1438))


def test_too_many_images_is_an_error() -> None:
    assert "data.train_images asks for 1439 images, but the train split of 'digits' has 1438" in message(
        Digits(train_images=1439)
    )
    assert "data.test_images" in message(Digits(test_images=9999))


def test_options_are_checked_and_the_default_partition_is_iid() -> None:
    assert isinstance(Digits().partition, Iid)
    for wrong in ({"train_images": 0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            Digits.model_validate(wrong)


def test_a_split_of_the_wrong_shape_is_refused() -> None:
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)
    for wrong in ((images.astype(float), labels), (images[:, :1], labels), (images, labels[:3])):
        with pytest.raises(ValueError, match="should be"):
            Split(*wrong)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80).map(np.array), data=st.data())
def test_every_prefix_of_a_stratified_order_is_stratified(labels: np.ndarray, data: st.DataObject) -> None:
    order = stratified_order(labels, Stream(data.draw(st.integers(0, 1000))))
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    n = data.draw(st.integers(0, len(labels)))
    counts, total = np.bincount(labels[order[:n]], minlength=4), np.bincount(labels, minlength=4)
    # Each class lies within one image of t * N_c for the common quantile t, which lies near n / N.
    assert (abs(counts - total * n / len(labels)) < 1 + len(total) * total / len(labels)).all()


# --------------------------------------------------------------------------------------------------------- cache


def count_calls(array: np.ndarray) -> tuple[Callable[[], np.ndarray], list[int]]:
    calls: list[int] = []

    def decode() -> np.ndarray:
        calls.append(1)
        return array

    return decode, calls


def test_the_cache_decodes_once_and_maps(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    decode, calls = count_calls(np.arange(6))
    first = cached([source], {"size": 1}, decode)
    second = cached([source], {"size": 1}, decode)
    assert len(calls) == 1
    assert isinstance(second, np.memmap)
    assert not second.flags.writeable
    assert np.array_equal(first, second)
    assert np.array_equal(second, np.arange(6))


def test_the_cache_notices_changes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    decode, calls = count_calls(np.arange(6))
    cached([source], {"size": 1}, decode)
    cached([source], {"size": 2}, decode)
    assert len(calls) == 2
    source.write_bytes(b"12")
    cached([source], {"size": 1}, decode)
    assert len(calls) == 3
    os.utime(source, (1, 1))
    cached([source], {"size": 1}, decode)
    assert len(calls) == 4


def test_a_damaged_entry_is_written_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    cached([source], {}, lambda: np.arange(1000))
    (entry,) = (data_folder() / "decoded").iterdir()
    entry.write_bytes(entry.read_bytes()[:500])
    assert np.array_equal(cached([source], {}, lambda: np.arange(1000)), np.arange(1000))


def test_concurrent_writers_leave_one_whole_entry(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"1")
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: cached([source], {}, lambda: np.arange(100_000)), range(8)))
    assert all(np.array_equal(array, np.arange(100_000)) for array in arrays)
    assert [entry.suffix for entry in (data_folder() / "decoded").iterdir()] == [".npy"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    source = tmp_path / "source"
    source.write_bytes(b"1")
    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\).*FEDSEM_DATA"):
        cached([source], {}, lambda: np.arange(3))
    assert list((data_folder() / "decoded").iterdir()) == []


def test_an_unwritable_cache_says_to_set_fedsem_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("FEDSEM_DATA", str(blocked / "folder"))
    file = write_parquet(tmp_path / "a.parquet", TEN * 2, [0, 1] * 10)
    text = message(Parquet(train=str(file)))
    assert str(blocked) in text
    assert "FEDSEM_DATA" in text


def test_the_data_folder_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSEM_DATA")
    assert data_folder() == Path.home() / ".cache" / "fedsem"


# ------------------------------------------------------------------------------------------------------- parquet


@pytest.mark.parametrize("image", ["img", "image", "photo"])
def test_parquet_reads_pixels_and_labels(tmp_path: Path, image: str) -> None:
    train = write_parquet(tmp_path / "train.parquet", TEN, [3, 1] * 5, image)
    test = write_parquet(tmp_path / "test.parquet", TEN[:2], [1, 2], image)
    data = Parquet(train=train.name, test=test.name).load()  # Relative to the current directory.
    assert data.name == "parquet"
    assert data.classes == ("1", "2", "3")
    assert data.train.labels.tolist() == [2, 0] * 5
    assert data.test.labels.tolist() == [0, 1]
    for i in range(10):
        assert has_colour(data.train.images[i], [20 * i, 0, 255 - i])
    assert data.std[1] == pytest.approx(1e-3)


def test_parquet_holds_out_a_test_split(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", TEN * 2, ["dog"] * 10 + ["cat"] * 10)
    data = Parquet(train=str(file), test_fraction=0.3).load()
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (14, 6)
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    every = [split.images[i, :, 0, 0] for split in (data.train, data.test) for i in range(len(split))]
    assert np.bincount(np.array(every)[:, 0] // 20).tolist() == [2] * 10
    again = Parquet(train=str(file), test_fraction=0.3).load()
    assert np.array_equal(data.test.images, again.test.images)


def test_parquet_takes_class_names_from_the_metadata(tmp_path: Path) -> None:
    names = ["ant", "bee", "cow"]
    file = write_parquet(tmp_path / "a.parquet", TEN, [2, 0] * 5, names=names)
    data = Parquet(train=str(file), test=str(file)).load()
    assert data.classes == tuple(names)
    assert data.train.labels.tolist() == [2, 0] * 5
    outside = write_parquet(tmp_path / "b.parquet", TEN, [2, 0, 0, -1, 0] * 2, names=names)
    assert f"Row 3 of '{outside}' has the label -1" in message(Parquet(train=str(outside)))
    # Numbers of the test file mean what its own names say.
    other = write_parquet(tmp_path / "c.parquet", TEN, [2, 0] * 5, names=["bee", "ant", "cow"])
    said = message(Parquet(train=str(file), test=str(other)))
    assert said.startswith(f"'{file}' and '{other}' name or order their classes differently")


def test_parquet_converts_every_mode_to_rgb_and_resizes(tmp_path: Path) -> None:
    gray16 = np.full((16, 16), 40000, np.uint16)
    rgba = np.concatenate([flat(10, 20, 30, 8), np.full((8, 8, 1), 0, np.uint8)], axis=2)
    pictures = [
        png(np.full((32, 32), 77, np.uint8)),
        png(rgba),
        png(np.full((40, 20), 77, np.uint8), "LA"),
        png(flat(255, 0, 0), "P"),
        png(gray16),
        png(flat(255, 255, 255), "1"),
    ]
    file = write_parquet(tmp_path / "a.parquet", pictures, [0, 0, 0, 1, 1, 1])
    images = Parquet(train=str(file), test=str(file), image_size=24).load().train.images
    assert images.shape == (6, 3, 24, 24)
    expected = [[77] * 3, [10, 20, 30], [77] * 3, [255, 0, 0], [156] * 3, [255] * 3]
    for image, colour in zip(images, expected, strict=True):
        assert has_colour(image, colour)


@pytest.mark.parametrize("damaged", [b"", b"not a picture", TEN[0][:60], None])
def test_a_damaged_picture_is_named_by_file_and_row(tmp_path: Path, damaged: bytes | None) -> None:
    file = write_parquet(tmp_path / "a.parquet", [*TEN[:7], damaged, *TEN[8:]], [0, 1] * 5)
    assert f"Row 7 of '{file}'" in message(Parquet(train=str(file), test=str(file)))
    assert list((data_folder() / "decoded").iterdir()) == []


def test_parquet_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", TEN, [0, 1] * 5)
    missing = message(Parquet(train="nowhere.parquet"))
    assert "nowhere.parquet" in missing
    assert "data.train" in missing
    assert str(tmp_path) in missing
    assert "data.test" in message(Parquet(train=str(file), test="nowhere.parquet"))
    assert "set data.label_column to one of: img, label" in message(Parquet(train=str(file), label_column="class"))
    assert "set data.image_column to one of: img, label" in message(Parquet(train=str(file), image_column="photo"))
    assert "no picture bytes in the column 'label'" in message(Parquet(train=str(file), image_column="label"))

    text = tmp_path / "text.parquet"
    text.write_text("hello")
    assert "cannot be read as a Parquet file" in message(Parquet(train=str(text)))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(file.read_bytes()[:200])
    assert "cannot be read as a Parquet file" in message(Parquet(train=str(cut)))

    words = write_parquet(tmp_path / "words.parquet", TEN, ["x", "y"] * 5)
    assert "integers in one and text in the other" in message(Parquet(train=str(file), test=str(words)))
    floats = write_parquet(tmp_path / "floats.parquet", TEN, [0.5, 1.0] * 5)
    assert "must hold an integer or a text in every row" in message(Parquet(train=str(floats)))
    holes = write_parquet(tmp_path / "holes.parquet", TEN, [0, None] * 5)
    assert "must hold an integer or a text in every row" in message(Parquet(train=str(holes)))
    empty = write_parquet(tmp_path / "empty.parquet", [], [])
    assert "has no rows" in message(Parquet(train=str(empty)))
    single = write_parquet(tmp_path / "single.parquet", TEN[:1], [0])
    assert "both splits need at least one image" in message(Parquet(train=str(single)))

    two = pa.table({"a": pa.array(TEN), "b": pa.array(TEN), "label": pa.array([0, 1] * 5)})
    pq.write_table(two, tmp_path / "two.parquet")
    assert "2 columns that could hold pictures" in message(Parquet(train="two.parquet"))
    assert len(Parquet(train="two.parquet", image_column="b").load().train) == 8


def test_parquet_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_parquet(tmp_path / "a.parquet", TEN, [0, 1] * 5)
    first = Parquet(train=str(file)).load()

    def never(*_: object) -> np.ndarray:
        raise AssertionError("decoded twice")

    monkeypatch.setattr(parquet, "decode_picture", never)
    assert np.array_equal(Parquet(train=str(file)).load().train.images, first.train.images)


# -------------------------------------------------------------------------------------------------- image folder


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(png(flat(number, i, 0, 16)))
    return root


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "mine" / "train", {"zebra": 3, "ant": 4})
    write_folder(tmp_path / "mine" / "test", {"zebra": 2})
    (tmp_path / "mine" / "train" / "ant" / "notes.txt").write_text("not a picture, and not looked at")
    data = ImageFolder(path="mine", image_size=16).load()
    assert data.classes == ("ant", "zebra")
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3
    assert data.test.labels.tolist() == [1, 1]
    assert data.train.images[:, 1, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert data.train.images[:, 0, 0, 0].tolist() == [1] * 4 + [0] * 3


def test_image_folder_agrees_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder as Reference

    root = write_folder(tmp_path / "mine", {"b": 4, "a": 6, "c": 5})
    data = ImageFolder(path=str(root), image_size=16).load()
    assert (len(data.train), len(data.test)) == (12, 3)
    reference = Reference(str(root))
    assert list(data.classes) == reference.classes
    expected = sorted((label, np.asarray(picture).transpose(2, 0, 1).tobytes()) for picture, label in reference)
    ours = [(int(s.labels[i]), s.images[i].tobytes()) for s in (data.train, data.test) for i in range(len(s))]
    assert sorted(ours) == expected


def test_image_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    assert "data.path" in message(ImageFolder(path="nowhere"))
    (tmp_path / "bare").mkdir()
    assert "has no class folders" in message(ImageFolder(path="bare"))
    root = write_folder(tmp_path / "mine", {"train/a": 5, "train/b": 5, "test/a": 2})
    (root / "train" / "empty").mkdir()
    assert f"{Path('mine') / 'train' / 'empty'}' has no pictures" in message(ImageFolder(path="mine"))
    (root / "train" / "empty").rmdir()
    damaged = root / "train" / "b" / "3.png"
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert f"'{damaged}' is not a readable picture" in message(ImageFolder(path=str(root)))
    damaged.unlink()
    assert len(ImageFolder(path=str(root)).load().train) == 9
    write_folder(root / "test", {"c": 1})
    assert f"'{root / 'test' / 'c'}' has no counterpart" in message(ImageFolder(path=str(root)))
    half = write_folder(tmp_path / "half", {"a": 5, "b": 5, "test/a": 2})
    assert f"'{half}' has a folder 'test' but none 'train'" in message(ImageFolder(path=str(half)))


# ------------------------------------------------------------------------------------------------------- CIFAR-10


def write_cifar_parquet(folder: Path, train: str = "cifar10-train", test: str = "cifar10-test") -> Path:
    folder.mkdir(parents=True)
    write_parquet(folder / f"{train}.parquet", TEN, list(range(10)))
    write_parquet(folder / f"{test}.parquet", TEN[:4], [9, 8, 7, 6])
    return folder


@pytest.mark.parametrize("prefix", ["cifar10-", "other-", ""])
def test_cifar10_from_parquet(tmp_path: Path, prefix: str) -> None:
    write_cifar_parquet(tmp_path / "c", f"{prefix}train", f"{prefix}test")
    data = Cifar10(path="c").load()
    assert data.classes == CLASSES
    assert data.train.labels.tolist() == list(range(10))
    assert data.test.labels.tolist() == [9, 8, 7, 6]
    assert isinstance(data.train.images.base, np.memmap)


def test_cifar10_is_found_in_the_data_folder() -> None:
    write_cifar_parquet(data_folder())
    assert len(Cifar10(download=False).load().train) == 10


def test_cifar10_refuses_what_is_not_cifar10(tmp_path: Path) -> None:
    folder = write_cifar_parquet(tmp_path / "c")
    write_parquet(folder / "cifar10-test.parquet", TEN[:2], [9, 10])
    assert "must hold integers 0 to 9" in message(Cifar10(path="c"))
    write_cifar_parquet(tmp_path / "d", "one-train", "one-test")
    (tmp_path / "d" / "two-train.parquet").write_bytes(b"")
    assert "has 2 files that could be the train images" in message(Cifar10(path="d"))


def test_missing_cifar10_says_what_to_do() -> None:
    for options in (Cifar10(path="nowhere"), Cifar10(download=False)):
        text = message(options)
        assert "data.path" in text
        assert "cifar10-train.parquet" in text
        assert cifar10.ARCHIVE in text


def test_without_a_network_the_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    assert CIFAR10.url == cifar10.ARCHIVE
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    text = message(Cifar10())
    assert "cannot be downloaded" in text
    assert "FEDSEM_DATA" in text
    assert cifar10.ARCHIVE in text
    assert list(data_folder().iterdir()) == []


def write_batches(folder: Path) -> None:
    """Six small files in the form of the original Python batches."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {"data": generator.integers(0, 256, (4, 3072), np.uint8), "labels": [3, 1, 4, 1]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))


def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    for name in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, name, [(file, None) for file, _ in getattr(CIFAR10, name)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})


def test_cifar10_from_python_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch)
    folder = tmp_path / "c" / "cifar-10-batches-py"
    write_batches(folder)
    data = Cifar10(path="c").load()
    assert (len(data.train), len(data.test)) == (20, 4)
    assert data.test.labels.tolist() == [3, 1, 4, 1]
    raw = pickle.loads((folder / "test_batch").read_bytes())["data"]
    assert np.array_equal(data.test.images.reshape(4, 3072), raw)  # Stored red, green, blue, row by row.
    again = Cifar10(path=str(folder)).load()  # The folder itself will do, too.
    assert np.array_equal(again.train.images, data.train.images)


def test_damaged_python_batches_say_what_to_do(tmp_path: Path) -> None:
    write_batches(tmp_path / "c" / "cifar-10-batches-py")
    assert "incomplete or damaged" in message(Cifar10(path="c"))  # The checksums are not those of CIFAR-10.


def test_a_download_is_moved_into_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    without_checksums(monkeypatch)
    write_batches(tmp_path / "source" / "cifar-10-batches-py")
    archive = tmp_path / "web" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "source" / "cifar-10-batches-py", "cifar-10-batches-py")
    digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", digest)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(archive.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        assert len(Cifar10().load().train) == 20
        server.shutdown()
    assert sorted(entry.name for entry in data_folder().iterdir()) == ["cifar-10-batches-py", "decoded"]
    assert len(Cifar10().load().train) == 20  # Now without the server.


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_real_cifar10_labels_are_in_the_standard_order(tmp_path: Path) -> None:
    if not REAL.is_file():
        pytest.skip("no CIFAR-10 in ../shared/data")
    for part in ("train", "test"):  # The small file stands for both.
        (tmp_path / f"cifar10-{part}.parquet").symlink_to(REAL.resolve())
    data = Cifar10(path=str(tmp_path)).load()
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    # Each file's original name begins with its class.
    names = pq.read_table(REAL, columns=["img"]).column("img").combine_chunks().field("path").to_pylist()
    assert [name.rsplit("_", 1)[0] for name in names] == [CLASSES[label] for label in data.test.labels]
    # Published statistics of the training split: .4914 .4822 .4465 and .2470 .2435 .2616.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
