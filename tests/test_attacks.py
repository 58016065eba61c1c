"""FGSM, PGD and noise on links: against torchattacks and finite differences, and in the order that science expects."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from conftest import SHARED_LINK, changed, double_precision, energy64, fresh_link, head, small_plan, tally
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.channel import Realisation
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.evaluate import Measurement, evaluate
from fedsem.evaluation.point import Point, Tally
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.statistics import Bootstrap, Measured
from fedsem.evaluation.tabulate import rows
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.registry import names
from fedsem.streams import Stream
from fedsem.units import from_db

SNR_DB = 10.0


def attack(kind: str, **options: Any) -> Evasion:
    made = names("attack")[kind].model_validate({"objective": {"label": 1}, **options})
    assert isinstance(made, Evasion)
    return made


def with_draws(link: TrainedLink, attack_draws: int, score_draws: int, batch: int = 128) -> TrainedLink:
    draws = {"attack": attack_draws, "score": score_draws}
    return changed(link, evaluation={"draws": draws, "batch": batch, "baselines": False, "samples": 0})


class FrozenAir(Air):
    """One draw for all steps: the link becomes an ordinary network."""

    def attack(self, listener: Listener, step: int, draws: int | None = None) -> Realisation:
        return super().attack(listener, 0, draws)


class Network(nn.Module):
    """The label task as an ordinary network, with the noise of each image frozen; written out, not through the link."""

    def __init__(self, link: TrainedLink, noise: Tensor) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(link.transmitter.encoder)
        self.decoder = copy.deepcopy(next(one.decoder for one in link.listeners if one.branch.task == "label"))
        self.noise = torch.tensor(10 ** (-SNR_DB / 20), dtype=torch.float32) * noise
        self.index = slice(None)
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.eval()

    def select(self, i: int) -> None:
        self.index = slice(i, i + 1)

    def decode(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decoder(x + self.noise[self.index])
        return logits

    def forward(self, images: Tensor) -> Tensor:
        # torchattacks calls view on the gradient; flattening makes that of a channels-last network contiguous.
        x = self.encoder(images.flatten(1).view(images.shape))
        return self.decode(x / x.square().mean(1, keepdim=True).sqrt())


def label_noise(link: TrainedLink, air: Air) -> Tensor:
    """Noise of the first attack draw, (N, nc)."""
    listener = next(one for one in link.listeners if one.branch.task == "label")
    return air.attack(listener, 0).noise[0]


@pytest.fixture(scope="module")
def small(trained_link: TrainedLink) -> TrainedLink:
    """The trained link on 16 test images, one draw, one image at a time (as torchattacks sees them below)."""
    return head(with_draws(trained_link, 1, 4, batch=1), 16)


@pytest.fixture(scope="module")
def double(small: TrainedLink) -> TrainedLink:
    """The same link in float64: no sign of a gradient and no tie of a max-pool is decided by rounding."""
    return double_precision(small)


# ------------------------------------------------------------------------------------------- against torchattacks


def theirs(
    model: nn.Module, name: str, clean: Tensor, labels: Tensor, radii: list[float], select: Callable[[int], None]
) -> Tensor:
    """torchattacks' perturbation, image by image, each with its own radius."""
    found = []
    for i, radius in enumerate(radii):
        select(i)
        options: dict[str, Any] = {"eps": radius}
        if name != "FGSM":
            # Our default step: 2.5 / steps of the radius.
            options |= {"alpha": radius * 0.25, "steps": 10, "random_start": False}
        if name == "PGDL2":
            options["eps_for_division"] = 1e-30
        one = slice(i, i + 1)
        found.append(getattr(torchattacks, name)(model, **options)(clean[one], labels[one]) - clean[one])
    return torch.cat(found)


SAME = [("fgsm", "linf", "FGSM"), ("pgd", "linf", "PGD"), ("pgd", "l2", "PGDL2")]


def options_of(kind: str, norm: str) -> dict[str, Any]:
    return {"norm": norm} if kind == "fgsm" else {"norm": norm, "steps": 10, "random_start": False}


def radii_of(clean: Tensor, psr: float, norm: str) -> list[float]:
    """Design section 4: sqrt(PSR E), and sqrt(PSR mean u^2) for L-inf."""
    size = clean[0].numel() if norm == "linf" else 1
    return [math.sqrt(psr * float(energy) / size) for energy in energy64(clean)]


def ours_and_theirs(link: TrainedLink, kind: str, norm: str, name: str, psr_db: float) -> tuple[Tensor, Tensor]:
    """The whole path, PSR to perturbation, and torchattacks on the same network at the same radius of each image."""
    air = FrozenAir(link)
    made = attack(kind, **options_of(kind, norm))
    problem = LinkProblem(link, air, made, SNR_DB, SNR_DB)
    problem.psr = from_db(psr_db)
    ours = made.perturb(problem, Stream(0))["input"]
    model = Network(link, label_noise(link, air))
    radii = radii_of(link.images, problem.psr, norm)
    return ours, theirs(model, name, link.images, link.labels, radii, model.select)


@pytest.mark.parametrize("psr_db", [-25.0, -15.0])
@pytest.mark.parametrize(("kind", "norm", "name"), SAME)
def test_attacks_equal_torchattacks_at_the_input(
    double: TrainedLink, kind: str, norm: str, name: str, psr_db: float
) -> None:
    ours, peer = ours_and_theirs(double, kind, norm, name, psr_db)
    assert ours.dtype == torch.float64
    assert (ours - peer).abs().max() < 5e-6
    assert (peer.abs().flatten(1).amax(1) > 0.01).all()


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacks_equal_foolbox_at_the_input(double: TrainedLink, kind: str) -> None:
    """A second peer, on the same network at the same radius of each image."""
    air = FrozenAir(double)
    made = attack(kind, **options_of(kind, "linf"))
    problem = LinkProblem(double, air, made, SNR_DB, SNR_DB)
    problem.psr = from_db(-15.0)
    ours = made.perturb(problem, Stream(0))["input"]
    model = Network(double, label_noise(double, air))
    for i, radius in enumerate(radii_of(double.images, problem.psr, "linf")):
        model.select(i)
        one = slice(i, i + 1)
        peer: foolbox.Attack = foolbox.attacks.LinfFastGradientAttack()
        if kind == "pgd":
            peer = foolbox.attacks.LinfProjectedGradientDescentAttack(
                abs_stepsize=0.25 * radius, steps=10, random_start=False
            )
        _, (found,), _ = peer(
            foolbox.PyTorchModel(model, bounds=(0, 1)), double.images[one], double.labels[one], epsilons=[radius]
        )
        assert (ours[one] - (found - double.images[one])).abs().max() < 5e-6


@pytest.mark.parametrize(("kind", "norm", "name"), SAME)
def test_attacks_equal_torchattacks_in_single_precision(small: TrainedLink, kind: str, norm: str, name: str) -> None:
    """Where a gradient is zero but for rounding, or a max-pool all but tied, PGD may go another way from the second
    step on: most images have no such point in 10 steps."""
    ours, peer = ours_and_theirs(small, kind, norm, name, -15.0)
    apart = (ours - peer).abs()
    if kind == "fgsm":
        assert apart.max() < 5e-6
    else:
        assert (apart > 5e-6).float().mean() < 0.1
        assert apart.flatten(1).amax(1).median() < 5e-6


@pytest.mark.parametrize(("kind", "norm", "name"), SAME)
def test_attacks_over_the_air_equal_torchattacks_through_the_affine_map(
    double: TrainedLink, kind: str, norm: str, name: str
) -> None:
    """A transmitted signal leaves [0, 1], to which torchattacks clamps without a word. It sees u = (x + R) / 2R, with R
    so large that its clamp cannot act; that it did not is asserted."""
    air = FrozenAir(double)
    made = attack(kind, sites=["air"], **options_of(kind, norm))
    problem = LinkProblem(double, air, made, SNR_DB, SNR_DB)
    problem.psr = from_db(-6.0)
    ours = made.perturb(problem, Stream(0))["air"]
    x = problem.sites["air"].clean
    assert x.min() < 0
    assert x.max() > 1
    reach = float(x.abs().max()) * 2
    model = Network(double, label_noise(double, air))

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = model.anchor

        def forward(self, u: Tensor) -> Tensor:
            assert bool(((u > 0.01) & (u < 0.99)).all()), "the clamp to [0, 1] may act"
            return model.decode((2 * reach * u - reach).flatten(1))

    u = ((x + reach) / (2 * reach)).view(len(x), 1, 1, -1)
    radii = [radius / (2 * reach) for radius in radii_of(x, problem.psr, norm)]
    peer = 2 * reach * theirs(Mapped(), name, u, double.labels, radii, model.select).flatten(1)
    assert (ours - peer).abs().max() < 5e-6
    assert peer.abs().max() > 0.1


# ------------------------------------------------------------------------------------- the gradient of the expectation


def heard(name: str, x: Tensor, interference: Tensor, drawn: dict[str, Tensor], snr_db: float) -> Tensor:
    """What one draw of a channel makes of x, in double precision, from the definitions of design section 4."""
    sigma = 10 ** (-snr_db / 20)
    h, g, noise = drawn["h"], drawn["g"], drawn["noise"]
    if "complex" not in name:
        h, g = h.abs(), g.abs()
        if name == "sensing":
            return torch.cat(
                [
                    (drawn["target"].view(-1, 1) * h * x + g * interference) / sigma + noise,
                    torch.full((len(x), 1), snr_db / 20, dtype=x.dtype),
                ],
                1,
            )
        y = h * x + g * interference + sigma * noise
        return y / h if "zf" in name else y * h / (h**2 + sigma**2) if "mmse" in name else y

    def pair(v: Tensor) -> Tensor:
        return torch.complex(v[:, 0::2], v[:, 1::2]) / math.sqrt(2)

    y = h * pair(x) + g * pair(interference) + sigma * noise
    if "phase" in name:
        y = y * torch.exp(-1j * h.angle())
    elif "zf" in name:
        y = y / h
    elif "mmse" in name:
        y = y * h.conj() / (h.abs() ** 2 + sigma**2)
    return torch.stack([y.real, y.imag], 2).flatten(1) * math.sqrt(2)


AIRS: dict[str, tuple[dict[str, Any], str, str]] = {
    "awgn": ({"kind": "awgn"}, "real", "classification"),
    "awgn complex": ({"kind": "awgn"}, "complex", "reconstruction"),
    "rayleigh zf": ({"kind": "rayleigh", "csi": "zf"}, "real", "classification"),
    "rayleigh fast none": ({"kind": "rayleigh", "csi": "none", "fading": "fast"}, "real", "reconstruction"),
    "rayleigh complex none": ({"kind": "rayleigh", "csi": "none"}, "complex", "classification"),
    "rayleigh complex phase": ({"kind": "rayleigh", "csi": "phase"}, "complex", "classification"),
    "rayleigh complex zf": ({"kind": "rayleigh", "csi": "zf"}, "complex", "classification"),
    "rayleigh complex mmse": ({"kind": "rayleigh", "csi": "mmse", "fading": "fast"}, "complex", "classification"),
    "rician mmse": ({"kind": "rician", "k_factor": 2, "csi": "mmse"}, "real", "classification"),
    "sensing": ({"kind": "sensing", "geometry": "bistatic"}, "real", "sensing"),
}


@pytest.mark.parametrize("name", AIRS)
def test_the_gradient_is_that_of_the_mean_loss_over_the_draws(name: str) -> None:
    """Central differences in double precision of a link written out here, over the same draws, at both sites at once,
    away from delta = 0. Random directions see every component."""
    channel, symbols, task = AIRS[name]
    link = fresh_link(channel, task, symbols, images=3, evaluation={"draws": {"attack": 5, "score": 2}, "batch": 2})
    snr_db, step = 3.0, 4
    objective = attack("pgd", sites=["input", "air"], objective={"job": 2.5})
    air = Air(link)
    problem = LinkProblem(link, air, objective, snr_db, snr_db)
    g = torch.Generator().manual_seed(1)
    delta = {
        "input": 0.05 * torch.rand(link.images.shape, generator=g) * (0.5 - link.images).sign(),
        "air": 0.3 * torch.randn((3, 8), generator=g),
    }
    found = problem.gradient(delta, step)
    wide_link = double_precision(link)
    encoder, decoder = wide_link.transmitter.encoder, wide_link.listeners[0].decoder
    realisation = air.attack(link.listeners[0], step)
    assert len(realisation.noise) == 5

    def draws(k: int) -> dict[str, Tensor]:
        fields = {key: getattr(realisation, key)[k] for key in ("h", "g", "noise")}
        wide = {key: v.to(torch.complex128 if v.is_complex() else torch.float64) for key, v in fields.items()}
        if realisation.target is not None:
            wide["target"] = realisation.target[k].double()
        return wide

    def mean_loss(images: Tensor, interference: Tensor) -> Tensor:
        """The weighted loss of each example, (B,)."""
        x = encoder(images)
        x = x * math.sqrt(8) / x.norm(dim=1, keepdim=True)
        total = torch.zeros(len(images), dtype=torch.float64)
        for k in range(5):
            output = decoder(heard(name, x, interference, draws(k), snr_db))
            if task == "reconstruction":
                total += (output - link.images.double().flatten(1)).square().mean(1)
            else:
                truth = link.labels if task == "classification" else draws(k)["target"].long()
                total -= F.log_softmax(output, 1)[torch.arange(3), truth]
        return 2.5 * total / 5

    u, v = link.images.double() + delta["input"].double(), delta["air"].double()
    with torch.no_grad():
        torch.testing.assert_close(problem.objective(delta, step).double(), mean_loss(u, v), rtol=1e-4, atol=1e-6)
        for which, gradient in found.items():
            for _ in range(4):
                way = torch.randn(gradient.shape, generator=g, dtype=torch.float64)
                h = 1e-8
                du, dv = (h * way, 0 * v) if which == "input" else (0 * u, h * way)
                slope = (mean_loss(u + du, v + dv) - mean_loss(u - du, v - dv)) / (2 * h)
                claimed = (gradient.double() * way).flatten(1).sum(1)
                torch.testing.assert_close(claimed, slope, rtol=2e-3, atol=2e-5 * float(gradient.norm() + 1e-3))
    assert all(gradient.abs().max() > 1e-5 for gradient in found.values())


def test_draws_are_new_in_every_step_and_other_than_those_that_score(trained_link: TrainedLink) -> None:
    air = Air(trained_link)
    for listener in trained_link.listeners:
        first, second, score = air.attack(listener, 0), air.attack(listener, 1), air.score(listener)
        assert torch.equal(first.noise, Air(trained_link).attack(listener, 0).noise)
        pieces = [part.noise[:4].flatten().double() for part in (first, second, score)]
        correlation = torch.corrcoef(torch.stack(pieces)) - torch.eye(3)
        assert correlation.abs().max() < 5 / math.sqrt(len(pieces[0]))
        if trained_link.is_sensing(listener):
            gains = [part.h[:4].abs().flatten().double() for part in (first, second, score)]
            assert (torch.corrcoef(torch.stack(gains)) - torch.eye(3)).abs().max() < 5 / math.sqrt(len(gains[0]))
    hearing = [air.score(one).noise.flatten()[:5000] for one in trained_link.listeners]
    between = torch.corrcoef(torch.stack(hearing)) - torch.eye(len(hearing))
    assert between.abs().max() < 5 / math.sqrt(5000)


def test_gradients_of_different_steps_differ(small: TrainedLink) -> None:
    """A stale cache of draws or of the first gradient would freeze the expectation."""
    problem = LinkProblem(small, Air(small), attack("pgd"), 0.0, 0.0)
    zero = {"input": torch.zeros_like(small.images)}
    first, second, again = problem.gradient(zero, 0), problem.gradient(zero, 1), problem.gradient(zero, 0)
    assert torch.equal(first["input"], again["input"])
    assert (first["input"] - second["input"]).norm() > 0.1 * first["input"].norm()
    moved = {"input": 0.01 * torch.ones_like(small.images) * (0.5 - small.images).sign()}
    assert not torch.equal(problem.gradient(moved, 0)["input"], first["input"])


def test_results_do_not_depend_on_the_evaluation_batch(trained_link: TrainedLink) -> None:
    measured = []
    for batch in (7, 60):
        link = head(with_draws(trained_link, 3, 5, batch), 60)
        air = Air(link)
        problem = LinkProblem(link, air, attack("pgd", steps=2), SNR_DB, SNR_DB)
        problem.psr = from_db(-15.0)
        delta = attack("pgd", steps=2).perturb(problem, Stream(0))
        measured.append((delta["input"], score(link, air, "label", delta), score(link, air, "picture", delta)))
    (a, label_a, picture_a), (b, label_b, picture_b) = measured
    assert (a - b).norm() < 1e-3 * a.norm()
    np.testing.assert_allclose(label_a["accuracy"].numerator, label_b["accuracy"].numerator, atol=0)
    np.testing.assert_allclose(picture_a["mse"].numerator, picture_b["mse"].numerator, rtol=1e-3)


# ----------------------------------------------------------------------------------------------- common random numbers


def score(
    link: TrainedLink, air: Air, task: str, delta: Perturbation, made: Evasion | None = None, snr_db: float = SNR_DB
) -> dict[str, Tally]:
    listeners = [one for one in link.listeners if one.branch.task == task]
    scored = next(iter(Scorer(link, air).score(listeners, [snr_db], delta, made)[0].values()))
    return {name: tally(scored, name) for name in scored}


@pytest.mark.parametrize("task", ["label", "picture", "target"])
def test_clean_and_attacked_signals_meet_the_same_draws(trained_link: TrainedLink, task: str) -> None:
    """With nothing to see in the perturbation, every single reception is the same, not only the mean."""
    link = head(trained_link, 100)
    air = Air(link)
    clean = score(link, air, task, {})
    for sites in (["input"], ["air"], ["input", "air"]):
        problem = LinkProblem(link, air, attack("fgsm", sites=sites, objective={task: 1}), SNR_DB, SNR_DB)
        problem.psr = from_db(-200.0)
        delta = attack("fgsm", sites=sites, objective={task: 1}).perturb(problem, Stream(0))
        zero = {name: torch.zeros_like(value) for name, value in delta.items()}
        for perturbation in (zero, delta):
            again = score(link, Air(link), task, perturbation)
            assert set(again) == set(clean)
            for metric, found in clean.items():
                np.testing.assert_array_equal(found.denominator, again[metric].denominator)
                if metric in ("mse", "psnr_db"):
                    np.testing.assert_allclose(found.numerator, again[metric].numerator, rtol=1e-6)
                else:
                    np.testing.assert_array_equal(found.numerator, again[metric].numerator)


def test_a_perturbation_is_fixed_before_the_noise_that_scores_it(trained_link: TrainedLink) -> None:
    """Other scoring draws change the score, and nothing about the perturbation."""
    link = head(trained_link, 20)
    made, found = attack("pgd", sites=["input", "air"], steps=2), []
    for draws in (2, 3):
        air = Air(with_draws(link, 4, draws))
        if draws == 3:
            air.stream = air.stream.child("other scoring draws")
            air.score(link.listeners[0])
            air.stream = Air(link).stream
        problem = LinkProblem(with_draws(link, 4, draws), air, made, SNR_DB, SNR_DB)
        problem.psr = from_db(-10.0)
        found.append(made.perturb(problem, Stream(0)))
    for name in ("input", "air"):
        assert torch.equal(found[0][name], found[1][name])


class Ear(nn.Module):
    """A decoder that keeps what it hears."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.inputs = decoder, []  # type: ignore[var-annotated]

    def forward(self, received: Tensor) -> Tensor:
        self.inputs.append(received)
        output: Tensor = self.decoder(received)
        return output


@pytest.mark.parametrize("name", ["awgn", "rayleigh zf", "rayleigh complex phase", "rayleigh complex zf", "sensing"])
def test_the_adversary_passes_its_own_gain_and_the_receivers_equaliser(name: str) -> None:
    """In scoring, what delta adds at the decoder is g delta, equalised; h is the receiver's, g the adversary's."""
    channel, symbols, task = AIRS[name]
    link = fresh_link(channel, task, symbols, images=4, evaluation={"draws": {"attack": 1, "score": 3}})
    ear = Ear(link.listeners[0].decoder)
    link = replace(link, listeners=(replace(link.listeners[0], decoder=ear),))
    air = Air(link)
    scorer = Scorer(link, air)
    delta = {"air": torch.randn((4, 8), generator=torch.Generator().manual_seed(0))}
    scorer.score(list(link.listeners), [5.0], {})
    clean = ear.inputs[-1]
    scorer.score(list(link.listeners), [5.0], delta)
    added = (ear.inputs[-1] - clean).double()
    drawn = air.score(link.listeners[0])
    h, g = drawn.h.to(torch.complex128), drawn.g.to(torch.complex128)
    z = delta["air"].double()
    if symbols == "complex":
        d = torch.complex(z[:, 0::2], z[:, 1::2])
        derotated = g * d * torch.exp(-1j * h.angle()) if "phase" in name else g * d / h
        expected = torch.stack([derotated.real, derotated.imag], -1).flatten(-2)
    elif name == "sensing":
        # The radar works on r / sigma, and is told its SNR, which the adversary does not change.
        expected = torch.cat([g.abs() * z * 10**0.25, torch.zeros(3, 4, 1)], -1)
    else:
        expected = g.abs() * z / h.abs() if "zf" in name else z.expand(3, 4, 8)
    largest = float(ear.inputs[-1].abs().max())
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=3e-7 * max(1.0, largest))
    if name != "awgn":
        assert (g.abs() - h.abs()).abs().mean() > 0.1


# ------------------------------------------------------------------------------------------- order on the trained link


PSR_DB = (-60.0, -20.0, -15.0, -10.0, -5.0)


@pytest.fixture(scope="module")
def swept(trained_link: TrainedLink) -> tuple[Measurement, list[dict[str, Any]]]:
    """FGSM and PGD in both norms with noise beside, through `evaluate` and `tabulate` as a run does it."""
    label = {"label": 1}
    link = head(trained_link, 200)
    link = changed(
        replace(link, listeners=tuple(one for one in link.listeners if one.branch.task == "label")),
        attacks={
            "fgsm": {"kind": "fgsm", "norm": "linf", "objective": label},
            "fgsm2": {"kind": "fgsm", "norm": "l2", "objective": label},
            "pgd": {"kind": "pgd", "norm": "linf", "steps": 5, "objective": label},
            "pgd2": {"kind": "pgd", "norm": "l2", "steps": 5, "objective": label},
        },
        evaluation={
            "draws": {"attack": 4, "score": 8},
            "baselines": False,
            "samples": 0,
            "grids": [
                # Its points come again in the next grid, with noise: each must be measured once, with its noise.
                {"attacks": ["fgsm", "pgd"], "snr_db": [SNR_DB], "psr_db": [-20.0, -15.0]},
                {
                    "attacks": ["none", "noise", "fgsm", "fgsm2", "pgd", "pgd2"],
                    "snr_db": [SNR_DB],
                    "psr_db": list(PSR_DB),
                },
            ],
        },
    )
    measurement = evaluate(link, lambda done, total: None)
    table = [row for row in rows([measurement.points], [0]) if row["seed"] == 0 and row["task"] == "label"]
    return measurement, table


def cell(table: list[dict[str, Any]], metric: str, name: str, psr_db: float | None = None) -> dict[str, Any]:
    found = [r for r in table if (r["metric"], r["attack"], r.get("psr_db")) == (metric, name, psr_db)]
    assert len(found) == 1
    return found[0]


def label_point(measurement: Measurement, name: str, psr_db: float) -> Point:
    key = (name, psr_db, "label")
    found = [p for p in measurement.points if (p.columns["attack"], p.columns.get("psr_db"), p.columns["task"]) == key]
    assert len(found) == 1
    return found[0]


def minus(one: Point, other: Point) -> tuple[float, float, float]:
    """Difference of accuracies and its paired interval."""
    both = []
    for point in (one, other):
        right = tally(point.metrics, "accuracy")
        both.append(Measured(right.numerator[None], right.denominator[None], single=False))
    low, high = Bootstrap(both[0].numerator.shape[1], 1).difference(both[0], both[1])
    return both[0].value - both[1].value, low, high


def test_the_shared_link_is_worth_attacking(trained_link: TrainedLink) -> None:
    """Everything below would be empty on a bad link. Sensing at 10 dB: theory of the matched filter is 0.93."""
    air = Air(trained_link)
    label, picture = score(trained_link, air, "label", {}), score(trained_link, air, "picture", {})
    accuracy = label["accuracy"].numerator.sum() / label["accuracy"].denominator.sum()
    assert accuracy > 0.95
    mse = picture["mse"].numerator.sum() / picture["mse"].denominator.sum()
    assert mse < 0.7 * float((trained_link.images - trained_link.images.mean(0)).square().mean())
    sensing = score(trained_link, air, "target", {})["accuracy"]
    assert 0.88 < sensing.numerator.sum() / sensing.denominator.sum() < 0.95


@pytest.mark.parametrize("psr_db", [-20.0, -15.0, -10.0, -5.0])
@pytest.mark.parametrize("name", ["fgsm", "fgsm2"])
def test_fgsm_hurts_more_than_noise_of_equal_achieved_psr(
    swept: tuple[Measurement, list[dict[str, Any]]], name: str, psr_db: float
) -> None:
    against_noise = cell(swept[1], "accuracy_vs_noise", name, psr_db)
    assert against_noise["ci_high"] < 0
    assert against_noise["value"] < 0
    change = cell(swept[1], "accuracy_change", name, psr_db)
    assert change["ci_high"] < 0


@pytest.mark.parametrize(
    ("aim", "other", "axis"), [("label", "target", "snr_db"), ("target", "label", "sensing_snr_db")]
)
def test_an_attack_is_scored_at_every_snr_of_the_tasks_it_does_not_aim_at(
    trained_link: TrainedLink, aim: str, other: str, axis: str
) -> None:
    """A perturbation depends on the SNR of its own objective alone; the other axis of the grid must not vanish."""
    grid = {"attacks": ["none", "noise", "fgsm"], "psr_db": [-10.0], "snr_db": [10.0], "sensing_snr_db": [10.0]}
    varied = "sensing_snr_db" if axis == "snr_db" else "snr_db"
    grid[varied] = [-10.0, 0.0, 10.0]
    link = changed(
        head(trained_link, 40),
        attacks={"fgsm": {"kind": "fgsm", "objective": {aim: 1}}},
        evaluation={"draws": {"attack": 1, "score": 2}, "baselines": False, "samples": 0, "grids": [grid]},
    )
    points = evaluate(link, lambda done, total: None).points
    for name in ("none", "noise", "fgsm"):
        for task, column, wanted in ((other, varied, [-10.0, 0.0, 10.0]), (aim, axis, [10.0])):
            here = [p for p in points if (p.columns["attack"], p.columns["task"]) == (name, task)]
            groups = {p.columns["receiver"] for p in here}
            for group in groups:
                assert sorted(p.columns[column] for p in here if p.columns["receiver"] == group) == wanted
    for attacked in (p for p in points if p.columns["attack"] == "fgsm"):
        assert attacked.noise is not None
        assert attacked.clean is not None
        for reference in (points[attacked.noise], points[attacked.clean]):
            sensing = attacked.columns["task"] == "target"
            column = "sensing_snr_db" if sensing else "snr_db"
            assert reference.columns[column] == attacked.columns[column]
            assert reference.columns["receiver"] == attacked.columns["receiver"]


def test_noise_beside_an_attack_has_its_achieved_psr(swept: tuple[Measurement, list[dict[str, Any]]]) -> None:
    """At nominal -5 dB both are clipped, differently; what stands in the table must agree to 0.01 dB."""
    for name in ("fgsm", "fgsm2", "pgd", "pgd2"):
        for psr_db in PSR_DB:
            attacked = label_point(swept[0], name, psr_db)
            assert attacked.noise is not None
            twin = swept[0].points[attacked.noise]
            assert (twin.columns["attack"], twin.columns["task"]) == ("noise", "label")
            assert twin.columns["psr_achieved_db"] == pytest.approx(attacked.columns["psr_achieved_db"], abs=0.01)
            assert attacked.columns["psr_achieved_db"] <= psr_db + 1e-4
    assert label_point(swept[0], "fgsm2", -20.0).columns["psr_achieved_db"] == pytest.approx(-20, abs=0.01)


def test_pgd_hurts_more_than_fgsm_where_there_is_room(swept: tuple[Measurement, list[dict[str, Any]]]) -> None:
    compared = 0
    for one, other in (("pgd", "fgsm"), ("pgd2", "fgsm2")):
        for psr_db in PSR_DB:
            single = label_point(swept[0], other, psr_db)
            right = tally(single.metrics, "accuracy")
            if 0.2 <= right.numerator.sum() / right.denominator.sum() <= 0.8:
                _, low, high = minus(label_point(swept[0], one, psr_db), single)
                assert low < high < 0
                compared += 1
    assert compared >= 2


def test_the_l2_ball_holds_the_worse_perturbation(swept: tuple[Measurement, list[dict[str, Any]]]) -> None:
    """At equal nominal PSR the L-inf cube lies inside the L2 ball."""
    clear = 0
    for psr_db in PSR_DB:
        difference, _, high = minus(label_point(swept[0], "pgd2", psr_db), label_point(swept[0], "pgd", psr_db))
        assert difference <= 0.002
        clear += high < 0
    assert clear >= 1


def test_at_minus_60_db_nothing_happens(swept: tuple[Measurement, list[dict[str, Any]]]) -> None:
    """Over shared draws: 0.2 points, while independent draws alone would differ by more."""
    clean = cell(swept[1], "accuracy", "none")["value"]
    values = [cell(swept[1], "accuracy", name, -60.0)["value"] for name in ("fgsm", "fgsm2", "pgd", "pgd2")]
    noise = [r["value"] for r in swept[1] if (r["metric"], r["attack"], r.get("psr_db")) == ("accuracy", "noise", -60)]
    assert len(noise) == 4
    assert max(abs(value - clean) for value in values + noise) <= 0.002


def test_harm_grows_with_psr(swept: tuple[Measurement, list[dict[str, Any]]]) -> None:
    for name in ("fgsm", "pgd", "pgd2"):
        values = [cell(swept[1], "accuracy", name, psr_db)["value"] for psr_db in PSR_DB]
        assert all(b < a for a, b in pairwise(values) if a > 0.02)
    assert cell(swept[1], "accuracy", "pgd2", -15.0)["value"] < 0.1


# ---------------------------------------------------------------------------------------- other tasks, sites and goals


HARM = {"label": ("accuracy", -1), "picture": ("mse", 1), "target": ("accuracy", -1)}


def harm(link: TrainedLink, task: str, air: Air, delta: Perturbation) -> tuple[float, float, float]:
    """How much worse a task's headline metric is than clean, with its paired interval."""
    metric, sign = HARM[task]
    both = []
    for perturbation in (delta, {}):
        tally = score(link, air, task, perturbation)[metric]
        both.append(Measured(tally.numerator[None], tally.denominator[None], single=False))
    low, high = Bootstrap(len(link.labels), 1).difference(both[0], both[1])
    value = both[0].value - both[1].value
    return (value, low, high) if sign > 0 else (-value, -high, -low)


def perturbed(link: TrainedLink, air: Air, psr_db: float, made: Evasion) -> Perturbation:
    problem = LinkProblem(link, air, made, SNR_DB, SNR_DB)
    problem.psr = from_db(psr_db)
    return made.perturb(problem, Stream(link.seed).child("perturb"))


def noise_like(delta: Perturbation, link: TrainedLink, air: Air, made: Evasion) -> Perturbation:
    from fedsem.hooks.budget import gaussian

    problem = LinkProblem(link, air, made, SNR_DB, SNR_DB)
    return gaussian(problem.sites, {k: v.flatten(1).square().sum(1) for k, v in delta.items()}, Stream(9))


@pytest.fixture(scope="module")
def pair(trained_link: TrainedLink) -> tuple[TrainedLink, Air]:
    link = head(trained_link, 120)
    return link, Air(link)


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
@pytest.mark.parametrize("task", ["label", "picture", "target"])
def test_attacks_over_the_air_hurt_each_task(pair: tuple[TrainedLink, Air], task: str, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "fgsm" else {"steps": 5}
    made = attack(kind, sites=["air"], objective={task: 1}, **options)
    delta = perturbed(*pair, -5.0, made)
    link, air = pair
    value, low, _ = harm(link, task, air, delta)
    assert low > 0
    beside, _, _ = harm(link, task, air, noise_like(delta, link, air, made))
    assert value > 1.5 * max(beside, 0.0)


def test_a_weighted_sum_hurts_every_task_and_single_objectives_hurt_their_own_most(
    pair: tuple[TrainedLink, Air],
) -> None:
    """Weights must count: attacks on one task alone hurt it more than the attack on the sum does."""
    link, air = pair
    weights = {"label": 1.0, "picture": 20.0, "target": 1.0}
    joint = perturbed(link, air, -5.0, attack("pgd", sites=["air"], steps=4, objective=weights))
    for task in weights:
        value, low, _ = harm(link, task, air, joint)
        assert low > 0, task
        alone = perturbed(link, air, -5.0, attack("pgd", sites=["air"], steps=4, objective={task: 1.0}))
        assert harm(link, task, air, alone)[0] >= value - 1e-3, task
    zero = attack("fgsm", sites=["air"], objective={"label": 1.0, "picture": 0.0})
    only = attack("fgsm", sites=["air"], objective={"label": 3.0})
    torch.testing.assert_close(perturbed(link, air, -5.0, zero)["air"], perturbed(link, air, -5.0, only)["air"])


def test_the_objective_is_the_mean_over_a_tasks_listeners() -> None:
    """Two groups hear the same task over different channels: a group more must not make the task count more."""
    channels = {"near": {"kind": "awgn"}, "far": {"kind": "rayleigh", "csi": "mmse"}}
    groups = {name: {"count": 1, "tasks": ["job"], "channel": name} for name in channels}
    link = fresh_link({"kind": "awgn"}, channels=channels, receivers=groups)
    assert [one.branch.channel for one in link.listeners] == ["near", "far"]
    delta = {"input": torch.zeros_like(link.images)}
    values = []
    for listeners in (link.listeners, link.listeners[:1], link.listeners[1:]):
        only = replace(link, listeners=listeners)
        problem = LinkProblem(only, Air(only), attack("fgsm", objective={"job": 2}), SNR_DB, SNR_DB)
        values.append((problem.objective(delta, 3), problem.logits(delta, 3).exp()))
    for both, near, far in zip(*values, strict=True):
        torch.testing.assert_close(both, (near + far) / 2)
        assert not torch.allclose(near, far)


def test_an_empty_objective_means_all_tasks(pair: tuple[TrainedLink, Air]) -> None:
    link, air = pair
    every = LinkProblem(link, air, attack("fgsm", objective={}), SNR_DB, SNR_DB)
    named = LinkProblem(link, air, attack("fgsm", objective={"label": 1, "picture": 1, "target": 1}), SNR_DB, SNR_DB)
    delta = {"input": torch.zeros_like(link.images[:5])}
    torch.testing.assert_close(every.objective(delta, 0, slice(0, 5)), named.objective(delta, 0, slice(0, 5)))
    losses = [
        LinkProblem(link, air, attack("fgsm", objective={task: 1}), SNR_DB, SNR_DB).objective(delta, 0, slice(0, 5))
        for task in ("label", "picture", "target")
    ]
    torch.testing.assert_close(every.objective(delta, 0, slice(0, 5)), sum(losses))


@pytest.mark.parametrize(
    ("task", "goal", "site_name", "psr_db"),
    [
        ("label", 3, "input", -12.0),
        ("label", 7, "air", -5.0),
        ("target", 1, "air", 3.0),
        ("picture", 5, "input", -10.0),
    ],
)
def test_targeted_attacks_reach_their_goal_more_often(
    pair: tuple[TrainedLink, Air], task: str, goal: int, site_name: str, psr_db: float
) -> None:
    """`reached` is a share for classes, and for pictures the squared error to the target picture, which must fall."""
    link, air = pair
    made = attack("pgd", sites=[site_name], steps=6, objective={task: 1}, targeted={task: goal})
    delta = perturbed(link, air, psr_db, made)
    noise = noise_like(delta, link, air, made)
    reached, before, beside = (
        score(link, air, task, perturbation, made)["reached"] for perturbation in (delta, {}, noise)
    )
    np.testing.assert_array_equal(reached.denominator, before.denominator)
    values = [
        Measured(tally.numerator[None], tally.denominator[None], single=False) for tally in (reached, before, beside)
    ]
    if task == "picture":
        assert Bootstrap(len(link.labels), 1).difference(values[0], values[1])[1] < 0
        assert values[0].value < values[2].value
    else:
        assert Bootstrap(len(link.labels), 1).difference(values[0], values[1])[0] > 0
        assert values[0].value > values[2].value + 0.05
    if task == "label":
        # Examples of the target class itself do not count.
        np.testing.assert_array_equal(reached.denominator > 0, link.labels.numpy() != goal)


def test_both_sites_hurt_more_than_either(pair: tuple[TrainedLink, Air]) -> None:
    """Each site has the whole PSR; they are found together, so they must not cancel."""
    link, air = pair
    found = {
        "+".join(sites): harm(link, "label", air, perturbed(link, air, -18.0, attack("pgd", sites=sites, steps=4)))[0]
        for sites in (["input"], ["air"], ["input", "air"])
    }
    assert found["input+air"] > max(found["input"], found["air"]) + 0.02
    delta = perturbed(link, air, -18.0, attack("fgsm", sites=["input", "air"]))
    for name, clean in (("input", link.images), ("air", LinkProblem(link, air, attack("fgsm", sites=["air"]), 0, 0))):
        base = clean if isinstance(clean, Tensor) else clean.sites["air"].clean
        np.testing.assert_array_less(energy64(delta[name]), 10**-1.8 * energy64(base) * (1 + 1e-5))


def test_random_fading_is_attacked_in_expectation() -> None:
    """More draws make a better estimate of the expected gradient: on an untrained Rayleigh link, FGSM directions from
    64 draws agree with each other far better than those from one draw."""
    agreement = []
    for draws in (1, 64):
        link = fresh_link({"kind": "rayleigh", "csi": "mmse"}, images=6, evaluation={"draws": {"attack": draws}})
        problem = LinkProblem(link, Air(link), attack("pgd", sites=["air"], objective={"job": 1}), 0.0, 0.0)
        zero = {"air": torch.zeros((6, 8))}
        a, b = (problem.gradient(zero, step)["air"] for step in (1, 2))
        agreement.append(float(F.cosine_similarity(a, b).mean()))
    assert agreement[1] > 0.9
    assert agreement[1] > agreement[0] + 0.1


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"objective": {"lable": 1}}, r"attacks\.a\.objective.*unknown task 'lable'.*Did you mean 'label'"),
        ({"objective": {"label": 0}}, r"attacks\.a\.objective.*positive"),
        ({"targeted": {"label": 3}, "objective": {"picture": 1}}, r"attacks\.a\.targeted.*'picture' has no goal"),
        ({"targeted": {"label": 10}, "objective": {"label": 1}}, r"attacks\.a\.targeted\.label.*choose 0 to 9"),
        ({"targeted": {"target": 2}, "objective": {"target": 1}}, r"attacks\.a\.targeted\.target.*choose 0 to 1"),
        ({"targeted": {"picture": 359}, "objective": {"picture": 1}}, r"attacks\.a\.targeted\.picture.*0 to 358"),
        ({"sites": ["air", "air"]}, r"attacks\.a\.sites.*twice"),
    ],
)
def test_impossible_attacks_are_refused_in_one_sentence(
    trained_link: TrainedLink, options: dict[str, Any], sentence: str
) -> None:
    made = names("attack")["fgsm"].model_validate(options)
    assert isinstance(made, Evasion)
    with pytest.raises(ScenarioError, match=sentence) as caught:
        made.check("attacks.a", trained_link.plan)
    assert "\n" not in str(caught.value)


def test_the_shared_scenario_is_the_one_that_was_trained(trained_link: TrainedLink) -> None:
    assert trained_link.plan.scenario.name == SHARED_LINK["name"]
    assert not any(parameter.requires_grad for parameter in trained_link.transmitter.parameters())
    assert not trained_link.transmitter.training


@pytest.mark.parametrize("keys", [{"norm": "linf"}, {"objective": {"label": 1}}, {"targeted": {"label": 1}}])
def test_noise_takes_no_aim_that_it_would_ignore(keys: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=rf"'attacks\.n\.{next(iter(keys))}': noise aims at nothing"):
        small_plan(attacks={"n": {"kind": "noise", **keys}})
