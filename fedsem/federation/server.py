"""The ServerApp: it holds the shared encoder and runs the trainings of a scenario one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsem.errors import FederationError
from fedsem.federation.job import Job, Report
from fedsem.federation.strategy import ReceiverStrategy

NODES_TIMEOUT_S = 120.0


def server_app(jobs: Sequence[Job], nodes: int, report: Report) -> ServerApp:
    """A ServerApp that waits for `nodes` nodes and then runs `jobs`; several trainings share one simulation."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        ids = wait_for_nodes(grid, nodes)
        for job in jobs:
            ReceiverStrategy(job, ids, report).run(grid)

    return app


def wait_for_nodes(grid: Grid, nodes: int) -> list[int]:
    """Ids of all nodes: the server starts before they have registered.

    Raises:
        FederationError: they do not come within two minutes.
    """
    end = time.monotonic() + NODES_TIMEOUT_S
    while len(ids := sorted(grid.get_node_ids())) < nodes:
        if time.monotonic() > end:
            raise FederationError(f"Only {len(ids)} of {nodes} Flower nodes registered within {NODES_TIMEOUT_S:.0f} s.")
        time.sleep(0.05)
    return ids
