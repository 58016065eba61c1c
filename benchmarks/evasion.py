"""(f) Evasion at the input of a link, beside torchattacks and Foolbox on the same network: the same norm, steps, step
size, batch and number of images, one channel draw that is frozen for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from benchmarks.scenario import untrained_link
from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.evasion import Evasion
from fedsem.registry import names
from fedsem.streams import Stream
from fedsem.units import from_db

BATCH, STEPS, EPS = 128, 10, 0.05
PSRS = [-30.0, -25.0, -20.0, -15.0, -10.0]
SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "evasion",
    "compute": {"device": "cpu"},
    "data": {"kind": "digits", "test_images": 256},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"user": {"count": 1, "tasks": ["label"], "channel": "down"}},
    "evaluation": {"batch": BATCH, "draws": {"attack": 1}},
}


class _Network(nn.Module):
    """The link as the libraries want it: images to class scores, with noise that is drawn once."""

    def __init__(self, link: TrainedLink, noise: Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder, self.noise = link.transmitter.encoder, link.listeners[0].decoder, noise

    def forward(self, images: Tensor) -> Tensor:
        # torchattacks calls view on the gradient, which the encoder's memory format would not allow.
        x = self.encoder(images.flatten(1).view(images.shape))
        x = x * x.square().mean(1, keepdim=True).rsqrt()
        scores: Tensor = self.decoder(x + 10 ** (-10 / 20) * self.noise[: len(x)])
        return scores


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time for 256 images, one thread, best of 5; ratio to the library."""
    torch.set_num_threads(1)
    link = untrained_link(SCENARIO)
    air = Air(link)
    network = _Network(link, air.attack(link.listeners[0], 0).noise[0]).eval()
    # Every label is what the network says: torchattacks' APGD leaves out the images that are wrong from the start.
    with torch.no_grad():
        told = torch.cat([network(images).argmax(1) for images in link.images.split(BATCH)])
    link = replace(link, examples=replace(link.examples, labels=told))
    images, labels = link.images.contiguous(), link.labels

    def ours(kind: str, psrs: list[float], **options: Any) -> Callable[[], None]:
        made = names("attack")[kind].model_validate(options)
        assert isinstance(made, Evasion)

        def attack() -> None:
            problem = LinkProblem(link, air, made, 10.0, 10.0)
            for psr_db in psrs:
                problem.psr = from_db(psr_db)
                made.perturb(problem, Stream(0))

        return attack

    def by_torchattacks(name: str, times: int = 1, **options: Any) -> Callable[[], None]:
        made = getattr(torchattacks, name)(network, eps=EPS, **options)

        def attack() -> None:
            for _ in range(times):
                for i in range(0, len(images), BATCH):
                    made(images[i : i + BATCH], labels[i : i + BATCH])

        return attack

    def by_foolbox(made: Any, times: int = 1) -> Callable[[], None]:
        model = foolbox.PyTorchModel(network, bounds=(0, 1))

        def attack() -> None:
            for _ in range(times):
                for i in range(0, len(images), BATCH):
                    made.run(model, images[i : i + BATCH], labels[i : i + BATCH], epsilon=EPS)

        return attack

    step, noisy = EPS * 2.5 / STEPS, {"steps": STEPS}
    pairs: list[tuple[str, Callable[[], None], list[tuple[str, Callable[[], None]]]]] = [
        (
            f"FGSM, L-inf, {len(PSRS)} radii",
            ours("fgsm", PSRS, norm="linf"),
            [
                ("torchattacks", by_torchattacks("FGSM", times=len(PSRS))),
                ("Foolbox", by_foolbox(foolbox.attacks.LinfFastGradientAttack(random_start=False), len(PSRS))),
            ],
        ),
        (
            f"PGD, L-inf, {STEPS} steps",
            ours("pgd", [-20.0], norm="linf", **noisy),
            [
                ("torchattacks", by_torchattacks("PGD", alpha=step, steps=STEPS, random_start=False)),
                ("Foolbox", by_foolbox(foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS, random_start=False))),
            ],
        ),
        (
            f"PGD, L2, {STEPS} steps",
            ours("pgd", [-20.0], norm="l2", **noisy),
            [
                ("torchattacks", by_torchattacks("PGDL2", alpha=step, steps=STEPS, random_start=False)),
                ("Foolbox", by_foolbox(foolbox.attacks.L2PGD(abs_stepsize=step, steps=STEPS, random_start=False))),
            ],
        ),
        (
            f"MI-FGSM, {STEPS} steps",
            ours("mi_fgsm", [-20.0], norm="linf", **noisy),
            [("torchattacks", by_torchattacks("MIFGSM", alpha=EPS / STEPS, steps=STEPS))],
        ),
        (
            f"APGD, L-inf, {5 * STEPS} steps",
            ours("apgd", [-20.0], norm="linf", steps=5 * STEPS),
            [("torchattacks", by_torchattacks("APGD", steps=5 * STEPS))],
        ),
    ]
    rows: list[dict[str, Any]] = []
    for what, own, libraries in pairs:
        for library, theirs in libraries:
            reference, spent = _best(theirs, own)
            rows += [
                _row(f"{what}, {library}", reference, 1.0),
                _row(f"{what}, fedsem", spent, spent / reference, "at most 1"),
            ]
    one, many = _best(ours("pgd", [-20.0], steps=STEPS, draws=1), ours("pgd", [-20.0], steps=STEPS, draws=64))
    rows += [_row("PGD, 1 channel draw", one, 1.0), _row("PGD, 64 channel draws", many, many / one, "about 1")]
    return rows


def _row(variant: str, cpu_s: float, ratio: float, goal: str | None = None) -> dict[str, Any]:
    return {"benchmark": "f: evasion", "variant": variant, "cpu_s": cpu_s, "ratio": ratio, "goal": goal}


def _best(*works: Callable[[], None]) -> list[float]:
    """Least CPU time of each in five rounds of them all, so that what else the machine does meets them alike."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(5):
        for work, spent in zip(works, seconds, strict=True):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
    return [min(spent) for spent in seconds]
