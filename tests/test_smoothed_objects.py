"""Median smoothing of detected objects, and noisy copies through a transmitter of patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from fedsem.checks import resolve
from fedsem.defenses.box_slots import found_surely, in_slots, median_boxes, overlap_bounds
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime
from fedsem.evaluation.defended import defended
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.tabulate import rows as table_rows
from fedsem.evaluation.trained import TrainedLink
from fedsem.evaluation.voting import Ballots
from fedsem.federation.state import owner
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.vote import Vote
from fedsem.models.detector import padded
from fedsem.models.mae_encoder import Choice
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.tasks.detection import Detection
from fedsem.tasks.task import DecoderFormat
from fedsem.training import initial_parameters

FORMAT = DecoderFormat(width=0, channel_uses=0, image_shape=(3, 64, 64), classes=2, range_bins=1, categories=("a", "b"))


def vote(**options: Any) -> Vote:
    made = find("defense", "median_smoothing").model_validate(options)
    assert isinstance(made, Vote)
    return made


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_overlaps_of_boxes_between_bounds(seed: int) -> None:
    """No box between bounds overlaps an object less or more than is said, and one at each end does as much."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    first = 10 * uniform(1, 2)
    objects = torch.cat([first, first + 0.5 + 5 * uniform(1, 2)], 1)
    low = objects + 4 * uniform(1, 4) - 3
    high = low + 4 * uniform(1, 4) ** 2
    least, most = overlap_bounds(low, high, objects)
    boxes = low + (high - low) * uniform(4000, 4)
    boxes = torch.cat([boxes, torch.where(uniform(400, 4) < 0.5, low, high), objects.clamp(low, high)])
    whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
    overlaps = torch.where(whole, box_iou(boxes, objects)[:, 0], torch.zeros(len(boxes), dtype=torch.float64))
    assert float(least) == pytest.approx(float(overlaps.min()), abs=1e-12)
    assert float(most) == pytest.approx(float(overlaps.max()), abs=1e-12)


def rows(*boxes: tuple[float, float, float, float, float, int], most: int = 6) -> Tensor:
    """What a detector found, (most, 6), the best first."""
    return padded([torch.tensor(sorted(boxes, key=lambda row: -row[4]), dtype=torch.float32).view(-1, 6)], most)[0]


def test_boxes_of_a_category_are_sorted_by_place_and_the_best_are_kept() -> None:
    left, right = (0.0, 0.0, 4.0, 4.0, 0.6, 1), (6.0, 0.0, 9.0, 5.0, 0.9, 1)
    other, weak, third = (1.0, 1.0, 2.0, 2.0, 0.8, 0), (3.0, 3.0, 5.0, 5.0, 0.3, 1), (9.0, 9.0, 12.0, 12.0, 0.5, 1)
    slots = in_slots(torch.stack([rows(left, right, other, weak, third), rows(right)]), 3, 2, 0.4)
    assert slots.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(slots[0, 1].numpy(), [left[:5], right[:5]])
    np.testing.assert_allclose(slots[0, 0, 0].numpy(), other[:5])
    nothing = [np.inf] * 4 + [0.0]
    np.testing.assert_allclose(slots[0, 0, 1].numpy(), nothing)
    np.testing.assert_allclose(slots[1, 1].numpy(), [right[:5], nothing])
    assert torch.isinf(slots[:, 2, :, :4]).all()


def test_what_half_of_the_copies_have_is_a_box() -> None:
    """Of an even number too; not what fewer have."""
    box, wide = (0.0, 0.0, 4.0, 4.0, 0.6, 1), (0.0, 0.0, 8.0, 4.0, 0.8, 1)
    empty = rows()
    found = median_boxes(in_slots(torch.stack([rows(box), rows(wide), rows(box), empty, empty]), 2, 2, 0.4))
    np.testing.assert_allclose(found[0].numpy(), [0, 0, 8, 4, 0.6, 1])
    assert not found[1:].any()
    found = median_boxes(in_slots(torch.stack([empty, rows(box), rows(box), empty]), 2, 2, 0.4))
    np.testing.assert_allclose(found[0].numpy(), box)
    for copies in ([rows(box), empty, empty], [rows(box), empty, empty, empty]):
        assert not median_boxes(in_slots(torch.stack(copies), 2, 2, 0.4)).any()


def boxes_seen_at(place: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A toy detector of an image (2,) and its noisy copies, (n, 3, 6): one box that the first number moves, one of the
    same category far away, and one of another category that is there while the second number is below 0.3."""
    seen = place + sigma * noise
    n, zero = len(seen), torch.zeros(len(seen))
    moved = torch.stack([10 * seen[:, 0], zero, 10 * seen[:, 0] + 4, zero + 4, zero + 0.9, zero + 1], 1)
    fixed = torch.tensor([40.0, 0, 44, 4, 0.8, 1]).expand(n, 6)
    there = (seen[:, 1] < 0.3).float().unsqueeze(1)
    return torch.stack([moved, fixed, torch.tensor([20.0, 20, 24, 24, 0.7, 0]) * there], 1)


@pytest.mark.parametrize("distance", [0.0, 0.2, 0.9, 1.1, 2.0, 3.2])
def test_objects_that_are_certified_are_found_all_around(distance: float) -> None:
    """On a circle of that radius, by brute force, `f1` is no less than what is certified at its centre; and it is
    certified as far as the closed form goes: a box of width 4 whose sides each lie within d of their places has an IoU
    of (4 - 2 d) / 4 at least; the one that vanishes is there up to Phi(d) = P[seen < 0.3], d = 3."""
    sigma, n = 0.1, 20_000
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    defense, task = vote(n=n, sigma=sigma), Detection(confidence=0.4)
    truth = torch.tensor([[[0.0, 0, 4, 4, 1], [40, 0, 44, 4, 1], [20, 20, 24, 24, 0], [0, 0, 9, 9, -1]]])
    at = torch.full((1, 1), distance, dtype=torch.float64)
    share = defense.certify(boxes_seen_at(torch.zeros(2), noise, sigma).unsqueeze(1), truth, task, at, FORMAT)
    bound = float(share["certified_f1"].numerator / share["certified_f1"].denominator)
    angles = torch.arange(0, 2 * math.pi, math.pi / 16)
    left = []
    for angle in angles.tolist():
        place = distance * sigma * torch.tensor([math.cos(angle), math.sin(angle)])
        found = defense.measure(boxes_seen_at(place, noise, sigma).unsqueeze(1), truth, task)["f1"]
        left.append(float(found.numerator / found.denominator))
    assert bound <= min(left) + 1e-6
    # Of three objects and as many boxes.
    surely = 1 + (distance < 1) + (distance < 3)
    assert bound == pytest.approx(2 * surely / 6)


def test_a_box_that_could_be_another_objects_is_not_certified() -> None:
    """Two objects upon each other: the box of one could be matched with the other."""
    objects = torch.tensor([[0.0, 0, 4, 4, 0], [0.5, 0, 4.5, 4, 0], [20, 20, 24, 24, 0], [0, 0, 50, 50, -2]])
    box = torch.tensor([[[0.0, 0, 4, 4], [20, 20, 24, 24]]])
    assert found_surely(box, box, objects).tolist() == [1, 2, 3]
    assert found_surely(box, box, objects[1:]).tolist() == [2, 2, 2]
    nothing = torch.full_like(box, torch.inf)
    assert found_surely(nothing, nothing, objects).tolist() == [0, 0, 3]
    # Nothing is known: there may be boxes anywhere.
    assert found_surely(-nothing, nothing, objects).tolist() == [0, 2, 3]


# ------------------------------------------------------------------------------------------- through a link of patches


def patch_scenario(defense: dict[str, Any], psrs: list[float], **changes: Any) -> dict[str, Any]:
    """A link of pictures and objects, without a defense and behind one that is called `mine`."""
    encoder = {"kind": "mae", "scorer": "small", "mask_ratio": 0.4, **changes.pop("encoder", {})}
    grid = {"attacks": ["none", "pgd"], "defenses": ["none", "mine"], "snr_db": [60], "psr_db": psrs}
    return {
        "schema": 1,
        "name": "smoothed-patches",
        "compute": {"engine": "local", "device": "cpu"},
        "data": {"kind": "digit_scenes", "train_scenes": 8, "test_scenes": 3},
        "link": {"encoder": encoder},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"picture": {"kind": "reconstruction"}, "objects": {"kind": "detection"}},
        "receivers": {"user": {"count": 1, "tasks": ["picture", "objects"], "channel": "down"}},
        "defenses": {"mine": defense},
        "attacks": {"pgd": {"kind": "pgd", "steps": 2, "objective": {"picture": 1}}},
        "evaluation": {"draws": {"attack": 2, "score": 2}, "baselines": False, "samples": 1, "grids": [grid]},
        **changes,
    }


def patch_link(*args: Any, **changes: Any) -> TrainedLink:
    plan = resolve(check_scenario(patch_scenario(*args, **changes)))
    shared, decoders = initial_parameters(plan, 0)
    owned = {(one.id, b): (owner(plan, one, b), decoders[b.key]) for one in plan.receivers for b in one.branches}
    return TrainedLink.build(plan, 0, shared, owned)


@pytest.mark.parametrize("transport", ["analog", "digital"])
def test_copies_with_next_to_no_noise_are_the_link_itself(transport: str) -> None:
    """Sent over a channel of 60 dB the median of copies that are alike is what one reception is, with and without
    attack; next to all of it is certified for next to no power, nothing for much."""
    defense = {"kind": "median_smoothing", "n": 30, "alpha": 0.4, "sigma": 1e-4}
    link = patch_link(defense, [-160.0, -30.0], encoder={"transport": transport})
    evaluated = evaluate(link, lambda done, total: None)
    found = {
        (row["stage"], row.get("defense", "none"), row["attack"], row.get("psr_db"), row["metric"]): row["value"]
        for row in table_rows([evaluated.points], [0])
        if row["seed"] is None
    }
    plain, smoothed = (found["evaluate", name, "none", None, "mse"] for name in ("none", "mine"))
    assert smoothed == pytest.approx(plain, rel=0.02)
    assert found["evaluate", "mine", "none", None, "f1"] == found["evaluate", "none", "none", None, "f1"] > 0.3
    for psr_db in (-160.0, -30.0):
        left = found["evaluate", "mine", "pgd", psr_db, "mse"]
        assert left == pytest.approx(found["evaluate", "none", "pgd", psr_db, "mse"], rel=0.1)
        assert found["certificate", "mine", "none", psr_db, "certified_mse"] >= left
        certified = found["certificate", "mine", "none", psr_db, "certified_f1"]
        assert certified <= found["evaluate", "mine", "pgd", psr_db, "f1"]
    assert found["certificate", "mine", "none", -160.0, "certified_f1"] > 0.3
    assert found["certificate", "mine", "none", -160.0, "certified_mse"] < 1.2 * plain
    assert found["certificate", "mine", "none", -30.0, "certified_f1"] == 0


@pytest.mark.parametrize("transport", ["analog", "digital"])
def test_copies_are_what_single_transmissions_are(transport: str) -> None:
    """Each with patches of its own choice, and over an air of its own."""
    link = patch_link({"kind": "median_smoothing", "n": 70, "sigma": 0.05}, [-30.0], encoder={"transport": transport})
    behind = defended(link, link.plan.scenario.defenses["mine"])
    ballots = Ballots(behind, Air(behind))
    listener = next(one for one in link.listeners if one.branch.task == "picture")
    told = next(one.output[:, 0] for one in ballots._ballots([listener], [10.0], {}) if int(one.images) == 1)
    copies = torch.cat(list(ballots._noisy(1, link.images[1])))
    assert float((copies - link.images[1]).std()) == pytest.approx(0.05, rel=0.01)
    count = int(airtime(behind, ballots.air, listener, 10.0).received[0, 1])
    generator, channel = ballots.stream.child(listener.name, 1).torch(), link.plan.channel(listener.branch)
    uses = 0 if transport == "digital" else link.transmitter.send(copies[:1], Choice("score", count)).x.shape[-1]
    air, same, choices = channel.draw((1, 70), uses, "real", generator), 0, set()
    with torch.no_grad():
        for i in range(70):
            sent = link.transmitter.send(copies[i : i + 1], Choice("score", count))
            received = sent.drawn if uses == 0 else channel.apply(sent.x, air.at(slice(i, i + 1)), 10.0, "real")
            picture = link.transmitter.hear(received, sent).flatten()
            same += torch.allclose(picture, told[i], atol=1e-4)
            assert sent.selected is not None
            assert sent.selected.kept is not None
            choices.add(tuple(sent.selected.kept.index[0].sort().values.tolist()))
    assert len(choices) > 10
    # Rounding may swap two patches of all but equal scores, and noise then falls on others.
    assert same >= (70 if transport == "digital" else 66)


@pytest.mark.parametrize("transport", ["analog", "digital"])
def test_who_attacks_copies_climbs_the_mean_over_their_noise(transport: str) -> None:
    """The gradient is the mean of those of single copies, each with patches of its own choice."""
    sigma = 0.2
    link = patch_link({"kind": "median_smoothing", "n": 10, "sigma": sigma}, [-30.0], encoder={"transport": transport})
    attack = link.plan.scenario.attacks["pgd"]
    assert isinstance(attack, Evasion)
    here = defended(link, link.plan.scenario.defenses["mine"])
    problem = LinkProblem(here, Air(here), attack, 60.0, 60.0).quiet()
    found = problem.gradient({"input": torch.zeros_like(link.images)}, 0)["input"]
    drawn = Air(here).attack_transform(0, 2)
    assert drawn is not None
    assert len(drawn) == 2
    (listener,) = problem.weights
    singles = []
    for noise in drawn:
        images = link.images.clone().requires_grad_(True)
        choice = link.choice(torch.arange(len(images)), problem.count, changed=True)
        sent = link.transmitter.send(images + sigma * noise, choice, gates=True)
        pictures = link.transmitter.hear(sent.drawn, sent)
        loss = link.plan.task(listener.branch).objective(listener.decoder, pictures, link.images.flatten(1))
        singles.append(torch.autograd.grad(loss.mean(0).sum(), images)[0])
    torch.testing.assert_close(found, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-4 * float(found.abs().max()))
    assert float((singles[0] - singles[1]).norm()) > 0.3 * float(found.norm())


@pytest.mark.parametrize(
    ("encoder", "changes", "message"),
    [
        (
            {"latency_budget_s": 0.01},
            {"channels": {"down": {"kind": "rayleigh"}}},
            r"'defenses\.mine': of the copies that 'median_smoothing' sends, .* use a mask_ratio",
        ),
        ({"latency_budget_s": 0.01, "csi_error_db": 3.0}, {}, r"of the copies that 'median_smoothing' sends"),
    ],
)
def test_copies_of_a_random_number_of_patches_are_refused(
    encoder: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    tree = patch_scenario({"kind": "median_smoothing"}, [-30.0], encoder=encoder, **changes)
    with pytest.raises(ScenarioError, match=message):
        resolve(check_scenario(tree))


def test_originals_are_not_copied() -> None:
    tree = patch_scenario({"kind": "median_smoothing"}, [-30.0])
    tree["evaluation"]["grids"] = [{"snr_db": [10], "psr_db": [-30], "selection": ["original"], "defenses": ["mine"]}]
    with pytest.raises(ScenarioError, match=r"grids\.0\.selection': with 'original' nothing is sent"):
        resolve(check_scenario(tree))
