"""The Flower strategy: FedAvg's rounds, with our receivers inside its nodes and our aggregators."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsem.federation.adversaries import forged
from fedsem.federation.engine import single_thread
from fedsem.federation.job import Job, Report
from fedsem.federation.monitoring import watch
from fedsem.federation.records import decode_replies, encode_tasks
from fedsem.federation.root import root_update
from fedsem.federation.rounds import combine, sample, tasks
from fedsem.federation.state import FederationState
from fedsem.training import ReceiverTask

log = logging.getLogger(__name__)


class ReceiverStrategy(FedAvg):
    """Asks receivers, not nodes: each node trains several of them; aggregation is `rounds.combine`.

    Node ids, their order and the order of replies are random in Flower; nothing here depends on them.

    Args:
        job: the training.
        nodes: ids of the nodes.
        report: called after every round.
    """

    def __init__(self, job: Job, nodes: Sequence[int], report: Report) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.job, self.nodes, self.report = job, list(nodes), report
        self.plan = job.plan
        self.state = job.state()
        self.partition = self.plan.partition(job.seed)
        self.asked: list[int] = []

    def run(self, grid: Grid) -> FederationState:
        """Train from the last checkpoint to the last round."""
        left = self.plan.scenario.federation.rounds - self.state.round
        if left > 0:
            self.start(grid, ArrayRecord(), num_rounds=left, timeout=self.plan.scenario.federation.round_timeout_s)
        return self.state

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for each node that has receivers to train in this round."""
        self.asked = sample(self.plan, self.job.seed, self.state.round + 1)
        work = tasks(self.plan, self.state, self.partition, self.job.seed, self.asked)
        return [
            Message(content=encode_tasks(self.job.text, share), dst_node_id=node, message_type=MessageType.TRAIN)
            for node, share in zip(self.nodes, balanced(work, len(self.nodes)), strict=True)
            if share
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies, write the checkpoint, report."""
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        received = [reply for message in valid for reply in decode_replies(message.content)]
        with single_thread():
            root = root_update(self.plan, self.job.seed, self.state)
            received, malicious = forged(self.plan, self.job.seed, self.state, received, root)
        before = self.state
        self.state = combine(self.plan, self.job.seed, before, self.asked, received, root)
        with single_thread():
            watch(self.plan, before, self.state)
        record = self.state.history[-1]
        record.malicious.update(malicious)
        for trouble, who in (("failed", record.failed), ("rejected", record.rejected)):
            for receiver, why in who.items():
                log.warning("Round %d: receiver %d %s: %s", record.round, receiver, trouble, why)
        self.state.save(self.job.folder, self.plan.scenario.evaluation.rounds)
        self.report(self.job, self.state)
        return None, None


def balanced(work: Sequence[ReceiverTask], nodes: int) -> list[list[ReceiverTask]]:
    """Spread receivers over nodes: the largest first, each to the node with the fewest images so far."""
    shares: list[list[ReceiverTask]] = [[] for _ in range(nodes)]
    load = [0] * nodes
    for task in sorted(work, key=lambda task: (-len(task.indices), task.receiver)):
        least = load.index(min(load))
        shares[least].append(task)
        load[least] += len(task.indices)
    return shares
