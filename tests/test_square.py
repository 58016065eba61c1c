"""The Square attack: as strong as torchattacks' on the same network, without gradients, and not by luck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from conftest import ToyProblem, changed, energy64, head, site, tally, toy_classifier
from torch import Tensor, nn

from fedsem.attacks.square import Square, eta, propose, start  # type: ignore[import-not-found, unused-ignore]
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.budget import gaussian
from fedsem.hooks.evasion import Evasion, Perturbation, SiteState
from fedsem.registry import names
from fedsem.streams import Stream
from fedsem.units import from_db

SNR_DB = 10.0
NORMS = ["l2", "linf"]


def square(**options: Any) -> Evasion:
    made = names("attack")["square"].model_validate({"objective": {"label": 1}, **options})
    assert isinstance(made, Evasion)
    return made


def toy(shape: tuple[int, ...], rows: int, psr: float | Tensor, seed: int = 0, bounded: bool = True) -> ToyProblem:
    """A small random network without noise; every row's label is what the network says."""
    name, size = "input" if bounded else "air", math.prod(shape)
    net = toy_classifier(size, seed=seed)
    clean = torch.rand((rows, *shape), generator=torch.Generator().manual_seed(seed))
    return ToyProblem(
        lambda signals, index: net(signals[name]), {name: site(clean, bounded)}, psr, net(clean).argmax(1)
    )


# ------------------------------------------------------------------------------------------------ against torchattacks


@pytest.mark.parametrize("norm", NORMS)
def test_square_is_as_strong_as_torchattacks(norm: str) -> None:
    """48 images of three networks without noise, 100 queries each, the paper's loss. Both are random searches on the
    same images: a difference of 12 points is one of six images."""
    fooled: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    psr = {"linf": 4e-3, "l2": 3e-3}[norm]
    for seed in range(3):
        problem = toy((3, 16, 16), 16, psr, seed)
        name = {"linf": "Linf", "l2": "L2"}[norm]
        options = {"norm": norm, "objective": {"label": 1}}
        ours = square(norm=norm, queries=100, redraw=101, loss="margin")
        theirs = names("attack")["torchattacks"].model_validate(
            {"name": "Square", "options": {"n_queries": 100}, **options}
        )
        assert isinstance(theirs, Evasion)
        assert torchattacks.Square(nn.Linear(1, 1), norm=name).p_init == Square().p_init
        for who, attack in (("ours", ours), ("theirs", theirs)):
            fooled[who].append(problem.failures(attack.perturb(problem, Stream(seed)), 0, 1))
    shares = {who: float(torch.cat(parts).mean()) for who, parts in fooled.items()}
    assert 0.25 < shares["theirs"] < 0.75
    assert abs(shares["ours"] - shares["theirs"]) < 0.13


@pytest.mark.parametrize("side", [3, 5, 6, 13])
def test_the_pattern_of_the_l2_attack_is_torchattacks(side: int) -> None:
    library = torchattacks.Square(nn.Linear(1, 1))
    library.device = torch.device("cpu")
    with torch.random.fork_rng():
        seen = [library.eta(side) for _ in range(20)]
    for ours in eta(side, side):
        assert min(float((ours - theirs).abs().max()) for theirs in seen) < 1e-6
    assert (seen[0] - eta(side, side)[1]).abs().max() < 1e-6 or (seen[0] - eta(side, side)[0]).abs().max() < 1e-6


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 6), (24,)])
def test_square_finds_the_optimum_of_a_linear_loss(norm: str, shape: tuple[int, ...]) -> None:
    """The largest w . delta over the ball is known: eps ||w||_1, or r ||w||_2. A random search comes close to it."""
    g = torch.Generator().manual_seed(3)
    w, clean = torch.randn(math.prod(shape), generator=g), 5 * torch.randn((6, *shape), generator=g)
    problem = ToyProblem(
        lambda signals, index: torch.stack([-signals["air"].flatten(1) @ w, torch.zeros(6)], 1),
        {"air": site(clean, bounded=False)},
        torch.tensor([0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        torch.zeros(6, dtype=torch.long),
    )
    made = square(sites=["air"], norm=norm, queries=2000, redraw=2001, loss="margin")
    delta = made.perturb(problem, Stream(0))["air"]
    radius = np.sqrt(np.asarray(problem.psr) * energy64(clean) / (len(w) if norm == "linf" else 1))
    best = radius * float(w.norm(1 if norm == "linf" else 2))
    reached = (delta.flatten(1) @ w).numpy()
    assert (reached <= best * 1.0001).all()
    assert (reached > (0.995 if norm == "linf" else 0.75) * best).all()


# ---------------------------------------------------------------------------------------------------------- the windows


def test_a_proposal_changes_one_window_of_each_row_at_its_own_place() -> None:
    """L-inf on images: a rectangle becomes +-eps, one sign for each channel; on signals: a run of numbers."""
    for shape, share, size in (((3, 12, 10), 0.2, (5, 5)), ((40,), 0.2, (1, 8))):
        clean = torch.randn((30, *shape), generator=torch.Generator().manual_seed(0))
        state, psr = site(clean, bounded=False), torch.linspace(0.01, 0.3, 30)
        generator = torch.Generator().manual_seed(1)
        before = start(state, psr, "linf", generator)
        after = propose(before, state, psr, "linf", share, generator)
        eps = np.sqrt(psr.numpy() * energy64(clean) / clean[0].numel())
        np.testing.assert_allclose(before.flatten(1).abs().numpy(), eps[:, None].repeat(clean[0].numel(), 1), rtol=1e-5)
        images = (after != before).view(30, *(shape if len(shape) == 3 else (1, 1, *shape)))
        places = set()
        for row, moved in enumerate(images.any(1)):
            assert moved.any()
            down, across = moved.nonzero().amin(0), moved.nonzero().amax(0)
            assert all(int(b - a) < n for a, b, n in zip(down, across, size, strict=True))
            places.add(tuple(down.tolist()))
            window = after.view(images.shape)[row, :, down[0] : across[0] + 1, down[1] : across[1] + 1]
            np.testing.assert_allclose(window.abs(), float(eps[row]), rtol=1e-5)
        assert len(places) > 8


@pytest.mark.parametrize("shape", [(3, 12, 10), (40,), (1, 2, 2), (3,)])
def test_l2_proposals_spend_the_whole_budget(shape: tuple[int, ...]) -> None:
    """Energy moves from window to window: nothing is lost, whatever the window, also on tiny signals."""
    clean = torch.randn((16, *shape), generator=torch.Generator().manual_seed(0))
    state, psr, generator = site(clean, bounded=False), 0.1, torch.Generator().manual_seed(1)
    delta = start(state, psr, "l2", generator)
    for share in (0.8, 0.2, 0.01, 0.9):
        np.testing.assert_allclose(energy64(delta), 0.1 * energy64(clean), rtol=1e-4)
        delta = propose(delta, state, psr, "l2", share, generator)
    np.testing.assert_allclose(energy64(delta), 0.1 * energy64(clean), rtol=1e-4)


def test_windows_reach_every_pixel() -> None:
    clean = torch.rand((400, 1, 7, 9), generator=torch.Generator().manual_seed(0)) + 0.1
    state, generator = site(clean, bounded=False), torch.Generator().manual_seed(1)
    moved = propose(torch.zeros_like(clean), state, 0.1, "linf", 0.1, generator) != 0
    assert moved.any(0).all()
    assert not moved.flatten(1).all(0).any()


# ------------------------------------------------------------------------------------------------- a black box, no luck


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_no_gradient_is_ever_asked_for(loss: str) -> None:
    problem = toy((1, 6, 6), 3, 0.05)
    network, asked = problem.network, []

    def watched(signals: Mapping[str, Tensor], index: slice) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not any(value.requires_grad for value in signals.values())
        asked.append(index)
        return network(signals, index)

    problem.network = watched
    with torch.enable_grad():
        square(queries=25, redraw=10, loss=loss).perturb(problem, Stream(0))
    assert len(asked) == 25
    assert not problem.steps


@dataclass
class Noisy(ToyProblem):
    """The objective is luck alone: a random number for every step and perturbation. Keeps what was asked."""

    def __post_init__(self) -> None:
        self.asked: list[tuple[int, Tensor, Tensor]] = []

    def objective(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        luck = torch.rand(len(self.labels), generator=torch.Generator().manual_seed(1000 * step + len(self.asked)))
        self.asked.append((step, delta["input"].clone(), luck))
        return luck


def test_the_incumbent_is_measured_again_on_every_new_set_of_draws() -> None:
    clean = torch.rand((5, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(5, dtype=torch.long)
    problem = Noisy(lambda signals, index: signals["input"], {"input": site(clean)}, 0.05, labels)
    found = square(queries=35, redraw=10).perturb(problem, Stream(0))["input"]
    assert [step for step, _, _ in problem.asked] == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 5
    kept = torch.zeros_like(clean)
    for block in range(4):
        some = [(delta, luck) for step, delta, luck in problem.asked if step == block]
        # A new set begins with what the last one has kept, and forgets how lucky that was.
        if block:
            assert torch.equal(some[0][0], kept)
        kept = torch.stack([delta for delta, _ in some])[torch.stack([luck for _, luck in some]).argmax(0), range(5)]
    assert torch.equal(found, kept)


def few(link: TrainedLink, images: int) -> TrainedLink:
    evaluation = {"draws": {"attack": 4, "score": 16}, "baselines": False, "samples": 0}
    return changed(head(link, images), evaluation=evaluation)


def perturbed(link: TrainedLink, made: Evasion, psr_db: float) -> tuple[Perturbation, Mapping[str, SiteState]]:
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = from_db(psr_db)
    return made.perturb(problem, Stream(0).child("perturb")), problem.sites


def share(link: TrainedLink, metric: str, delta: Perturbation, made: Evasion | None = None) -> float:
    listeners = [one for one in link.listeners if one.branch.task == "label"]
    scored = next(iter(Scorer(link, Air(link)).score(listeners, [SNR_DB], delta, made)[0].values()))
    found = tally(scored, metric)
    return float(found.numerator.sum() / found.denominator.sum())


@pytest.mark.parametrize(("site_name", "images", "queries"), [("input", 40, 60), ("air", 359, 150)])
def test_at_minus_60_db_square_changes_nothing(
    trained_link: TrainedLink, site_name: str, images: int, queries: int
) -> None:
    """At 0 dB of SNR, where every reception is a matter of luck, scored on draws that the attack has not seen."""
    link = few(trained_link, images)
    made = square(sites=[site_name], queries=queries, redraw=20)
    problem = LinkProblem(link, Air(link), made, 0.0, 0.0)
    problem.psr = from_db(-60.0)
    delta = made.perturb(problem, Stream(0))
    listeners = [one for one in link.listeners if one.branch.task == "label"]
    values = []
    for perturbation in ({}, delta):
        scored = next(iter(Scorer(link, Air(link)).score(listeners, [0.0], perturbation)[0].values()))
        found = tally(scored, "accuracy")
        values.append(found.numerator.sum() / found.denominator.sum())
    assert 0.3 < values[0] < 0.95
    assert abs(values[1] - values[0]) < 0.002


# -------------------------------------------------------------------------------------------- harm on the trained link


@pytest.mark.parametrize(
    ("site_name", "norm", "loss", "psr_db", "images", "queries"),
    [
        ("input", "l2", "ce", -12.0, 40, 150),
        ("input", "linf", "ce", -12.0, 40, 150),
        ("air", "l2", "ce", -8.0, 120, 300),
        ("air", "linf", "margin", -8.0, 120, 300),
    ],
)
def test_square_hurts_more_than_noise_of_equal_energy(
    trained_link: TrainedLink, site_name: str, norm: str, loss: str, psr_db: float, images: int, queries: int
) -> None:
    link = few(trained_link, images)
    delta, sites = perturbed(link, square(sites=[site_name], norm=norm, queries=queries, loss=loss), psr_db)
    noise = gaussian(sites, {name: value.flatten(1).square().sum(1) for name, value in delta.items()}, Stream(1))
    assert share(link, "accuracy", delta) < share(link, "accuracy", noise) - 0.1


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_squares_reach_their_goal(trained_link: TrainedLink, loss: str) -> None:
    link = few(trained_link, 60)
    made = square(sites=["air"], queries=300, loss=loss, targeted={"label": 3})
    delta, _ = perturbed(link, made, -5.0)
    assert share(link, "reached", delta, made) > share(link, "reached", {}, made) + 0.3


def test_both_sites_are_searched_in_turn(trained_link: TrainedLink) -> None:
    link = few(trained_link, 20)
    both, sites = perturbed(link, square(sites=["input", "air"], queries=60), -15.0)
    for name, delta in both.items():
        assert (energy64(delta) <= from_db(-15.0) * energy64(sites[name].clean) * (1 + 1e-5)).all()
        first = square(sites=["input", "air"], queries=1)
        assert not torch.equal(delta, perturbed(link, first, -15.0)[0][name])
    again, _ = perturbed(link, square(sites=["input", "air"], queries=60), -15.0)
    assert all(torch.equal(both[name], again[name]) for name in both)


@pytest.mark.parametrize("task", ["picture", "target"])
def test_any_task_can_be_searched(trained_link: TrainedLink, task: str) -> None:
    """No gradient and no class is needed: the objective rises on draws that the search has not seen."""
    link = few(trained_link, 60)
    made = square(sites=["air"], queries=100, objective={task: 1})
    delta, _ = perturbed(link, made, -5.0)
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    with torch.no_grad():
        zero = {"air": torch.zeros_like(delta["air"])}
        clean, attacked = (problem.objective(value, 999).mean() for value in (zero, delta))
    assert attacked > 1.1 * clean


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": "margin", "objective": {"picture": 1}}, r"'attacks\.a\.loss': 'margin' is for .*; use ce\."),
        ({"loss": "margin", "objective": {}}, r"'attacks\.a\.loss': 'margin' is for an attack on one classification"),
        ({"loss": "margin", "objective": "joint"}, r"'attacks\.a\.loss': 'margin' is for"),
        ({"knowledge": {"weights": "all"}}, r"'attacks\.a\.knowledge\.weights': 'square' works with none, not 'all'"),
    ],
)
def test_what_cannot_work_is_refused(trained_link: TrainedLink, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        square(**options).check("attacks.a", trained_link.plan)


def test_what_it_knows_is_nothing_of_the_weights() -> None:
    assert square().knowledge.weights == "none"
    with pytest.raises(ValueError, match="redraw"):
        square(redraw=1)
