"""A bare Flower + Ray app: one round, two nodes, an array of ten numbers. Run as a script by `fixed_cost`."""

from __future__ import annotations

import numpy as np
import torch  # noqa: F401  every Flower app of this field imports it
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came."""
    arrays = message.content.array_records["arrays"]
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """One round of FedAvg."""
    arrays = ArrayRecord({"w": Array(np.zeros(10, dtype=np.float32))})
    FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)


def simulate() -> None:
    """Run it on two actors."""
    run_simulation(
        server_app=server, client_app=client, num_supernodes=2,
        backend_config={"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip
