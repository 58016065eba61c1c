"""Named random streams: all randomness of a run grows from its one seed.

A stream is a path of names below the seed, such as ``("train", receiver, round)``. Its generator is keyed by the
BLAKE2b hash of that path, so that a stream depends on nothing but its name: not on the order of calls, on batch
size, on the engine, or on the process. Nothing in fedsem reads a global generator; where a library does (dropout),
`Stream.fork` lends it one for the duration of a block.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Generator
    from torch import device as Device


@dataclass(frozen=True)
class Stream:
    """A named source of randomness; `Stream(seed)` is the root of a run.

    Attributes:
        seed: the run's seed.
        path: names below it, each a string or an integer.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Stream:
        """The stream of that name below this one; the same names give the same stream, always."""
        return Stream(self.seed, self.path + names)

    @property
    def key(self) -> int:
        """A 63-bit integer that stands for this stream."""
        # Type and length of each name go into the hash: ("a", 1), ("a", "1") and ("a1",) are three streams.
        text = "".join(_tagged(name) for name in (self.seed, *self.path))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def numpy(self) -> np.random.Generator:
        """A new NumPy generator at the start of this stream."""
        return np.random.default_rng(self.key)

    def torch(self, device: Device | str = "cpu") -> Generator:
        """A new torch generator at the start of this stream, on `device`.

        torch's CPU generator looks at the low 32 bits of a seed only; CUDA's uses all. The two draw different numbers.
        """
        import torch

        return torch.Generator(device=device).manual_seed(self.key)

    @contextmanager
    def fork(self, device: Device | str = "cpu") -> Iterator[None]:
        """Seed torch's global generators (the CPU's and `device`'s) inside the block and restore them after it."""
        import torch

        target = torch.device(device)
        devices = [target] if target.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # Not torch.manual_seed: it also seeds the accelerators that are not restored.
            torch.default_generator.manual_seed(self.key)
            if devices:
                with torch.cuda.device(target):
                    torch.cuda.manual_seed(self.key)
            yield


def _tagged(name: str | int) -> str:
    """Type, length and text of a name; NumPy's integers count as integers, anything else but text is an error."""
    kind, text = ("str", str(name)) if isinstance(name, str) else ("int", str(operator.index(name)))
    return f"{kind}:{len(text)}:{text};"
