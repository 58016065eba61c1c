"""Named random streams: a stream is its name and nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsem.streams import Stream

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
NAMES = st.lists(st.one_of(st.text(st.characters(codec="utf-8"), max_size=6), st.integers(-1000, 1000)), max_size=4)


def draws(stream: Stream) -> list[float]:
    return torch.randn(4, generator=stream.torch()).tolist() + stream.numpy().normal(size=4).tolist()


def test_the_key_is_blake2b_of_the_tagged_path() -> None:
    """Pinned: a change here would change every result ever stored."""
    digest = hashlib.blake2b(b"int:1:7;str:5:train;int:2:12;", digest_size=8).digest()
    assert Stream(7).child("train", 12).key == int.from_bytes(digest, "big") // 2


@PROPERTY
@given(NAMES, NAMES, st.integers(0, 2**63), st.integers(0, 2**63))
def test_different_names_are_different_streams(a: list[str | int], b: list[str | int], s: int, t: int) -> None:
    assert (Stream(s, tuple(a)).key == Stream(t, tuple(b)).key) == (a == b and s == t)


def test_type_and_length_of_names_count() -> None:
    paths: list[tuple[str | int, ...]] = [
        (), ("",), ("", ""), ("a", 1), ("a", "1"), ("a1",), ("a", 11), ("a", 1, 1), ("a1", 1), (1, "a"), ("1", "a"),
        ("a:1",), ("a;int:1:1",), ("a;int:1:1;",), ("ab", "c"), ("a", "bc"), ("abc",), (12, 3), (1, 23), (-1, 23), (0,),
    ]  # fmt: skip
    keys = {Stream(0, path).key for path in paths} | {Stream(1).key, Stream(10).key}
    assert len(keys) == len(paths) + 2
    assert len({tuple(draws(Stream(0, path))) for path in paths}) == len(paths)


@PROPERTY
@given(NAMES, st.integers(0, 2**32))
def test_the_key_is_a_63_bit_number_that_generators_take(path: list[str | int], seed: int) -> None:
    stream = Stream(seed, tuple(path))
    assert 0 <= stream.key < 2**63
    assert draws(stream) == draws(Stream(seed, tuple(path)))


@PROPERTY
@given(NAMES, NAMES)
def test_a_path_may_be_walked_in_any_steps(a: list[str | int], b: list[str | int]) -> None:
    root = Stream(3)
    assert root.child(*a).child(*b) == root.child(*a, *b)
    assert root.child(*a).child(*b).key == root.child(*a, *b).key


def test_order_of_calls_and_of_use_does_not_matter() -> None:
    root = Stream(5)
    forwards = {receiver: draws(root.child("train", receiver)) for receiver in range(8)}
    _ = draws(root), root.numpy().normal(size=1000), torch.randn(1000)
    backwards = {receiver: draws(root.child("train", receiver)) for receiver in reversed(range(8))}
    assert forwards == backwards
    # A generator starts at the beginning each time it is asked for.
    generator = root.child("train", 0).torch()
    torch.randn(100, generator=generator)
    assert draws(root.child("train", 0)) == forwards[0]


def test_streams_are_uncorrelated() -> None:
    n = 20_000
    samples = np.stack([Stream(0).child("draw", i).numpy().normal(size=n) for i in range(8)])
    samples = np.concatenate([samples, [torch.randn(n, generator=Stream(0, ("t", i)).torch()) for i in range(8)]])
    correlation = np.corrcoef(samples) - np.eye(16)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_equal_names_of_other_integer_types_are_the_same_stream() -> None:
    """Indices often come out of NumPy: they must not open another stream without a word."""
    names: list[int] = [np.int64(3), np.int32(3), np.uint8(3)]  # type: ignore[list-item]
    assert {Stream(0).child("train", name).key for name in names} == {Stream(0).child("train", 3).key}
    assert Stream(np.int64(4)).key == Stream(4).key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [0.5, None, (1,), b"a"])
def test_names_are_text_or_integers(name: object) -> None:
    with pytest.raises(TypeError):
        _ = Stream(0).child(name).key  # type: ignore[arg-type]


def test_fork_lends_the_global_generator_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("a CPU fork must leave the accelerators alone: their state is not restored")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    stream = Stream(1).child("dropout")
    torch.default_generator.manual_seed(99)
    before = torch.get_rng_state()
    with stream.fork():
        inside = torch.randn(5)
    assert torch.equal(torch.get_rng_state(), before)
    following = torch.randn(5)
    with stream.fork(), Stream(1).child("other").fork():
        pass
    with stream.fork():
        assert torch.equal(torch.randn(5), inside)
    assert torch.equal(inside, torch.randn(5, generator=stream.torch()))
    torch.set_rng_state(before)
    assert torch.equal(torch.randn(5), following)


def test_fork_gives_back_after_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), Stream(1).fork():
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_touches_numpys_global_generator() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    with Stream(1).fork():
        Stream(1).numpy().normal()
        Stream(1).torch()
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


def test_streams_do_not_depend_on_the_process() -> None:
    code = (
        "from fedsem.streams import Stream\n"
        "s = Stream(11).child('train', 'receiver-ä', 4)\n"
        "print(s.key, s.numpy().integers(2**60, size=3).tolist(), hash('train'))"
    )
    answers = []
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONIOENCODING": "utf-8"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path) + os.pathsep + os.getcwd()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
        answers.append(done.stdout.rsplit(maxsplit=1))
    (first, hash_one), (second, hash_two) = answers
    assert hash_one != hash_two, "the two processes should differ in what hash() says"
    here = Stream(11).child("train", "receiver-ä", 4)
    assert first == second == f"{here.key} {here.numpy().integers(2**60, size=3).tolist()}"
