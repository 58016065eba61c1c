"""What adversaries of privacy learn from a trained link."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.leakage import Leak, Leakage, Picture
from fedsem.plan import Plan, Receiver, examples_of
from fedsem.scenario import Grid
from fedsem.streams import Stream
from fedsem.tasks.task import Examples
from fedsem.training import Parameters, detached, initial_parameters


class ExposedLink:
    """A trained link as adversaries of privacy find it (`fedsem.hooks.leakage.Exposed`).

    Args:
        link: the trained link.
        snrs: SNRs at which an adversary listens.

    Attributes:
        plan, seed, snrs: see `Exposed`.
    """

    def __init__(self, link: TrainedLink, snrs: Sequence[float]) -> None:
        self._link = link
        self.plan: Plan = link.plan
        self.seed = link.seed
        self.snrs = snrs

    @cached_property
    def own(self) -> Examples:
        """The adversary's images."""
        reserve = self.plan.dataset.reserve
        assert reserve is not None, "an attack that needs images of its own checks that there are some"
        held = examples_of(reserve, self.plan.device)
        return Examples(held.images.float() / 255, held.labels)

    @property
    def test(self) -> Examples:
        """Test images."""
        return self._link.examples

    def send(self, images: Tensor) -> Tensor:
        """What is sent for these images."""
        with torch.no_grad():
            parts = images.split(self.plan.scenario.evaluation.batch)
            return torch.cat([self._link.transmitter.send(part).x for part in parts])

    def parameters(self, receiver: Receiver, trained: bool) -> tuple[Parameters, dict[str, Parameters]]:
        """Parameters of the encoder and of a receiver's decoders."""
        keys = [branch.key for branch in self.plan.trained_branches(receiver)]
        if not trained:
            shared, decoders = initial_parameters(self.plan, self.seed)
            return shared, {key: decoders[key] for key in keys}
        held = {
            listener.branch.key: detached(listener.decoder)
            for listener in self._link.listeners
            if receiver.group in listener.group.split("+")
        }
        return detached(self._link.transmitter.encoder), {key: held[key] for key in keys}


def leaking(plan: Plan) -> dict[str, list[float]]:
    """The attacks on privacy that grids name, and the SNRs of those grids, rising."""
    found: dict[str, set[float]] = {}
    for grid in plan.scenario.evaluation.grids:
        for name in grid.attacks:
            if isinstance(plan.scenario.attacks.get(name), Leakage):
                found.setdefault(name, set()).update(grid.snr_db)
    return {name: sorted(snrs) for name, snrs in found.items()}


def without_leakage(plan: Plan, grid: Grid) -> Grid:
    """The grid with those attacks alone that disturb the signal."""
    names = [name for name in grid.attacks if not isinstance(plan.scenario.attacks.get(name), Leakage)]
    return grid.model_copy(update={"attacks": names})


def steps(plan: Plan) -> int:
    """How many points take time."""
    return sum(plan.scenario.attacks[name].points(len(snrs)) for name, snrs in leaking(plan).items())


def measure_leakage(
    link: TrainedLink, before: Sequence[Point], done: Callable[[], None]
) -> tuple[list[Point], list[dict[str, Any]]]:
    """Evaluation points and example pictures of every attack on privacy that a grid names.

    Args:
        link: the trained link.
        before: the points that stand before these: clean ones, which a leak may be compared with.
        done: called after each point that took time.
    """
    points: list[Point] = []
    pictures: list[dict[str, Any]] = []
    for name, snrs in leaking(link.plan).items():
        attack = link.plan.scenario.attacks[name]
        columns = {
            "stage": "leakage",
            "round": link.plan.scenario.federation.rounds,
            "attack": name,
            "attack_params": json.dumps({"kind": attack.kind, **attack.model_dump(mode="json")}, sort_keys=True),
            "knowledge": ", ".join(f"{what}: {known}" for what, known in attack.knowledge().items()),
        }
        first = len(points)
        leaks = []
        for leak in attack.measure(ExposedLink(link, snrs), Stream(link.seed).child("evaluate", "leakage", name)):
            leaks.append(leak)
            if not leak.guess:
                done()
            points.append(Point({**columns, **leak.columns}, _tallies(leak)))
            shown = {key: leak.columns.get(key) for key in ("receiver", "task", "snr_db", "round")}
            pictures += [row for one in leak.pictures for row in _pictures(link, name, one, shown)]
        guess = next((first + i for i, leak in enumerate(leaks) if leak.guess), None)
        for point, leak in zip(points[first:], leaks, strict=True):
            if not leak.guess:
                point.guess = None if guess is None else len(before) + guess
                point.receiver = None if leak.rival is None else _meant_for(before, leak)
    return points, pictures


def _tallies(leak: Leak) -> dict[str, Tally]:
    return {
        metric: Tally(_array(share.numerator), _array(share.denominator), leak.receptions)
        for metric, share in leak.metrics.items()
    }


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.double().cpu().numpy()
    return array


def _meant_for(points: Sequence[Point], leak: Leak) -> int | None:
    """The clean point of the task's first receivers at the leak's SNR."""
    wanted = {"stage": "evaluate", "attack": "none", "task": leak.rival, "snr_db": leak.columns["snr_db"]}
    found = (i for i, point in enumerate(points) if wanted.items() <= point.columns.items())
    return next(found, None)


def _pictures(link: TrainedLink, name: str, picture: Picture, columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The picture as it is, once for each point, and what leaked of it, as rows of the samples."""
    label = link.plan.dataset.classes[picture.label]
    return [
        {
            **columns,
            "seed": link.seed,
            "attack": name,
            "image": picture.image,
            "label": label,
            "kind": kind,
            "shape": list(values.shape),
            # Three decimals are finer than a screen's colours, and a fifth of the text.
            "values": [round(value, 3) for value in values.flatten().tolist()],
        }
        for kind, values in (("private", picture.private), ("leaked", picture.leaked))
    ]
