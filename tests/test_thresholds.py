"""Thresholds of sensing: set on receptions of their own, so that P_FA is what it should be and intervals hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fresh_link, tally, with_images
from scipy import stats
from torch import Tensor, nn

from fedsem.evaluation.air import Air
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.thresholds import Thresholds
from fedsem.evaluation.trained import TrainedLink

NC, SNR_DB = 8, -1.0
STEADY = {"kind": "sensing", "fading": "none", "known_snr": False}
HEARS_THE_SIGNAL = {"kind": "sensing", "fading": "none", "direct_path_db": 0.0}
DETECTED = stats.ncx2.sf(stats.chi2.isf(0.1, NC), NC, NC * 10 ** (SNR_DB / 10))
"""P_D of an energy detector at P_FA = 0.1: ||r / sigma||^2 is chi-squared, with a target by nc SNR off centre."""


class Energy(nn.Module):
    """The log-odds that a target is there are the energy of what is heard."""

    def forward(self, heard: Tensor) -> Tensor:
        energy = heard.square().sum(-1)
        return torch.stack([torch.zeros_like(energy), energy], -1)


def listening(channel: dict[str, Any] = STEADY, images: int = 50, draws: int = 8, seed: int = 0) -> TrainedLink:
    evaluation = {"draws": {"attack": 1, "score": draws}, "batch": 128}
    link = fresh_link(channel, "sensing", images=images, evaluation=evaluation)
    return replace(link, seed=seed, listeners=tuple(replace(one, decoder=Energy()) for one in link.listeners))


def detected(link: TrainedLink) -> tuple[float, float]:
    """P_D, and in how many receptions it was counted."""
    (scores,) = Scorer(link, Air(link)).score(link.listeners, [SNR_DB], {})
    found = tally(scores.popitem()[1], "detection_at_pfa_0.1")
    return float(found.numerator.sum() / found.denominator.sum()), float(found.denominator.sum())


def threshold(link: TrainedLink, snr_db: float = SNR_DB, scored: int = 8) -> float:
    found = Thresholds(link, scored).of(link.listeners[0], snr_db)
    assert found is not None
    return found


def test_false_alarms_of_fresh_receptions_and_detections_are_those_of_theory() -> None:
    link = listening(images=200, draws=100)
    limit = threshold(link, scored=100)
    assert limit == pytest.approx(stats.chi2.isf(0.1, NC), abs=0.06)
    alarms = []
    for _, heard in Receptions(link, Air(link, "fresh", 400)).heard(link.listeners, [SNR_DB], {}):
        assert heard.realisation.target is not None
        alarms.append((Energy()(heard.inputs)[..., 1] > limit)[heard.realisation.target == 0])
    rate = torch.cat(alarms).double()
    # Its own chance, and that of 200,000 receptions that set the threshold.
    assert float(rate.mean()) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 * (1 / len(rate) + 1 / 200_000)))
    value, count = detected(link)
    assert value == pytest.approx(DETECTED, abs=4 * np.sqrt(DETECTED * (1 - DETECTED) / count))


def test_intervals_hold_what_they_promise() -> None:
    """With a threshold that the scored receptions set themselves 78 % of them did."""
    link, inside = listening(), []
    for seed in range(200):
        value, count = detected(replace(link, seed=seed))
        low, high = stats.binomtest(round(value * count), round(count)).proportion_ci(method="wilson")
        inside.append(low <= DETECTED <= high)
    # What the threshold's twentieth leaves of 95 %, and four standard errors.
    assert np.mean(inside) > 0.944 - 4 * np.sqrt(0.944 * 0.056 / 200)


def test_no_test_image_and_no_test_draw_takes_part() -> None:
    link = listening(HEARS_THE_SIGNAL)
    limit = threshold(link)
    assert threshold(with_images(link, torch.rand_like(link.images))) == limit
    scored = Receptions(link, Air(link))
    ((_, heard),) = list(scored.heard(link.listeners, [SNR_DB], {}))
    own = Thresholds(link, 8)
    assert own.of(link.listeners[0], SNR_DB) == limit
    assert own._receptions is not None
    train = own._receptions.link.images
    assert not any(torch.equal(one, other) for one in train for other in link.images)
    noise = own._receptions.air.score(link.listeners[0]).noise
    assert len(noise) * noise.shape[1] >= 20 * 8 * len(link.labels) // 2
    mine, theirs = ({float(value) for value in part[..., 0].flatten()} for part in (noise, heard.realisation.noise))
    assert len(mine & theirs) < 5


def test_a_threshold_is_one_of_the_seed_and_the_snr_whatever_is_scored() -> None:
    link = listening(HEARS_THE_SIGNAL)
    limit = threshold(link)
    assert threshold(listening(HEARS_THE_SIGNAL)) == limit
    assert threshold(replace(link, seed=1)) != limit
    assert threshold(link, SNR_DB + 3) != limit
    scorer = Scorer(link, Air(link))
    scorer.score(link.listeners, [SNR_DB], {"air": torch.ones(len(link.labels), NC)})
    assert scorer.thresholds.of(link.listeners[0], SNR_DB) == limit


def test_what_does_not_sense_has_no_threshold() -> None:
    link = fresh_link({"kind": "awgn"})
    assert Thresholds(link, 8).of(link.listeners[0], SNR_DB) is None
