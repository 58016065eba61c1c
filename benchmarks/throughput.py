"""(c) Samples per CPU-second of local training, against a naive float32 loop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.naive import NaiveLink, train_naively
from benchmarks.pictures import write_pictures
from benchmarks.scenario import scenario
from fedsem.checks import resolve
from fedsem.scenario_file import load_scenario
from fedsem.training import ReceiverTask, initial_parameters, train_receiver

IMAGES = 4096


def measure() -> list[dict[str, Any]]:
    """Rows: samples per CPU-second on one thread, batch 64."""
    torch.set_num_threads(1)
    images, labels = torch.rand(IMAGES, 3, 32, 32), torch.randint(0, 10, (IMAGES,))
    link = NaiveLink()
    train_naively(link, images[:256], labels[:256], 64)
    start = time.process_time()
    train_naively(link, images, labels, 64)
    rows = [_row("naive float32 loop", time.process_time() - start)]
    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder), IMAGES, 100)
        for precision in ("float32", "bf16"):
            plan = resolve(load_scenario(scenario(data, "local", 1, precision)))
            shared, decoders = initial_parameters(plan, 0)
            branches = dict.fromkeys(plan.branches, 1.0)
            few, all_images = np.arange(256), np.arange(IMAGES)
            train_receiver(plan, ReceiverTask(0, 0, 1, branches, few, shared, decoders))
            start = time.process_time()
            train_receiver(plan, ReceiverTask(0, 0, 1, branches, all_images, shared, decoders))
            rows.append(_row(f"fedsem {precision}", time.process_time() - start))
    for row in rows:
        row["ratio"] = row["samples_per_cpu_s"] / rows[0]["samples_per_cpu_s"]
    rows[-1]["goal"] = "at least 2"
    return rows


def _row(variant: str, seconds: float) -> dict[str, Any]:
    return {
        "benchmark": "c: local training",
        "variant": variant,
        "cpu_s": seconds,
        "samples_per_cpu_s": IMAGES / seconds,
    }
