"""Receivers that a rule remembers over rounds."""

from __future__ import annotations

import numpy as np

from fedsem.errors import FederationError
from fedsem.hooks.aggregate import Updates


def roster(updates: Updates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All receivers that ever were there, in rising order: those in the memory's `receivers` and those of this round;
    and where the first and the second stand among them.

    Raises:
        FederationError: a pre-aggregator has merged updates.
    """
    if len(updates.receivers) != len(updates.deltas):
        raise FederationError("The rule must know whose update is which: use no pre-aggregator that merges them.")
    known = updates.memory.get("receivers", np.empty(0, np.int64))
    ids = np.union1d(known, np.asarray(updates.receivers, np.int64))
    return ids, np.searchsorted(ids, known), np.searchsorted(ids, updates.receivers)
