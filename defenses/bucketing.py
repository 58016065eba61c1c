"""Bucketing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import PositiveInt

from fedsem.hooks.aggregate import PreAggregator, Updates
from fedsem.registry import register

from .distances import combination
from .krum import by_receiver


@register("pre_aggregator", "bucketing")
class Bucketing(PreAggregator):
    """Shuffles the deltas and takes the mean of each bucket of `size`; the last may hold fewer (Karimireddy, He and
    Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, 2022). Within a bucket all count alike,
    and a bucket has the sum of their weights. Every malicious update may spoil one bucket: the rule after it should
    assume the same f of fewer updates.

    Attributes:
        size: deltas in a bucket, s in the paper; 1 changes nothing.
    """

    size: PositiveInt = 2

    def left(self, count: int) -> int:
        return -(-count // self.size)

    def prepare(self, updates: Updates) -> Updates:
        if self.size == 1:
            return updates
        count = len(updates.deltas)
        # By the receivers' numbers, so that the rows' order does not matter.
        shuffled = by_receiver(updates)[updates.stream.child("bucketing").numpy().permutation(count)]
        made = np.empty((self.left(count), updates.deltas.shape[1]), updates.deltas.dtype)
        weights = np.empty(len(made))
        for place in range(len(made)):
            bucket = shuffled[place * self.size : (place + 1) * self.size]
            made[place] = combination(updates.deltas, np.isin(np.arange(count), bucket) / len(bucket))
            weights[place] = updates.weights[bucket].sum()
        return replace(updates, deltas=made, weights=weights, receivers=())
