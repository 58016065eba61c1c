"""Run trainings on the engine that the scenario names: centrally, in this process, or on Ray in a child process.

Flower's simulation swallows failures and hangs on Ctrl-C, and Ray's processes outlive a careless parent. On Ray the
simulation therefore runs in a child process of its own session: its chatter goes to the log, its progress and its
errors come back as JSON lines through a pipe, and ending it ends every process that it started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from fedsem.errors import FederationError
from fedsem.federation.job import Job
from fedsem.federation.state import FederationState
from fedsem.scenario import Compute

Progress = Callable[[int, int], None]
"""Called with the number of a job and its rounds that are done."""


@contextmanager
def federated(jobs: Sequence[Job], compute: Compute, log_file: Path, progress: Progress) -> Iterator[None]:
    """Run all `jobs` to their last round, then the block; what the engine leaves running ends after the block.

    Trainings that have checkpoints go on from there; finished ones cost nothing.

    Raises:
        FederationError: a training lost more than its policy allows, or the engine broke down.
    """
    pending = [job for job in jobs if not finished(job)]
    central = [job for job in pending if job.plan.scenario.federation.kind == "none"]
    spread = [job for job in pending if job.plan.scenario.federation.kind == "flower"]
    number = {job: i for i, job in enumerate(jobs)}

    def report(job: Job, state: FederationState) -> None:
        progress(number[job], state.round)

    if central:
        from fedsem.federation.centralised import train_centrally

        with single_thread():
            for job in central:
                train_centrally(job, report)
    if spread and compute.engine == "local":
        from fedsem.federation.adapter import run_locally
        from fedsem.federation.client import app
        from fedsem.federation.server import server_app

        with single_thread():
            run_locally(server_app(spread, 1, report), app)
    if spread and compute.engine == "ray":
        with _simulation(spread, compute, log_file, lambda index, done: progress(number[spread[index]], done)):
            yield
        return
    yield


def finished(job: Job) -> bool:
    """Whether the last round of a training is on disk."""
    index = job.folder / "state.json"
    rounds = json.loads(job.text)["federation"]["rounds"]
    return index.is_file() and json.loads(index.read_text(encoding="utf-8"))["round"] >= rounds


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread: results must not depend on how many cores a machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _simulation(jobs: Sequence[Job], compute: Compute, log_file: Path, progress: Progress) -> Iterator[None]:
    reader, writer = os.pipe()
    order = json.dumps({"jobs": [job.dump() for job in jobs], "workers": workers(compute), "pipe": writer})
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "fedsem.federation.simulation"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    os.close(writer)
    try:
        assert child.stdin is not None
        child.stdin.write(order.encode())
        child.stdin.close()
        done = False
        with os.fdopen(reader, encoding="utf-8") as events:
            for line in events:
                event = json.loads(line)
                if event["event"] == "round":
                    progress(event["job"], event["round"])
                elif event["event"] == "error":
                    raise FederationError(event["message"])
                elif event["event"] == "done":
                    done = True
                    break
        if not done:
            raise FederationError(
                f"The simulation ended unexpectedly (exit code {child.wait()}); its last lines are in '{log_file}'. "
                "Resume with fedsem run --resume."
            )
        yield
        # Everything is on disk; what still hangs in Ray's shutdown after that is ended below.
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=15)
    finally:
        end_tree(child)


def end_tree(child: subprocess.Popen[bytes]) -> None:
    """End a child and every process below it, at once."""
    try:
        below = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    except psutil.NoSuchProcess:
        below = []
    if child.poll() is None:
        child.kill()
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    child.wait()
    psutil.wait_procs(below, timeout=2)


def workers(compute: Compute) -> int:
    """Ray actors: as many as the scenario says, or one per CPU core that this process may use."""
    return compute.workers or len(os.sched_getaffinity(0))
