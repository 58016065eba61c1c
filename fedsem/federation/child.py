"""The child process that holds Flower's simulation on Ray, as its parent sees it.

Flower's simulation swallows failures and hangs on Ctrl-C, and Ray's processes outlive a careless parent. On Ray the
simulation therefore runs in a child process of its own session: its chatter goes to the log, its progress and its
errors come back as JSON lines through a pipe, and ending it ends every process that it started. It starts Ray before it
is told what to do, so that its parent can check the scenario meanwhile; nothing heavy is imported here for that reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fedsem.errors import FederationError

PATIENCE_S = 15.0
"""How long Ray may take to shut down before it is ended."""


class SimulationProcess:
    """A child process that starts Ray at once and then waits for its order.

    Args:
        workers: Ray actors.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        reader, writer = os.pipe()
        self._early = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fedsem.federation.simulation", str(workers), str(writer)],
            stdin=subprocess.PIPE,
            stdout=self._early,
            stderr=self._early,
            pass_fds=[writer],
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(writer)
        self._events = os.fdopen(reader, encoding="utf-8")

    def run(self, jobs: list[str], log_file: Path) -> Iterator[dict[str, Any]]:
        """Order these trainings; yields an event after every round, until the last one is done.

        Raises:
            FederationError: a training lost more than its policy allows, or the child broke down.
        """
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # a child that is gone already is reported below
            self._child.stdin.write(json.dumps({"jobs": jobs, "log": str(log_file)}).encode())
            self._child.stdin.close()
        for line in self._events:
            event = json.loads(line)
            if event["event"] == "done":
                return
            if event["event"] == "error":
                raise FederationError(event["message"])
            yield event
        self._early.seek(0)
        with log_file.open("ab") as log:
            log.write(self._early.read())
        raise FederationError(
            f"The simulation ended unexpectedly (exit code {self._child.wait()}); the last lines of '{log_file}' say "
            "more. Finish the run with fedsem run --resume."
        )

    def finish(self) -> None:
        """Wait until Ray has shut down; everything is on disk by then, and what hangs is ended by `end`."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(PATIENCE_S)

    def end(self) -> None:
        """End the child and every process below it, at once."""
        below: list[psutil.Process] = []
        if self._child.poll() is None:
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(self._child.pid).children(recursive=True)
            self._child.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._child.wait()
        end = time.monotonic() + 2
        while any(map(_running, below)) and time.monotonic() < end:
            time.sleep(0.01)
        self._events.close()
        self._early.close()
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()


def _running(process: psutil.Process) -> bool:
    # A killed process whose new parent is slow to reap it is dead all the same.
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def actors(wanted: int | None, receivers: int) -> int:
    """Ray actors for so many receivers: as many as are wanted, or one for each CPU core that this process may use."""
    return min(wanted or len(os.sched_getaffinity(0)), receivers)
