"""Model replacement."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveFloat

from fedsem.hooks.update import Directed, Rows, Seen
from fedsem.registry import register


@register("attack", "model_replacement")
class ModelReplacement(Directed):
    """Each malicious receiver sends `scale` times the delta that it has learnt, so that it survives averaging: with
    scale = n / f the mean of n deltas, f of them boosted, is that of the malicious ones alone plus sum(honest) / n,
    which is small once training has converged: the global model is replaced by theirs (Bagdasaryan et al., How To
    Backdoor Federated Learning, 2020, whose single attacker scales by n / eta).

    What is learnt is another attack's business: name a backdoor or a label flip beside it in `use.attacks`. With
    receivers of unequal weight n / f is approximate.

    Attributes:
        scale: None: n / f of the receivers that are averaged in the round.
    """

    scale: PositiveFloat | None = None

    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        return np.zeros(seen.own.shape[1]), seen.own

    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        return (len(seen.honest) + len(seen.own)) / len(seen.own) if self.scale is None else self.scale

    def measure(self, seen: Seen, made: Rows) -> float:
        """How far the server goes: what it learns is not to look harmful."""
        return float(np.linalg.norm(np.asarray(made, np.float64) - seen.honest.mean(0)))
