"""(a) CPU time of a federated round against the same work in a plain PyTorch loop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.naive import NaiveLink, train_naively
from benchmarks.pictures import write_pictures
from benchmarks.scenario import scenario
from fedsem import run
from fedsem.checks import resolve
from fedsem.scenario_file import load_scenario
from fedsem.training import ReceiverTask, initial_parameters, train_receiver

RECEIVERS, IMAGES, BATCH, ROUNDS = 10, 500, 64, 5


def measure() -> list[dict[str, Any]]:
    """Rows: CPU and wall seconds of one round; the first round, which warms caches, is left out.

    `ratio` is over the plain loop. `over_own_loop` is over a loop of fedsem's own local training: what Flower, Ray,
    messages and averaging cost, which the faster training would hide.
    """
    loop, own = _loop(), _own_loop()
    federated = [_federated(engine) for engine in ("local", "ray")]
    for row in (loop, own, *federated):
        row["ratio"] = row["cpu_s"] / loop["cpu_s"]
    for row in federated:
        row |= {"over_own_loop": row["cpu_s"] / own["cpu_s"], "goal": "ratio at most 1.10"}
    return [loop, own, *federated]


def _loop() -> dict[str, Any]:
    torch.set_num_threads(1)
    images, labels = torch.rand(RECEIVERS, IMAGES, 3, 32, 32), torch.randint(0, 10, (RECEIVERS, IMAGES))
    link = NaiveLink()
    train_naively(link, images[0], labels[0], BATCH)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(2):
        for receiver in range(RECEIVERS):
            train_naively(link, images[receiver], labels[receiver], BATCH)
    return {
        "benchmark": "a: federated round", "variant": "plain PyTorch loop",
        "cpu_s": (time.process_time() - cpu) / 2, "wall_s": (time.perf_counter() - wall) / 2,
    }  # fmt: skip


def _own_loop() -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder), RECEIVERS * IMAGES, 100)
        plan = resolve(load_scenario(scenario(data, "local", 1)))
        shared, decoders = initial_parameters(plan, 0)
        branches = dict.fromkeys(plan.branches, 1.0)
        tasks = [
            ReceiverTask(receiver, 0, 1, branches, indices, shared, decoders)
            for receiver, indices in enumerate(plan.partition(0))
        ]
        train_receiver(plan, tasks[0])
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(2):
            for task in tasks:
                train_receiver(plan, task)
    return {
        "benchmark": "a: federated round", "variant": "loop of fedsem's local training",
        "cpu_s": (time.process_time() - cpu) / 2, "wall_s": (time.perf_counter() - wall) / 2,
    }  # fmt: skip


def _federated(engine: str) -> dict[str, Any]:
    marks: list[tuple[float, float]] = []

    def progress(stage: str, label: str, done: int, total: int) -> None:
        if stage == "federate":
            marks.append((_cpu_seconds(), time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder), RECEIVERS * IMAGES, 100)
        run(scenario(data, engine, ROUNDS), out=folder, progress=progress)
    (cpu, wall), (cpu_end, wall_end) = marks[0], marks[-1]
    return {
        "benchmark": "a: federated round", "variant": f"engine: {engine}",
        "cpu_s": (cpu_end - cpu) / (len(marks) - 1), "wall_s": (wall_end - wall) / (len(marks) - 1),
    }  # fmt: skip


def _cpu_seconds() -> float:
    """CPU seconds of this process and everything below it."""
    total = 0.0
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
