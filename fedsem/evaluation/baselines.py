"""What the tasks are measured against: detector theory, linear coding, and the mean image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedsem.channels.sensing import Sensing
from fedsem.evaluation.air import Air
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.plan import describe
from fedsem.scenario import Grid
from fedsem.streams import Stream
from fedsem.tasks.reconstruction import Reconstruction

FITTING_IMAGES = 4096
"""Training images that the linear baselines are fitted on."""


def reference_points(link: TrainedLink, air: Air, grids: Sequence[Grid]) -> list[Point]:
    """Reference points at every clean SNR of the grids, one for each receiver group's sensing or reconstruction."""
    snrs = sorted({value for grid in grids for value in grid.snr_db})
    sensing_snrs = sorted({value for grid in grids for value in (grid.sensing_snr_db or grid.snr_db)})
    points: list[Point] = []
    seen: set[tuple[str, str, str]] = set()
    for listener in link.listeners:
        key = (listener.group, listener.branch.task, listener.branch.channel)
        if key in seen:
            continue
        seen.add(key)
        if link.is_sensing(listener):
            points += _detectors(link, listener, sensing_snrs)
        elif isinstance(link.plan.task(listener.branch), Reconstruction):
            points += _linear(link, air, listener, snrs)
    return points


def _columns(link: TrainedLink, listener: Listener) -> dict[str, object]:
    return {
        "stage": "reference",
        "receiver": listener.group,
        **describe(link.plan, listener.branch),
        "attack": "none",
        "train_snr_db": None,
    }


def _detectors(link: TrainedLink, listener: Listener, snrs: Sequence[float]) -> list[Point]:
    """Energy detector and matched filter for a waveform of known energy; both know the SNR."""
    channel = link.plan.channel(listener.branch)
    scenario = link.plan.scenario
    assert isinstance(channel, Sensing)
    covered = channel.range_bins == 1 and channel.path_loss == 0 and channel.direct_path_db is None
    # A transmitter of patches sends less than nc numbers.
    if not covered or scenario.link.power != "per_example" or scenario.link.encoder.paints:
        return []
    # scipy takes a second to import, and few runs need it.
    from fedsem.evaluation.detectors import energy_detector_accuracy, matched_filter_accuracy

    points = []
    for name, theory in (("energy_detector", energy_detector_accuracy), ("matched_filter", matched_filter_accuracy)):
        for snr in snrs:
            value = theory(snr, link.plan.channel_uses, scenario.link.symbols, channel.geometry, channel.fading)
            columns = {**_columns(link, listener), "encoder": None, "decoder": name, "sensing_snr_db": snr}
            points.append(Point(columns, {"accuracy": Tally(np.array([value]), np.array([1.0]), 0)}))
    return points


def _linear(link: TrainedLink, air: Air, listener: Listener, snrs: Sequence[float]) -> list[Point]:
    """The mean image, and linear coding: nc principal components over the same channel.

    Component i is sent with power proportional to the square root of its variance (the best linear allocation at high
    SNR; Lee and Petersen, Optimal Linear Coding for Vector Channels, 1976), scaled so that power is 1 *on average*
    over images, a weaker constraint than the link's own `per_example`. The receiver is the least-squares linear decoder
    for each SNR, fitted on training images over channel draws of its own. A receiver that could invert the channel
    (`csi: zf`) equalises by MMSE here: the noise of y / h has infinite variance over Rayleigh, and no linear decoder
    could tell a deep fade.
    """
    plan, channel, symbols = link.plan, link.plan.channel(listener.branch), link.plan.scenario.link.symbols
    if channel.csi_name == "zf":
        channel = channel.model_copy(update={"csi": "mmse"})
    nc = plan.channel_uses
    train = plan.some_train_images(FITTING_IMAGES).flatten(1)
    test = link.images.flatten(1)
    mean = train.mean(0)
    columns = _columns(link, listener)
    around = (test - mean).square()
    points = [
        Point({**columns, "encoder": None, "decoder": "mean_image", "snr_db": snr}, _mse(around.mean(1).unsqueeze(0)))
        for snr in snrs
    ]
    if plan.scenario.link.encoder.paints:  # tens of thousands of components of as many pixels: no linear code is fitted
        return points
    stream = Stream(link.seed).child("evaluate", "pca")
    with stream.fork(plan.device):
        _, _, basis = torch.pca_lowrank(train - mean, q=min(nc + 10, *train.shape), center=False, niter=4)
    # Fewer images or pixels than nc have fewer directions: what is left of the channel stays unused.
    basis = nn.functional.pad(basis[:, :nc], (0, max(0, nc - basis.shape[1])))
    fit, code = (train - mean) @ basis, (test - mean) @ basis
    amplitude = fit.square().mean(0).clamp_min(1e-12).pow(-0.25)
    gain = (fit * amplitude).square().mean().rsqrt()
    left_out = (around.sum(1) - code.square().sum(1)).clamp_min(0)
    draw = channel.draw((4, len(fit)), nc, symbols, stream.child("air").torch()).to(plan.device)
    score = air.score(listener)
    for snr in snrs:
        heard = channel.apply(fit * amplitude * gain, draw, snr, symbols)
        decoder = _least_squares(heard.flatten(0, 1), fit.repeat(len(heard), 1))
        mse = []
        for k in range(len(score.noise)):
            received = channel.apply(code * amplitude * gain, score.draws(slice(k, k + 1)), snr, symbols)[0]
            wrong = _with_one(received) @ decoder - code
            mse.append((left_out + wrong.square().sum(1)) / test.shape[1])
        points.append(Point({**columns, "encoder": "pca", "decoder": "pca", "snr_db": snr}, _mse(torch.stack(mse))))
    return points


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def _least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression with a bias; the ridge only keeps a degenerate system solvable."""
    a = _with_one(inputs).double()
    gram = a.T @ a
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge, a.T @ targets.double()).float()


def _mse(mse: Tensor) -> dict[str, Tally]:
    """Tallies of (draws, N) squared errors."""
    values = mse.double().cpu()
    ones = np.full(values.shape[1], float(len(values)))
    psnr = -10 * values.clamp_min(1e-12).log10()
    return {
        "mse": Tally(values.sum(0).numpy(), ones, len(values)),
        "mse_255": Tally(255**2 * values.sum(0).numpy(), ones, len(values)),
        "psnr_db": Tally(psnr.sum(0).numpy(), ones, len(values)),
    }
