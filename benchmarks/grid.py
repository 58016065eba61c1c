"""(e) Evaluation of a digital link over fading: all SNRs of a grid at once, and SNR by SNR."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.scenario import untrained_link
from fedsem.evaluation.air import Air
from fedsem.evaluation.score import Scorer

SNRS = [0.0, 5.0, 10.0, 15.0, 20.0]
SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "grid",
    "compute": {"device": "cpu"},
    "data": {"kind": "digit_scenes", "train_scenes": 16, "test_scenes": 16},
    "link": {"encoder": {"kind": "mae", "scorer": "small", "latency_budget_s": 0.03}},
    "channels": {"down": {"kind": "rayleigh", "csi": "zf"}},
    "tasks": {"picture": {"kind": "reconstruction"}, "objects": {"kind": "detection"}},
    "receivers": {"user": {"count": 1, "tasks": ["picture", "objects"], "channel": "down"}},
    "evaluation": {"draws": {"score": 32}, "grids": [{"snr_db": SNRS}]},
}


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time of scoring 16 scenes, 32 fades each, at 5 SNRs for 2 tasks, one thread; ratio to SNR by SNR."""
    torch.set_num_threads(1)
    link = untrained_link(SCENARIO)
    listeners = list(link.listeners)
    Scorer(link, Air(link)).score(listeners, SNRS[:1], {})  # ranks the patches, warms up
    seconds = []
    for groups in ([[snr] for snr in SNRS], [SNRS]):
        scorer = Scorer(link, Air(link))
        start = time.process_time()
        for snrs in groups:
            scorer.score(listeners, snrs, {})
        seconds.append(time.process_time() - start)
    variants = ("SNR by SNR", "all SNRs at once")
    return [
        {"benchmark": "e: digital SNR grid", "variant": name, "cpu_s": value, "ratio": value / seconds[0]}
        for name, value in zip(variants, seconds, strict=True)
    ]
