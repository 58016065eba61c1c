"""The centralised reference, `federation: none`: one learner with all data and all tasks."""

from __future__ import annotations

import numpy as np

from fedsem.errors import FederationError
from fedsem.federation.job import Job, Report
from fedsem.federation.state import FederationState, RoundRecord
from fedsem.training import ReceiverTask, train_receiver


def train_centrally(job: Job, report: Report) -> None:
    """Train on the union of all data, `train.epochs` passes in each of `federation.rounds` rounds.

    Every batch goes once through the encoder and then through every branch; a branch counts its task's weight times
    the number of receivers that hold it. The optimiser's state is kept from round to round.

    Raises:
        FederationError: parameters became NaN or infinite.
    """
    plan, state = job.plan, job.state()
    holders = {
        branch: sum(branch in receiver.branches for receiver in plan.receivers)
        for branch in dict.fromkeys(b for receiver in plan.receivers for b in plan.trained_branches(receiver))
    }
    indices = np.arange(len(plan.dataset.train.labels))
    while state.round < plan.scenario.federation.rounds:
        reply = train_receiver(
            plan,
            ReceiverTask(
                receiver=0,
                seed=job.seed,
                round=state.round + 1,
                branches={branch: plan.task(branch).weight * count for branch, count in holders.items()},
                indices=indices,
                shared=state.shared,
                decoders={branch.key: state.decoders[f"central/{branch.key}"] for branch in holders},
                optimizer=state.optimizer,
                keep_optimizer=True,
            ),
        )
        shared = {name: value + reply.delta[name] for name, value in state.shared.items()}
        if not all(bool(value.isfinite().all()) for value in shared.values()):
            raise FederationError(
                f"Centralised training diverged in epoch {state.round + 1}: parameters are NaN or infinite; "
                "lower train.optimizer.lr."
            )
        record = RoundRecord(
            round=state.round + 1,
            asked=[0],
            losses=reply.losses,
            examples=dict.fromkeys(reply.losses, reply.examples),
            removed=list(reply.removed or ()),
        )
        decoders = {f"central/{key}": parameters for key, parameters in reply.decoders.items()}
        state = FederationState(
            state.round + 1, shared, state.decoders | decoders, reply.optimizer, [*state.history, record]
        )
        state.save(job.folder, plan.scenario.evaluation.rounds)
        report(job, state)
