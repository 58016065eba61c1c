"""What the server watches from round to round."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fedsem.federation.state import FederationState
from fedsem.plan import Plan, examples_of
from fedsem.training import Parameters

_ROWS = 256
"""Images that go through the encoder at once."""


def watch(plan: Plan, before: FederationState, after: FederationState) -> None:
    """Add to the last record of a round what the plan's monitors say of it.

    Args:
        plan: the plan.
        before: the state before the round.
        after: the state after it.
    """
    if not plan.monitors:
        return
    old, new = features(plan, before.shared), features(plan, after.shared)
    record = after.history[-1]
    # As in training: results must not depend on how many cores a machine has.
    with threadpool_limits(limits=1):
        for name, monitor in plan.monitors.items():
            drift = monitor.drift(old, new)
            earlier = [one.monitored[name][0] for one in before.history if name in one.monitored]
            record.monitored[name] = [drift, monitor.score([*earlier, drift])]


@torch.no_grad()
def features(plan: Plan, shared: Parameters) -> np.ndarray:
    """What an encoder with these parameters sends for the images of `data.reserve`, (N, nc) float64."""
    assert plan.dataset.reserve is not None, "checked with the scenario"
    transmitter = plan.transmitter_with(shared).eval()
    images = examples_of(plan.dataset.reserve, plan.device).images.float() / 255
    sent = torch.cat([transmitter.send(part).x for part in images.split(_ROWS)])
    found: np.ndarray = sent.double().cpu().numpy()
    return found
