"""Example pictures and symbols for the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsem.evaluation.air import Air
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Perturbation
from fedsem.tasks.classification import Classification
from fedsem.tasks.detection import Detection
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import Task

MOST_SCENES = 2
"""Images shown of a transmitter of patches: each fills a page."""
WIDEST = 112
"""Pixels of their side at most, as they are kept."""


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

    def add(self, receptions: Receptions, delta: Perturbation, snr_db: float, columns: dict[str, Any]) -> None:
        """Keep the examples of one evaluation point at a communication SNR."""
        if not self.count:
            return
        if receptions.encoder is not None:
            if not delta:
                self._add_patches(receptions, snr_db, columns)
            return
        if not self.listeners:
            return
        x = receptions.sent(delta).first
        plan, head = self.link.plan, slice(0, self.count)
        shown = {**columns, "snr_db": snr_db, "seed": self.link.seed, "symbols": plan.scenario.link.symbols}
        images = self.link.images[head]
        air = delta.get("air")
        if air is not None:  # of an adversary who knows the channel, what meets the first reception
            air = (air[0] if air.dim() > x.dim() else air)[head]
        if not delta and not any(row["kind"] == "original" for row in self.rows):
            self._keep("original", images, {**shown, "snr_db": None})
        if "input" in delta:
            self._keep("perturbed", images + delta["input"][head], {**shown, "snr_db": None})
        for kind, listener in self.listeners.items():
            realisation = self.air.score(listener).draws(slice(0, 1)).at(head)
            turn = delta["phase"][head] if "phase" in delta else None
            with torch.no_grad():
                received = plan.channel(listener.branch).apply(
                    x[head], realisation, snr_db, plan.scenario.link.symbols, air, turn
                )[0]
                output = listener.decoder(received)
            named = {**shown, "receiver": listener.group, "task": listener.branch.task}
            if kind is Classification:
                decisions = [plan.dataset.classes[i] for i in output.argmax(-1).tolist()]
                self._keep("sent", x[head], named)
                self._keep("received", received[:, : x.shape[1]], named, decisions)
            else:
                self._keep("reconstruction", output.view_as(images).clamp(0, 1), named)

    def _add_patches(self, receptions: Receptions, snr_db: float, columns: dict[str, Any]) -> None:
        """What arrives of the first images, what is painted from it, and what the first detector finds in that."""
        mode, plan = self.link.mode, self.link.plan
        shown = {
            **columns,
            "snr_db": snr_db,
            "seed": self.link.seed,
            "selection": mode.selection,
            "mask_ratio": mode.mask_ratio,
        }
        painting = [one for one in self.link.listeners if plan.decoder_format(one.branch).paints]
        finds = [one for one in painting if isinstance(plan.task(one.branch), Detection)]
        images = self.link.images[: min(self.count, MOST_SCENES)]
        for listener in (finds or painting)[:1]:
            missing = set(range(len(images)))
            for _, heard in receptions.heard([listener], [snr_db], {}):
                for place, image in enumerate(heard.images.tolist()):
                    if image not in missing:
                        continue
                    missing.remove(image)
                    picture, named = heard.inputs[0, place], {**shown, "image": image}
                    self._keep_one("painted", _small(picture), named)
                    if heard.kept is None:
                        self._keep_one("scene", _small(images[image]), named)
                    else:
                        assert receptions.encoder is not None
                        mae = receptions.encoder.mae
                        patches = mae.patchify(images[image : image + 1])
                        seen = torch.where(heard.kept[place].view(1, -1, 1), patches, torch.nan)
                        self._keep_one("kept", _small(mae.unpatchify(seen)[0]), named)
                    if finds:
                        with torch.no_grad():
                            found = listener.decoder(picture.unsqueeze(0))[0]
                        task = plan.task(listener.branch)
                        assert isinstance(task, Detection)
                        found = found[found[:, 4] >= task.confidence]
                        side = found.new_tensor([*picture.shape[:0:-1]] * 2)
                        boxes = torch.cat([found[:, :4] / side, found[:, 4:]], dim=1)
                        self._keep_one("boxes", boxes, {**named, "task": listener.branch.task})
                if not missing:
                    break

    def _keep_one(self, kind: str, values: Tensor, columns: dict[str, Any]) -> None:
        label = self.link.plan.dataset.classes[int(self.link.labels[columns["image"]])]
        # As JSON: three decimals are finer than a screen's colours, and a fifth of the text.
        numbers = [round(value, 3) for value in values.flatten().tolist()]
        row = {"kind": kind, "label": label, "shape": list(values.shape), "values": numbers}
        self.rows.append({**columns, **row})

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


def _small(picture: Tensor) -> Tensor:
    """A picture (3, H, W) averaged over whole squares of pixels."""
    factor = -(-picture.shape[-1] // WIDEST)
    return torch.nn.functional.avg_pool2d(picture.unsqueeze(0), factor)[0]
