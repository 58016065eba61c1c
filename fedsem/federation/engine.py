"""Run trainings on the engine that the scenario names: centrally, in this process, or on Ray in a child process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fedsem.federation.child import SimulationProcess, actors
from fedsem.federation.job import Job
from fedsem.federation.state import FederationState
from fedsem.files import read_json, reading
from fedsem.scenario import Compute

Progress = Callable[[int, int], None]
"""Called with the number of a job and its rounds that are done."""


@contextmanager
def federated(
    jobs: Sequence[Job],
    compute: Compute,
    log_file: Path,
    progress: Progress,
    child: SimulationProcess | None = None,
) -> Iterator[None]:
    """Run all `jobs` to their last round, then the block; what the engine leaves running ends after the block.

    Trainings that have checkpoints go on from there; finished ones cost nothing.

    Args:
        jobs: the trainings.
        compute: engine and workers.
        log_file: where Flower, Ray and torch may chatter.
        progress: called after every round.
        child: a child process that has started Ray already; without it one is started when it is needed.

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
    if not spread or compute.engine == "local":
        yield
        return
    receivers = max(len(job.plan.receivers) for job in spread)
    child = child or SimulationProcess(actors(compute.workers, receivers))
    try:
        for event in child.run([job.dump() for job in spread], log_file):
            progress(number[spread[event["job"]]], event["round"])
        yield
        child.finish()
    finally:
        child.end()


def finished(job: Job) -> bool:
    """Whether the last round of a training is on disk."""
    index = job.folder / "state.json"
    rounds = json.loads(job.text)["federation"]["rounds"]
    if not index.is_file():
        return False
    content = read_json(index, dict)
    with reading(index):
        return bool(content["round"] >= rounds)


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread: results must not depend on how many cores a machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
