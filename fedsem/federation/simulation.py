"""The child process that holds Flower's simulation on Ray; started by `fedsem.federation.engine`.

Reads its order as JSON from standard input, writes events as JSON lines to the pipe that the order names.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from typing import Any

import psutil

from fedsem.errors import FedsemError
from fedsem.federation.adapter import run_on_ray
from fedsem.federation.client import app
from fedsem.federation.job import Job
from fedsem.federation.server import server_app
from fedsem.federation.state import FederationState


def main() -> None:
    """Run the simulation that standard input describes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    order = json.load(sys.stdin)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    jobs = [Job.parse(text) for text in order["jobs"]]
    number = {job: i for i, job in enumerate(jobs)}
    pipe = os.fdopen(order["pipe"], "w", encoding="utf-8")

    def send(**event: Any) -> None:
        pipe.write(json.dumps(event) + "\n")
        pipe.flush()

    def report(job: Job, state: FederationState) -> None:
        send(event="round", job=number[job], round=state.round)
        if job is jobs[-1] and state.round >= job.plan.scenario.federation.rounds:
            send(event="done")

    try:
        gpus = 0.0
        if jobs[0].plan.device.type == "cuda":
            import torch

            gpus = float(torch.cuda.device_count())
        run_on_ray(server_app(jobs, order["workers"], report), app, order["workers"], order["workers"], gpus)
    except FedsemError as error:
        send(event="error", message=str(error))
        sys.exit(1)
    except Exception as error:  # the border of the process: the parent turns this into one sentence, the log has all
        traceback.print_exc()
        send(event="error", message=f"The simulation broke down ({type(error).__name__}: {error}); run.log has more.")
        sys.exit(1)


def _follow(parent: int) -> None:
    """End this process and all below it when the parent is gone: nothing may train on for nobody."""
    while os.getppid() == parent:
        time.sleep(0.5)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(1)


if __name__ == "__main__":
    main()
