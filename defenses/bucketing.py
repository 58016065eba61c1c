"""Bucketing."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .krum import by_receiver


@register("pre_aggregator", "bucketing")
class Bucketing(PreAggregator):
    """Shuffles the deltas and takes the mean of each bucket of `size`; the last may hold fewer (Karimireddy, He and
    Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, 2022). Within a bucket all count alike,
    and a bucket has the sum of their weights. Every malicious update may spoil one bucket: the rule after it should
    assume the same f of fewer updates. There must be two buckets at least: one would be the mean of all.

    Attributes:
        size: deltas in a bucket, s in the paper; 1 changes nothing.
    """

    size: PositiveInt = 2

    @property
    def least_updates(self) -> int:
        return 1 if self.size == 1 else self.size + 1

    @property
    def demanding(self) -> tuple[str, int]:
        return "size", self.size

    def left(self, count: int) -> int:
        return -(-count // self.size)

    def mixture(self, updates: Updates) -> np.ndarray:
        count = len(updates.deltas)
        if self.size == 1:
            return np.eye(count)
        # By the receivers' numbers, so that the rows' order does not matter.
        shuffled = by_receiver(updates)[updates.stream.child("bucketing").numpy().permutation(count)]
        members = np.zeros((self.left(count), count))
        members[np.arange(count) // self.size, shuffled] = 1
        return members / members.sum(1, keepdims=True)
