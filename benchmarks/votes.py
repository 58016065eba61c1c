"""(i) Votes: the draws of randomised smoothing and of a vote over receptions in batches, and one by one."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.scenario import untrained_link
from fedsem.evaluation.air import Air
from fedsem.evaluation.defended import defended
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "votes",
    "compute": {"device": "cpu"},
    "data": {"kind": "digits", "test_images": 16},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 20}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"user": {"count": 1, "tasks": ["label"], "channel": "down"}},
    "defenses": {
        "smoothing": {"kind": "randomised_smoothing", "n0": 28, "n": 100},
        "vote": {"kind": "reception_vote"},
    },
    "evaluation": {"grids": [{"snr_db": [10], "psr_db": [-30], "defenses": ["smoothing", "vote"]}]},
}


def measure() -> list[dict[str, Any]]:
    """Rows: CPU time of 16 images, one thread, best of 3; ratio to the same receptions encoded and decoded one by one,
    in a loop over images and draws."""
    torch.set_num_threads(1)
    link = untrained_link(SCENARIO)
    rows = []
    for name, what in (("smoothing", "Smoothing, 128 noisy copies"), ("vote", "Vote, 1,100 receptions")):
        behind = defended(link, link.plan.scenario.defenses[name])
        alone: list[float] = []
        together: list[float] = []
        for _ in range(3):
            alone.append(_one_by_one(behind))
            scorer, start = Scorer(behind, Air(behind)), time.process_time()
            scorer.score(behind.listeners, [10.0], {})
            together.append(time.process_time() - start)
        first, second = min(alone), min(together)
        shared = {"benchmark": "i: votes"}
        rows += [
            {**shared, "variant": f"{what}, one by one", "cpu_s": first, "ratio": 1.0},
            {**shared, "variant": f"{what}, in batches", "cpu_s": second, "ratio": second / first, "goal": "under 1"},
        ]
    return rows


def _one_by_one(link: TrainedLink) -> float:
    """CPU time of the same receptions, one after another; the certificate that they lead to costs nothing beside."""
    vote, (listener,) = link.vote, link.listeners
    assert vote is not None
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(len(link.labels), len(link.plan.dataset.classes))
    start = time.process_time()
    with torch.no_grad():
        for i, image in enumerate(link.images):
            x = link.transmitter.send(image.unsqueeze(0)).x
            for _ in range(vote.receptions):
                if link.transform is not None:
                    drawn = torch.randn(1, *image.shape, generator=generator)
                    x = link.transmitter.send(link.transform.transform(image, drawn)).x
                heard = x + 10 ** (-10 / 20) * torch.randn(x.shape, generator=generator)
                counts[i, listener.decoder(heard).argmax()] += 1
    return time.process_time() - start
