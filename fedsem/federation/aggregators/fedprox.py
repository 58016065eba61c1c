"""FedProx: federated averaging of receivers that are held near the global model."""

from __future__ import annotations

from pydantic import NonNegativeFloat

from fedsem.federation.aggregators.fedavg import FedAvg
from fedsem.registry import register


@register("aggregator", "fedprox")
class FedProx(FedAvg):
    """Averages as FedAvg; each receiver adds mu/2 ||w - w_global||^2 over the shared parameters to its loss
    (Li et al., Federated Optimization in Heterogeneous Networks, 2020).

    Attributes:
        mu: weight of the proximal term.
    """

    mu: NonNegativeFloat = 0.01

    @property
    def proximal_mu(self) -> float:
        return self.mu
