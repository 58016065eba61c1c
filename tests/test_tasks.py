"""Losses and metrics of the tasks, counted by hand on a few numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from fedsem.channels.channel import Realisation
from fedsem.registry import names
from fedsem.tasks.task import DecoderFormat, Examples, Share, Task

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)
FORMAT = DecoderFormat(width=20, channel_uses=20, image_shape=(3, 2, 2), classes=4, range_bins=3)
IMAGES = torch.rand((3, 3, 2, 2), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 3])
EXAMPLES = Examples(IMAGES, LABELS)


def task(kind: str, **options: Any) -> Task:
    made = names("task")[kind].model_validate(options)
    assert isinstance(made, Task)
    return made


def drawn(target: Tensor | None = None) -> Realisation:
    nothing = torch.zeros(1)
    return Realisation(nothing, nothing, nothing, nothing, target=target)


def value(share: Share) -> float:
    return float(share.numerator.sum() / share.denominator.sum())


# ------------------------------------------------------------------------------------------------------ classification


def test_accuracy_counts_every_reception() -> None:
    """Two draws of three images: one wrong in the first draw, two in the second."""
    output = torch.full((2, 3, 4), -1.0)
    for draw, said in enumerate(([0, 2, 1], [0, 1, 1])):
        for image, choice in enumerate(said):
            output[draw, image, choice] = 2.0
    share = task("classification").metrics(output, LABELS, None)["accuracy"]
    assert share.numerator.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert share.denominator.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert value(share) == 0.5


def test_reached_counts_only_examples_of_other_classes() -> None:
    made = task("classification")
    output = torch.eye(4)[torch.tensor([[2, 2, 1], [2, 2, 2]])]
    aim = made.aim(2, EXAMPLES)
    assert aim.tolist() == [2, 2, 2]
    share = made.reached(output, LABELS, aim)
    # Image 1 is of class 2 itself and does not count; of the others, 3 of 4 receptions say 2.
    assert share.denominator.tolist() == [[1, 0, 1], [1, 0, 1]]
    assert value(share) == 0.75


@PROPERTY
@given(st.integers(0, 2**31), st.floats(0.1, 50))
def test_cross_entropy_of_every_reception(seed: int, scale: float) -> None:
    output = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(seed)) * scale
    loss = task("classification").loss(output, LABELS)
    by_hand = -log_softmax(output.double().numpy(), axis=-1)[:, np.arange(3), LABELS.numpy()]
    np.testing.assert_allclose(loss.numpy(), by_hand, rtol=1e-4, atol=1e-5)


def test_classification_truth_and_goals() -> None:
    made = task("classification")
    assert torch.equal(made.truth(EXAMPLES, drawn()), LABELS)
    assert made.goals(FORMAT, 100) == 4
    assert made.headline == "accuracy"
    assert made.calibrate(torch.zeros(1, 3, 4), LABELS) is None


# ------------------------------------------------------------------------------------------------------ reconstruction


def test_mse_and_psnr_by_definition() -> None:
    """PSNR = -10 log10 MSE of each picture with pixels in [0, 1]; the table's figure is the mean over pictures, which
    is not the PSNR of the mean error."""
    made = task("reconstruction")
    truth = made.truth(EXAMPLES, drawn())
    errors = torch.tensor([[0.1, 0.01, 1.0], [0.2, 0.0, 0.5]])
    output = truth + errors.unsqueeze(-1)
    metrics = made.metrics(output, truth, None)
    torch.testing.assert_close(metrics["mse"].numerator, errors**2, rtol=1e-4, atol=1e-9)
    # Of pictures with pixels from 0 to 255, as images are stored.
    stored = (255 * output - 255 * truth).square().mean(-1)
    torch.testing.assert_close(metrics["mse_255"].numerator, stored, rtol=1e-4, atol=1e-4)
    psnr = metrics["psnr_db"].numerator
    assert psnr[0].tolist() == pytest.approx([20, 40, 0], abs=1e-3)
    assert psnr[1, 0].item() == pytest.approx(20 * math.log10(5), abs=1e-3)
    # A perfect picture has a finite figure, so that means stay finite.
    assert psnr[1, 1].item() >= 100
    assert math.isfinite(psnr[1, 1].item())
    assert value(metrics["psnr_db"]) != pytest.approx(-10 * math.log10(value(metrics["mse"])), abs=1)
    torch.testing.assert_close(made.loss(output, truth), errors**2, rtol=1e-4, atol=1e-9)


def test_the_goal_of_a_picture_is_another_picture() -> None:
    made = task("reconstruction")
    aim = made.aim(2, EXAMPLES)
    assert aim.shape == (3, 12)
    assert all(torch.equal(row, IMAGES[2].flatten()) for row in aim)
    output = aim.expand(2, 3, 12) + torch.tensor([0.0, 0.5]).view(2, 1, 1)
    share = made.reached(output, made.truth(EXAMPLES, drawn()), aim)
    torch.testing.assert_close(share.numerator, torch.tensor([[0.0] * 3, [0.25] * 3]))
    assert made.goals(FORMAT, 359) == 359


# ------------------------------------------------------------------------------------------------------------- sensing


def odds(score: list[list[float]]) -> Tensor:
    """Two outputs whose difference is the log-odds of presence."""
    wanted = torch.tensor(score)
    return torch.stack([torch.full_like(wanted, 0.7), wanted + 0.7], -1)


def test_misses_and_ghosts_are_told_apart() -> None:
    made = task("sensing")
    truth = made.truth(EXAMPLES, drawn(torch.tensor([[0, 1, 0], [1, 1, 0]])))
    output = odds([[2.0, -1.0, -3.0], [0.5, 4.0, 1.0]])
    metrics = made.metrics(output, truth, None)
    # Present: (0, 1) missed, (1, 0) and (1, 1) found. Absent: (0, 0) and (1, 2) are ghosts, (0, 2) is right.
    assert value(metrics["misses"]) == pytest.approx(1 / 3)
    assert value(metrics["ghosts"]) == pytest.approx(2 / 3)
    assert value(metrics["accuracy"]) == pytest.approx(3 / 6)
    assert metrics["misses"].denominator.tolist() == [[0, 1, 0], [1, 1, 0]]
    assert metrics["ghosts"].denominator.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert "detection_at_pfa_0.1" not in metrics


def test_the_threshold_keeps_false_alarms_at_a_tenth() -> None:
    """Scores N(0, 1) where nothing is there and N(2, 1) where something is: threshold 1.2816, P_D = 0.7637."""
    made, n = task("sensing"), 200_000
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (2, n), generator=g)
    score = torch.randn((2, n), generator=g) + 2 * truth
    threshold = made.calibrate(odds(score.tolist()), truth)
    assert threshold == pytest.approx(1.2816, abs=0.02)
    again = torch.randn((2, n), generator=g) + 2 * truth
    metrics = made.metrics(odds(again.tolist()), truth, threshold)
    assert value(metrics["detection_at_pfa_0.1"]) == pytest.approx(0.7637, abs=0.007)
    assert torch.equal(metrics["detection_at_pfa_0.1"].denominator, truth.float())
    assert threshold is not None
    alarms = (again > threshold)[truth == 0].float().mean()
    assert alarms == pytest.approx(0.1, abs=0.005)
    # The reported accuracy keeps the network's own threshold, 0.
    assert value(metrics["accuracy"]) == pytest.approx((0.5 + 0.9772) / 2, abs=0.005)


@pytest.mark.parametrize("n", [1, 5, 9, 10, 11, 100])
def test_the_threshold_of_few_receptions_is_never_too_low(n: int) -> None:
    """At most a tenth of the calibration's own noise-only receptions exceed it, and not far fewer."""
    truth = torch.cat([torch.zeros(n, dtype=torch.long), torch.ones(3, dtype=torch.long)])
    score = torch.cat([torch.randperm(n, generator=torch.Generator().manual_seed(n)).float(), torch.full((3,), 1e6)])
    threshold = task("sensing").calibrate(odds([score.tolist()]), truth.unsqueeze(0))
    assert threshold is not None
    above = int((score[:n] > threshold + 1e-3).sum())
    assert above <= n / 10
    assert above >= n / 10 - 1.5


def test_without_a_noise_only_reception_there_is_no_threshold() -> None:
    assert task("sensing").calibrate(odds([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.long)) is None


def test_range_bins_give_presence_and_range() -> None:
    """Outputs (absent, bin 0, bin 1, bin 2); presence counts all bins together."""
    made = task("sensing", range=True)
    truth = made.truth(EXAMPLES, drawn(torch.tensor([[0, 1, 3]])))
    assert truth.tolist() == [[0, 1, 3]]
    # Image 0: absent has the largest output, but the bins together weigh more. Image 2: present, wrong bin.
    output = torch.tensor([[[1.0, 0.5, 0.5, 0.5], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]]])
    metrics = made.metrics(output, truth, None)
    assert logsumexp([0.5, 0.5, 0.5]) > 1
    assert value(metrics["ghosts"]) == 1
    assert value(metrics["misses"]) == 0
    assert value(metrics["accuracy"]) == pytest.approx(2 / 3)
    assert value(metrics["range_accuracy"]) == 0.5
    assert metrics["range_accuracy"].denominator.tolist() == [[0, 1, 1]]
    by_hand = -log_softmax(output.double().numpy(), axis=-1)[0, np.arange(3), [0, 1, 3]]
    np.testing.assert_allclose(made.loss(output, truth)[0].numpy(), by_hand, rtol=1e-5)
    assert made.goals(FORMAT, 9) == 4
    presence = task("sensing")
    assert presence.truth(EXAMPLES, drawn(torch.tensor([[0, 1, 3]]))).tolist() == [[0, 1, 1]]
    assert presence.goals(FORMAT, 9) == 2


def test_reaching_a_sensing_state_counts_receptions_of_the_other_state() -> None:
    made = task("sensing")
    truth = torch.tensor([[0, 1, 0], [1, 0, 0]])
    output = odds([[1.0, 1.0, -1.0], [1.0, 2.0, 3.0]])
    share = made.reached(output, truth, made.aim(1, EXAMPLES))
    # Ghosts: of four receptions without a target, three are taken for one.
    assert share.denominator.sum() == 4
    assert value(share) == 0.75


def test_reaching_absence_is_missing_a_target_with_range_bins_too() -> None:
    """The first target is no miss: its bins together outweigh `absent`, the largest single output."""
    made = task("sensing", range=True)
    output = torch.tensor([[[1.0, 0.5, 0.5, 0.5], [3.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]])
    truth = torch.tensor([[1, 2, 3]])
    hidden = made.reached(output, truth, made.aim(0, EXAMPLES))
    assert value(hidden) == value(made.metrics(output, truth, None)["misses"]) == pytest.approx(1 / 3)
    assert value(made.reached(output, truth, made.aim(1, EXAMPLES))) == 0.5


@pytest.mark.parametrize(("kind", "sensing"), [("classification", False), ("reconstruction", False), ("sensing", True)])
def test_tasks_say_which_channel_they_need(kind: str, sensing: bool) -> None:
    made = task(kind)
    assert made.is_sensing is sensing
    assert made.weight == 1.0
    output = torch.zeros(2, 3, 12 if kind == "reconstruction" else 4)
    target = torch.tensor([[0, 1, 1]])
    assert made.headline in made.metrics(output, made.truth(EXAMPLES, drawn(target)), None)


@pytest.mark.parametrize("weight", [-1, float("inf"), float("nan"), "much"])
def test_weights_are_no_negative_numbers(weight: Any) -> None:
    with pytest.raises(ValueError, match="weight"):
        task("classification", weight=weight)
