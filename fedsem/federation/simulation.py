"""What the child process of `fedsem.federation.child` does: Flower's simulation on Ray.

Its arguments are the number of Ray actors and the descriptor of the pipe for its events. It starts Ray, reads its order
as JSON from standard input, and then writes one JSON line for each event.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from typing import Any

from fedsem.errors import FedsemError
from fedsem.federation.adapter import run_on_ray, start_ray
from fedsem.parent import follow_parent


def main() -> None:
    """Start Ray, read the order, run it."""
    follow_parent()
    workers, pipe = int(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w", encoding="utf-8")

    def send(**event: Any) -> None:
        pipe.write(json.dumps(event) + "\n")
        pipe.flush()

    try:
        start_ray(workers)
        text = sys.stdin.read()
        if text:  # nothing: the parent found that there is nothing to train
            _run(json.loads(text), workers, send)
    except FedsemError as error:
        send(event="error", message=str(error))
        sys.exit(1)
    except Exception as error:  # the border of the process: the parent turns this into one sentence, the log has all
        traceback.print_exc()
        send(event="error", message=f"The simulation broke down ({type(error).__name__}: {error}); run.log has more.")
        sys.exit(1)


def _run(order: dict[str, Any], workers: int, send: Any) -> None:
    from fedsem.federation.client import app
    from fedsem.federation.job import Job
    from fedsem.federation.server import server_app
    from fedsem.federation.state import FederationState

    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    jobs = [Job.parse(text) for text in order["jobs"]]
    number = {job: i for i, job in enumerate(jobs)}

    def report(job: Job, state: FederationState) -> None:
        send(event="round", job=number[job], round=state.round)
        if job is jobs[-1] and state.round >= job.plan.scenario.federation.rounds:
            send(event="done")

    gpus = 0.0
    if jobs[0].plan.device.type == "cuda":
        import torch

        gpus = float(torch.cuda.device_count())
    run_on_ray(server_app(jobs, workers, report), app, workers, gpus)


if __name__ == "__main__":
    main()
