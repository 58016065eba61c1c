"""(h) Aggregators: 100 updates of a million parameters, beside ByzFL, one thread."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import byzfl
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fedsem.hooks.aggregate import Updates
from fedsem.registry import find, names
from fedsem.streams import Stream

RECEIVERS, MALICIOUS, PARAMETERS = 100, 20, 1_000_000
FAST = ("krum", "multi_krum", "geometric_median", "centred_clipping")
OPTIONS: dict[str, dict[str, Any]] = {
    "krum": {"neighbours": "n-f-1"},
    "multi_krum": {"neighbours": "n-f-1"},
    "geometric_median": {"steps": 3, "nu": 0.1, "tolerance": 0.0, "weighted": False},
    "centred_clipping": {"steps": 5, "tau": 100.0},
    "clipping": {"limit": 5.0},
    "bucketing": {"size": 2},
    "monna": {"trusted": 0},
}
THEIRS: dict[str, Callable[[], Any]] = {
    "krum": lambda: byzfl.Krum(f=MALICIOUS),
    "multi_krum": lambda: byzfl.MultiKrum(f=MALICIOUS),
    "geometric_median": lambda: byzfl.GeometricMedian(nu=0.1, T=3),
    "centred_clipping": lambda: byzfl.CenteredClipping(L=5, tau=100.0),
    "trimmed_mean": lambda: byzfl.TrMean(f=MALICIOUS),
    "median": lambda: byzfl.Median(),
    "meamed": lambda: byzfl.Meamed(f=MALICIOUS),
    "monna": lambda: byzfl.MoNNA(f=MALICIOUS),
    "caf": lambda: byzfl.CAF(f=MALICIOUS),
    "bucketing": lambda: byzfl.Bucketing(s=2),
    "clipping": lambda: byzfl.Clipping(c=5.0),
    "arc": lambda: byzfl.ARC(f=MALICIOUS),
    "nnm": lambda: byzfl.NNM(f=MALICIOUS),
}
"""ByzFL's rules with the same options."""
PARTS = {"nnm": 50}
"""Measured on one of so many parts of the parameters: ByzFL's makes an array of n (n - f) d numbers."""


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time of each rule, of ByzFL's and their ratio; in `memory` the peak above the stacked updates, as a
    share of them."""
    stack = 0.01 * np.random.default_rng(0).standard_normal((RECEIVERS, PARAMETERS), dtype=np.float32)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return [_row(group, name, stack) for group in ("aggregator", "pre_aggregator") for name in _defenses(group)]


def _defenses(group: str) -> list[str]:
    return [name for name, kind in names(group).items() if kind.__module__.startswith("fedsem.defenses")]


def _row(group: str, name: str, stack: np.ndarray) -> dict[str, Any]:
    kind = find(group, name)
    assumed = {"f": MALICIOUS} if "f" in kind.model_fields else {}
    made: Any = kind.model_validate({**assumed, **OPTIONS.get(name, {})})
    # As the server does: it writes over the updates that it has.
    work = made.aggregate if group == "aggregator" else lambda sent: made.prepare(sent, out=sent.deltas)
    row = {"benchmark": "h: aggregators", "variant": name, "memory": _peak(work, stack)}
    if name in PARTS:
        stack = stack[:, : PARAMETERS // PARTS[name]].copy()
        row["variant"] = f"{name}, 1/{PARTS[name]} of the parameters"
    # Twice, as theirs: what fresh memory costs changes from one time to the next. On a copy each, for ours write over
    # it before a rule, and so do two of theirs.
    row["cpu_s"] = ours = min(_spent(work, _updates(stack.copy())) for _ in range(2))
    if name in THEIRS:
        # ByzFL's has a form for NumPy and one for torch, and which is faster depends on the rule.
        theirs = min(_spent(THEIRS[name](), form(stack.copy())) for form in (np.asarray, torch.from_numpy))
        goal = f"at least {5 if name in FAST else 1} times as fast as ByzFL"
        row |= {"byzfl_cpu_s": theirs, "ratio": theirs / ours, "goal": goal}
    return row


def _updates(stack: np.ndarray) -> Updates:
    return Updates(stack, np.ones(RECEIVERS), tuple(range(RECEIVERS)), stream=Stream(0), root=stack.mean(0))


def _spent(work: Callable[[Any], Any], given: Any) -> float:
    start = time.process_time()
    work(given)
    return time.process_time() - start


def _peak(work: Callable[[Updates], Any], stack: np.ndarray) -> float:
    """For a fifth of the parameters, where tracing is quick; what a rule takes grows with their number at most."""
    some = _updates(stack[:, : PARAMETERS // 5].copy())
    # What it imports at its first use is no part of it.
    work(_updates(stack[:, :1000].copy()))
    tracemalloc.start()
    work(some)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / some.deltas.nbytes
