"""(g) Byzantine updates: 100 receivers, 20 of them malicious, a million parameters."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fedsem.hooks.update import Seen, UpdateAttack
from fedsem.registry import names
from fedsem.streams import Stream

RECEIVERS, MALICIOUS, PARAMETERS = 100, 20, 1_000_000


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time of forging the updates of one round, from those that were learnt, one thread."""
    rng = np.random.default_rng(0)
    sent = (0.01 * rng.standard_normal((RECEIVERS, PARAMETERS), dtype=np.float32)).astype(np.float32)
    honest, own = sent[MALICIOUS:], sent[:MALICIOUS]
    seen = Seen(
        honest,
        tuple(range(MALICIOUS, RECEIVERS)),
        own,
        lambda rows: rows.mean(0),
        lambda made: float(np.linalg.norm(made)),
    )
    rows = []
    for name, kind in names("attack").items():
        if issubclass(kind, UpdateAttack):
            made = kind.model_validate({})
            start = time.process_time()
            made.forge(seen, Stream(0))
            spent = time.process_time() - start
            goal = "" if name == "tailored" else "under 1"  # it asks the rule and the network some sixty times
            rows.append({"benchmark": "g: Byzantine updates", "variant": name, "cpu_s": spent, "goal": goal})
    return rows
