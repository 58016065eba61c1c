"""Example pictures and symbols for the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Perturbation
from fedsem.tasks.classification import Classification
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Task


class Samples:
    """Collects, for the first test images, what was sent, what arrived, and what the first listeners made of it.

    Args:
        link: the trained link.
        air: its channel draws; the first scoring draw is shown.
        count: number of test images.
    """

    def __init__(self, link: TrainedLink, air: Air, count: int) -> None:
        self.link, self.air = link, air
        self.count = min(count, len(link.labels))
        self.rows: list[dict[str, Any]] = []
        self.listeners: dict[type[Task], Listener] = {}
        kinds: tuple[type[Task], ...] = (Classification, Reconstruction)
        for kind in kinds:
            for listener in link.listeners:
                if isinstance(link.plan.task(listener.branch), kind):
                    self.listeners.setdefault(kind, listener)

    def add(self, x: Tensor, delta: Perturbation, snr_db: float, columns: dict[str, Any]) -> None:
        """Keep the examples of one evaluation point at a communication SNR."""
        if not self.count or not self.listeners:
            return
        plan, head = self.link.plan, slice(0, self.count)
        shown = {**columns, "snr_db": snr_db, "seed": self.link.seed, "symbols": plan.scenario.link.symbols}
        images = self.link.images[head]
        if not delta and not any(row["kind"] == "original" for row in self.rows):
            self._keep("original", images, {**shown, "snr_db": None})
        if "input" in delta:
            self._keep("perturbed", images + delta["input"][head], {**shown, "snr_db": None})
        for kind, listener in self.listeners.items():
            realisation = self.air.score(listener).draws(slice(0, 1)).at(head)
            interference = delta["air"][head] if "air" in delta else None
            with torch.no_grad():
                received = plan.channel(listener.branch).apply(
                    x[head], realisation, snr_db, plan.scenario.link.symbols, interference
                )[0]
                output = listener.decoder(received)
            named = {**shown, "receiver": listener.group, "task": listener.branch.task}
            if kind is Classification:
                decisions = [plan.dataset.classes[i] for i in output.argmax(-1).tolist()]
                self._keep("sent", x[head], named)
                self._keep("received", received[:, : x.shape[1]], named, decisions)
            else:
                self._keep("reconstruction", output.view_as(images).clamp(0, 1), named)

    def _keep(self, kind: str, values: Tensor, columns: dict[str, Any], decisions: list[str] | None = None) -> None:
        for i, value in enumerate(values):
            self.rows.append(
                {
                    **columns,
                    "kind": kind,
                    "image": i,
                    "label": self.link.plan.dataset.classes[int(self.link.labels[i])],
                    "decision": decisions[i] if decisions else None,
                    "shape": list(value.shape),
                    "values": value.flatten().tolist(),
                }
            )
