"""The one place that touches Flower's simulation entry points and its semi-private names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from uuid import uuid4

# Telemetry and update checks are off, before anything of Flower or Ray is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

LOCAL_RUN, LOCAL_NODE, SERVER_NODE = 1, 1, 0

# Flower writes to the terminal by handlers of its own; its records go where the application's go instead.
logging.getLogger("flwr").handlers.clear()
logging.getLogger("flwr").propagate = True


class LocalGrid(Grid):
    """A grid of one node in this process: messages go to the ClientApp by a plain call, failures come as replies."""

    def __init__(self, client_app: ClientApp) -> None:
        self.client_app = client_app
        self.context = Context(LOCAL_RUN, LOCAL_NODE, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {})
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=LOCAL_RUN)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [LOCAL_NODE]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            try:
                reply = self.client_app(message, self.context)
            except Exception as error:  # as Flower's own engines do: a ClientApp that raises answers with an error
                reply = Message(Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            self.replies[identifier] = reply
            ids.append(identifier)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(identifier) for identifier in list(message_ids) if identifier in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))


def run_locally(server: ServerApp, client: ClientApp) -> None:
    """Run a ServerApp and a ClientApp in this process, without Ray."""
    TaskIdentity.task_id = TaskIdentity.run_id = LOCAL_RUN
    TaskIdentity.node_id = SERVER_NODE
    server(LocalGrid(client), Context(LOCAL_RUN, SERVER_NODE, {}, RecordDict(), {}))


def start_ray(workers: int) -> None:
    """Start Ray in this process; Flower's backend finds it running and uses it."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def run_on_ray(server: ServerApp, client: ClientApp, nodes: int, gpus: float) -> None:
    """Run a ServerApp and a ClientApp on Ray actors with one CPU core each (and a share of the GPUs)."""
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=nodes,
        backend_config={
            # A worker that dies is started again and its message retried; without this its actor eats messages.
            "client_resources": {
                "num_cpus": 1,
                "num_gpus": gpus / nodes if gpus else 0.0,
                "max_restarts": -1,
                "max_task_retries": 2,
            },
        },
    )
