"""No perturbation may leave its budget, whatever the signal and the gradient; what can be met is met.

All budgets are recomputed here in double precision: ||delta||^2 <= PSR ||u||^2, and 0 <= u + delta <= 1 at the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ToyProblem, energy64, site, toy_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsem.hooks.budget import ascent, fill, gaussian, project
from fedsem.hooks.evasion import Evasion, Perturbation, SiteState
from fedsem.registry import names
from fedsem.streams import Stream

PROPERTY = settings(deadline=None, derandomize=True, max_examples=200)
SHAPE = (3, 8, 8)
EXAMPLES = 4
HUNDREDTH_DB = 10**0.001 - 1

IMAGES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "random": lambda g: torch.rand((EXAMPLES, *SHAPE), generator=g),
    "black": lambda g: torch.zeros((EXAMPLES, *SHAPE)),
    "white": lambda g: torch.ones((EXAMPLES, *SHAPE)),
    "binary": lambda g: torch.randint(0, 2, (EXAMPLES, *SHAPE), generator=g).float(),
    "sparse": lambda g: (torch.rand((EXAMPLES, *SHAPE), generator=g) - 0.9).clamp_min(0) * 10,
    "nearly black": lambda g: torch.rand((EXAMPLES, *SHAPE), generator=g) * 1e-4,
    "mixed": lambda g: torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE), *torch.rand((2, *SHAPE), generator=g)]),
}
GRADIENTS: dict[str, Callable[[torch.Generator, Tensor], Tensor]] = {
    "normal": lambda g, like: torch.randn(like.shape, generator=g),
    "zero": lambda g, like: torch.zeros_like(like),
    "tiny": lambda g, like: torch.randn(like.shape, generator=g) * 1e-24,
    "denormal": lambda g, like: torch.randn(like.shape, generator=g) * 1e-41,
    "huge": lambda g, like: torch.randn(like.shape, generator=g) * 1e25,
    "one pixel": lambda g, like: torch.zeros_like(like).flatten(1).index_fill(1, torch.tensor([5]), -2.0).view_as(like),
    "heavy tails": lambda g, like: torch.randn(like.shape, generator=g).pow(9),
    "outwards": lambda g, like: torch.rand(like.shape, generator=g),
    "some zero": lambda g, like: torch.randn(like.shape, generator=g) * torch.tensor([0, 1, 0, 1e-9]).view(-1, 1, 1, 1),
}
ATTACKS: list[dict[str, Any]] = [
    {"kind": "fgsm"},
    {"kind": "pgd", "steps": 3},
    {"kind": "pgd", "steps": 2, "random_start": True},
    {"kind": "pgd", "steps": 1, "step_size": 3.0},
    {"kind": "noise"},
    {"kind": "square", "queries": 9, "redraw": 4},
    {"kind": "mi_fgsm", "steps": 3},
    {"kind": "apgd", "steps": 5, "restarts": 2},
    {"kind": "apgd", "steps": 3, "loss": "dlr"},
    {"kind": "minimum_power", "steps": 2, "halvings": 3},
    {"kind": "standard", "steps": 3, "restarts": 1, "other_steps": 2, "universal_steps": 2, "judged_by": 1},
    {"kind": "jamming", "waveform": "gaussian"},
    {"kind": "jamming", "waveform": "pulsed", "duty": 0.1},
    {"kind": "jamming", "waveform": "tone"},
]
KIND_OF_SITES = st.sampled_from([["input"], ["air"], ["input", "air"]])
DRAWN = {
    "image": st.sampled_from(sorted(IMAGES)),
    "gradient": st.sampled_from(sorted(GRADIENTS)),
    "psr_db": st.floats(-60, 10),
    "seed": st.integers(0, 2**32),
}


def attack(options: dict[str, Any], norm: str, sites: list[str]) -> Evasion:
    values = {key: value for key, value in options.items() if key != "kind"}
    made = names("attack")[options["kind"]].model_validate({**values, "norm": norm, "sites": sites})
    assert isinstance(made, Evasion)
    return made


def problem(image: str, gradient: str, psr_db: float, seed: int, sites: list[str]) -> ToyProblem:
    g = torch.Generator().manual_seed(seed)
    clean = {"input": IMAGES[image](g), "air": torch.randn((EXAMPLES, *SHAPE), generator=g) * 5}
    states = {name: site(clean[name], bounded=name == "input") for name in sites}

    def forced(step: int) -> Perturbation:
        return {name: GRADIENTS[gradient](g, clean[name]) for name in sites}

    labels = torch.zeros(EXAMPLES, dtype=torch.long)

    def network(signals: Mapping[str, Tensor], index: slice) -> Tensor:
        return torch.stack([signal.flatten(1) for signal in signals.values()]).sum(0)

    return ToyProblem(network, states, 10 ** (psr_db / 10), labels, forced)


def assert_within(delta: Tensor, state: SiteState, psr: float | Tensor, norm: str) -> None:
    limit = float(psr) * energy64(state.clean)
    assert torch.isfinite(delta).all()
    assert (energy64(delta) <= limit * (1 + 1e-5)).all()
    if norm == "linf":
        largest = delta.double().abs().flatten(1).amax(1).numpy()
        assert (largest <= np.sqrt(limit / delta[0].numel()) * (1 + 1e-6)).all()
    if state.bounded:
        perturbed = state.clean.double() + delta.double()
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1 + 1e-7


@PROPERTY
@given(**DRAWN, options=st.sampled_from(ATTACKS), norm=st.sampled_from(["l2", "linf"]), sites=KIND_OF_SITES)
def test_every_attack_stays_within_the_budget(
    image: str, gradient: str, psr_db: float, seed: int, options: dict[str, Any], norm: str, sites: list[str]
) -> None:
    aimless = options["kind"] in ("noise", "jamming")
    sites = ["air"] if options["kind"] == "jamming" else sites
    where = problem(image, gradient, psr_db, seed, sites)
    delta = attack(options, norm, sites).perturb(where, Stream(seed))
    assert set(delta) == set(sites)
    for name in sites:
        assert_within(delta[name], where.sites[name], where.psr, "l2" if aimless else norm)


@PROPERTY
@given(
    **{key: DRAWN[key] for key in ("image", "psr_db", "seed")},
    kind=st.sampled_from(["universal", "perturbation_generator"]),
    norm=st.sampled_from(["l2", "linf"]),
    sites=KIND_OF_SITES,
)
def test_one_perturbation_for_all_keeps_its_budget_on_mean_power(
    image: str, psr_db: float, seed: int, kind: str, norm: str, sites: list[str]
) -> None:
    where = problem(image, "normal", psr_db, seed, sites)
    delta = attack({"kind": kind, "steps": 3, "batch": 4}, norm, sites).perturb(where, Stream(seed))
    for name in sites:
        state = where.sites[name]
        assert torch.isfinite(delta[name]).all()
        limit = float(where.psr) * energy64(state.clean).mean()
        assert energy64(delta[name]).max() <= limit * (1 + 1e-5)
        if norm == "linf":
            assert float(delta[name].abs().max()) <= math.sqrt(limit / delta[name][0].numel()) * (1 + 1e-6)
        if state.bounded:
            assert (state.clean + delta[name]).min() >= 0
            assert (state.clean + delta[name]).max() <= 1 + 1e-7


def reachable(direction: Tensor, state: SiteState) -> np.ndarray:
    """Energy of clip(s d) for s -> infinity: every component with a direction goes all the way to its border."""
    d, u = direction.double().flatten(1).numpy(), state.clean.double().flatten(1).numpy()
    largest = np.abs(d).max(axis=1, keepdims=True)
    # A component of 1e-9 of the largest would need s = 1e9: left out, so this is a little less than what is possible.
    moves = np.abs(d) > 1e-9 * largest
    return (np.where(d > 0, (1 - u) ** 2, u**2) * moves).sum(1)


def assert_met(delta: Tensor, direction: Tensor, state: SiteState, wanted: np.ndarray) -> None:
    """Energy `wanted` to 0.01 dB wherever the direction allows it, never more, and the border where it does not."""
    achieved = energy64(delta)
    most = reachable(direction, state) if state.bounded else np.where(energy64(direction) > 0, np.inf, 0.0)
    possible = most > wanted * 1.0001
    np.testing.assert_allclose(achieved[possible], wanted[possible], rtol=HUNDREDTH_DB)
    assert (achieved <= wanted * (1 + 1e-5)).all()
    np.testing.assert_array_less(np.minimum(most, wanted)[~possible] * (1 - HUNDREDTH_DB) - 1e-30, achieved[~possible])


@PROPERTY
@given(**DRAWN, sites=KIND_OF_SITES)
def test_l2_fgsm_meets_the_budget(image: str, gradient: str, psr_db: float, seed: int, sites: list[str]) -> None:
    where = problem(image, gradient, psr_db, seed, sites)
    direction = where.forced(0) if where.forced else {}
    where.forced = lambda step: direction
    delta = attack({"kind": "fgsm"}, "l2", sites).perturb(where, Stream(seed))
    for name in sites:
        state = where.sites[name]
        # In double precision the normalised direction is exact where float32's squares are zero.
        assert_met(delta[name], direction[name], state, where.psr * energy64(state.clean))
        moved = delta[name] != 0
        assert torch.equal(delta[name].sign()[moved], direction[name].sign()[moved])


@PROPERTY
@given(**DRAWN, sites=KIND_OF_SITES, norm=st.sampled_from(["l2", "linf"]))
def test_noise_has_the_energy_that_the_attack_achieved(
    image: str, gradient: str, psr_db: float, seed: int, sites: list[str], norm: str
) -> None:
    """Per example and after clipping: this is the baseline of every claim about an attack."""
    where = problem(image, gradient, psr_db, seed, sites)
    delta = attack({"kind": "pgd", "steps": 2}, norm, sites).perturb(where, Stream(seed))
    energies = {name: value.flatten(1).square().sum(1) for name, value in delta.items()}
    noise = gaussian(where.sites, energies, Stream(seed).child("noise"))
    for name in sites:
        white = torch.randn(noise[name].shape, generator=Stream(seed).child("noise", name).torch())
        assert_met(noise[name], white, where.sites[name], energy64(delta[name]))
        assert_within(noise[name], where.sites[name], where.psr, "l2")


def test_noise_on_ordinary_images_meets_achieved_energy_in_every_example() -> None:
    """No example may hide behind `reachable`: at PSR -10 dB it is possible for all of them."""
    where = problem("random", "normal", -10.0, 3, ["input", "air"])
    delta = attack({"kind": "pgd", "steps": 2}, "linf", ["input", "air"]).perturb(where, Stream(1))
    noise = gaussian(where.sites, {k: v.flatten(1).square().sum(1) for k, v in delta.items()}, Stream(2))
    for name in delta:
        np.testing.assert_allclose(energy64(noise[name]), energy64(delta[name]), rtol=HUNDREDTH_DB)
        assert energy64(noise[name]).min() > 0


@pytest.mark.parametrize("scale", [1e-24, 1e-41, 1e-9, 1.0, 1e25])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_length_of_a_gradient_does_not_matter(scale: float, bounded: bool) -> None:
    """A confident model's gradient is so small that its squares are zero in float32; its direction is what counts."""
    g = torch.Generator().manual_seed(0)
    clean, direction = torch.rand((EXAMPLES, *SHAPE), generator=g), torch.randn((EXAMPLES, *SHAPE), generator=g)
    state = site(clean, bounded)
    length = direction.double().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    exact = (direction.double() / length).float()
    # Denormal numbers have few digits left.
    tolerance = 1e-3 if scale < 1e-38 else 1e-6
    torch.testing.assert_close(ascent(direction * scale, "l2"), exact, rtol=tolerance, atol=tolerance)
    filled = fill(direction * scale, state, 0.01 * state.energy)
    np.testing.assert_allclose(energy64(filled), 0.01 * energy64(clean), rtol=HUNDREDTH_DB)


@PROPERTY
@given(st.integers(0, 2**32), st.floats(-60, 10), st.booleans())
def test_projection_finds_the_nearest_point_of_the_ball(seed: int, psr_db: float, bounded: bool) -> None:
    """L2: along the ray; L-inf: each component for itself. Then each component into [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    clean, delta = torch.rand((EXAMPLES, *SHAPE), generator=g), torch.randn((EXAMPLES, *SHAPE), generator=g) * 0.1
    psr = 10 ** (psr_db / 10)
    state = site(clean, bounded)
    u, d = clean.double().numpy(), delta.double().numpy()
    ball = np.sqrt(psr * np.square(u).sum((1, 2, 3), keepdims=True))
    box = (-u, 1 - u) if bounded else (-np.inf, np.inf)
    length = np.sqrt(np.square(d).sum((1, 2, 3), keepdims=True))
    near = {"l2": d * np.minimum(1, ball / length), "linf": np.clip(d, -ball / math.sqrt(192), ball / math.sqrt(192))}
    for norm in ("l2", "linf"):
        found = project(delta, state, psr, norm).double().numpy()
        np.testing.assert_allclose(found, np.clip(near[norm], *box), rtol=1e-5, atol=1e-7)
        again = project(torch.from_numpy(found).float(), state, psr, norm)
        np.testing.assert_allclose(again.double().numpy(), found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_with_a_random_start_starts_inside_and_away_from_the_centre(norm: str) -> None:
    """Without any gradient the result is the start itself: different in each example, the same for the same stream."""
    where = problem("random", "zero", -20.0, 5, ["air"])
    pgd = attack({"kind": "pgd", "steps": 1, "random_start": True}, norm, ["air"])
    start = pgd.perturb(where, Stream(0))["air"]
    assert_within(start, where.sites["air"], where.psr, norm)
    share = energy64(start) / (where.psr * energy64(where.sites["air"].clean))
    # Uniform in the ball: in 192 dimensions nearly all of the L2 ball lies near its surface, and E x^2 = r^2 / 3.
    assert (share > (0.9 if norm == "l2" else 0.25)).all()
    assert (share < (1.00001 if norm == "l2" else 0.42)).all()
    assert torch.equal(start, pgd.perturb(where, Stream(0))["air"])
    assert not torch.allclose(start, pgd.perturb(where, Stream(1))["air"])


def test_pgd_asks_for_new_channel_draws_in_every_step() -> None:
    where = problem("random", "normal", -20.0, 5, ["input"])
    attack({"kind": "pgd", "steps": 4}, "l2", ["input"]).perturb(where, Stream(0))
    assert where.steps == [0, 1, 2, 3]


def test_pgd_climbs_on_a_known_function() -> None:
    """The loss of a linear classifier over the L2 ball is largest along one direction; PGD must find that value."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randn((EXAMPLES, 16), generator=g)
    w = torch.randn(16, generator=g)
    labels = torch.zeros(EXAMPLES, dtype=torch.long)
    where = ToyProblem(
        lambda signals, index: torch.stack([signals["air"] @ w, torch.zeros(len(signals["air"]))], 1),
        {"air": site(clean, bounded=False)},
        0.05,
        labels,
    )
    delta = attack({"kind": "pgd", "steps": 20}, "l2", ["air"]).perturb(where, Stream(0))["air"]
    # Class 0 wins with w . x: the best perturbation is -radius * w / ||w||.
    best = -(0.05 * clean.square().sum(1)).sqrt()[:, None] * w / w.norm()
    torch.testing.assert_close(delta, best, rtol=1e-4, atol=1e-5)


def test_targets_of_toy_problems_are_real() -> None:
    """The forced gradients above could hide a broken gradient path: here the true one is used, through a network."""
    g = torch.Generator().manual_seed(1)
    net, clean = toy_classifier(192), torch.rand((EXAMPLES, *SHAPE), generator=g)
    labels = net(clean).argmax(1)
    where = ToyProblem(lambda signals, index: net(signals["input"]), {"input": site(clean)}, 0.1, labels)
    before = where.objective({"input": torch.zeros_like(clean)}, 0)
    losses = {}
    for kind, norm in (("fgsm", "linf"), ("fgsm", "l2"), ("pgd", "linf"), ("pgd", "l2"), ("noise", "l2")):
        delta = attack({"kind": kind}, norm, ["input"]).perturb(where, Stream(0))
        assert_within(delta["input"], where.sites["input"], 0.1, "l2" if kind == "noise" else norm)
        losses[kind, norm] = where.objective(delta, 0)
    for key, loss in losses.items():
        if key[0] != "noise":
            assert (loss > before).all()
            assert (loss > losses["noise", "l2"]).all()
