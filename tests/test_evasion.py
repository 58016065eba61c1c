"""Evasion beyond FGSM and PGD: APGD, MI-FGSM, universal perturbations, the least power, `standard`, what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from conftest import ToyProblem, changed, energy64, fresh_link, head, site, tally, toy_classifier
from torch import Tensor, nn

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import DataError, ScenarioError
from fedsem.evaluation import problem as problem_module
from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.hooks.evasion_losses import (
    difference_of_logits_ratio,
    differentiate,
    log_mean,
    margin_to,
    measure,
    objective,
)
from fedsem.registry import find
from fedsem.scenario import check_scenario, dump_scenario
from fedsem.streams import Stream
from fedsem.units import from_db

EVERYTHING = slice(None)


def attack(kind: str, **options: Any) -> Evasion:
    made = find("attack", kind).model_validate(options)
    assert isinstance(made, Evasion)
    return made


def toy(rows: int = 12, psr: float = 0.02, seed: int = 0, confidence: float = 4.0) -> tuple[ToyProblem, nn.Module]:
    g = torch.Generator().manual_seed(seed)
    net = toy_classifier(48, seed=seed).double()
    images = torch.rand((rows, 3, 4, 4), generator=g).double()
    labels = net(images).argmax(1)
    scaled = nn.Sequential(net, _Times(confidence))
    return ToyProblem(lambda s, index: scaled(s["input"]), {"input": site(images)}, psr, labels), scaled


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.factor * values


# ------------------------------------------------------------------------------------------------------------ losses


def test_losses_are_what_their_papers_say() -> None:
    """By NumPy, on scores of two draws."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 5, 4))
    labels = np.array([0, 1, 2, 3, 0])
    problem = ToyProblem(lambda s, index: torch.empty(0), {"input": site(torch.zeros(5, 1))}, 0.1, torch.tensor(labels))
    scores = torch.tensor(z)
    problem.scores = lambda delta, step, index=EVERYTHING: scores[:, index]  # type: ignore[method-assign]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    problem.logits = lambda delta, step, index=EVERYTHING: torch.tensor(np.log(p.mean(0)))[index]  # type: ignore[method-assign]
    delta: Perturbation = {"input": torch.zeros(5, 1)}
    rows = np.arange(5)
    np.testing.assert_allclose(log_mean(problem, delta, 0, EVERYTHING), -np.log(p.mean(0)[rows, labels]))
    ratio, margins = np.zeros(5), np.zeros(5)
    for draw in z:
        for i, y in enumerate(labels):
            ranked = np.sort(draw[i])
            ratio[i] += -(draw[i, y] - np.delete(draw[i], y).max()) / (ranked[-1] - ranked[-3]) / 2
            margins[i] += (draw[i, (y + 1) % 4] - draw[i, y]) / 2
    np.testing.assert_allclose(difference_of_logits_ratio(problem, delta, 0, EVERYTHING), ratio)
    towards = margin_to(torch.tensor((labels + 1) % 4))
    np.testing.assert_allclose(towards(problem, delta, 0, EVERYTHING), margins)


# -------------------------------------------------------------------------------------------- against torchattacks


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_mi_fgsm_is_torchattacks(decay: float) -> None:
    problem, net = toy(psr=0.01)
    clean = problem.sites["input"].clean
    ours = attack("mi_fgsm", norm="linf", steps=7, decay=decay).perturb(problem, Stream(0))["input"]
    for i, energy in enumerate(energy64(clean)):
        eps = math.sqrt(0.01 * float(energy) / 48)
        theirs = torchattacks.MIFGSM(net, eps=eps, alpha=eps / 7, steps=7, decay=decay)
        one = slice(i, i + 1)
        found = theirs(clean[one], problem.labels[one]) - clean[one]
        torch.testing.assert_close(ours[one], found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_climbs_as_high_as_torchattacks(norm: str, loss: str) -> None:
    """From the same starting points; the library counts rises at its first checkpoint from zero, so paths may part."""
    problem, net = toy(psr=0.02)
    clean, steps = problem.sites["input"].clean, 40
    made = attack("apgd", norm=norm, steps=steps, loss=loss)
    ours, theirs = [], []
    for i, energy in enumerate(energy64(clean)):
        one = problem.select(torch.tensor([i]))
        eps = math.sqrt(0.02 * float(energy) / (48 if norm == "linf" else 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            t = 2 * torch.rand(1, 3, 4, 4) - 1 if norm == "linf" else torch.randn(1, 3, 4, 4)
            length = t.abs().max() if norm == "linf" else t.norm()
            start = (clean[i : i + 1] + eps * t / length).clamp(0, 1) - clean[i : i + 1]
            torch.manual_seed(7)
            library = torchattacks.APGD(net, norm="Linf" if norm == "linf" else "L2", eps=eps, steps=steps, loss=loss)
            library.steps, library.thr_decr = steps, 0.75
            _, _, reached, _ = library.attack_single_run(clean[i : i + 1], problem.labels[i : i + 1])
        object.__setattr__(made, "start", lambda *_, start=start: start)
        delta = made.perturb(one, Stream(0))
        which = objective if loss == "ce" else difference_of_logits_ratio
        ours.append(float(measure(one, delta, 0, which)))
        theirs.append(float(reached))
    # A loss in a maximum of its own may differ; none of ours is much lower, and most are equal.
    ours_, theirs_ = np.array(ours), np.array(theirs)
    assert (ours_ >= theirs_ - 1e-3 * np.abs(theirs_) - 1e-6).mean() >= 0.8
    assert ours_.mean() >= theirs_.mean() - 1e-3


def test_apgd_uses_few_sets_of_draws_and_restarts_never_hurt() -> None:
    """Draws are new at checkpoints alone: 100 steps have ten or so, not a hundred."""
    problem, _ = toy()
    steps: list[int] = []
    plain = problem.scores
    problem.scores = lambda delta, step, index=EVERYTHING: (steps.append(step), plain(delta, step, index))[1]  # type: ignore[method-assign,func-returns-value]
    attack("apgd", steps=100).perturb(problem, Stream(0))
    assert len(steps) > 100
    assert 5 < len(set(steps)) < 16
    problem, _ = toy(psr=0.005)
    reached = {}
    for restarts in (1, 4):
        delta = attack("apgd", steps=10, restarts=restarts).perturb(problem, Stream(3))
        reached[restarts] = measure(problem, delta, 0, objective)
    assert (reached[4] >= reached[1] - 1e-9).all()


# ------------------------------------------------------------------------------------------------------ on a real link


@pytest.fixture(scope="module")
def pair(trained_link: TrainedLink) -> tuple[TrainedLink, Air]:
    draws = {"attack": 4, "score": 32}
    some = changed(trained_link, evaluation={"draws": draws, "batch": 128, "baselines": False, "samples": 0})
    some = head(some, 150)
    return some, Air(some)


def scored(pair: tuple[TrainedLink, Air], made: Evasion, psr_db: float) -> tuple[dict[str, float], Perturbation]:
    """Headline of each task under an attack at 10 dB."""
    link, air = pair
    problem = LinkProblem(link, air, made, 10.0, 10.0)
    problem.psr = from_db(psr_db)
    delta = made.perturb(problem, Stream(0))
    found = {}
    for sensing in (False, True):
        listeners = [one for one in link.listeners if link.is_sensing(one) == sensing]
        for key, metrics in Scorer(link, air).score(listeners, [10.0], problem.shaped(delta), made)[0].items():
            one = tally(metrics, "mse" if key[1] == "picture" else "accuracy")
            found[key[1]] = float(one.numerator.sum() / one.denominator.sum())
    return found, delta


LABEL = {"objective": {"label": 1}}


def test_the_order_of_attacks_at_the_input(pair: tuple[TrainedLink, Air]) -> None:
    """noise < FGSM < PGD <= APGD <= standard, at equal nominal L2 PSR, where there is room; small sizes."""
    label = {}
    label["noise"] = scored(pair, attack("noise"), -20)[0]["label"]
    label["fgsm"] = scored(pair, attack("fgsm", norm="l2", **LABEL), -20)[0]["label"]
    label["pgd"] = scored(pair, attack("pgd", steps=8, **LABEL), -20)[0]["label"]
    label["apgd"] = scored(pair, attack("apgd", steps=16, loss="log_mean", **LABEL), -20)[0]["label"]
    small = {"steps": 16, "other_steps": 8, "restarts": 1, "draws": 8, "judged_by": 64, "universal_steps": 10}
    label["standard"] = scored(pair, attack("standard", **small, **LABEL), -20)[0]["label"]
    assert label["noise"] > label["fgsm"] + 0.1
    assert label["fgsm"] > label["pgd"] + 0.1
    assert label["pgd"] >= label["apgd"] - 0.02
    assert label["apgd"] >= label["standard"] - 0.005


def test_one_perturbation_for_all_lies_between_noise_and_pgd(pair: tuple[TrainedLink, Air]) -> None:
    air = {"sites": ["air"], **LABEL}
    noise = scored(pair, attack("noise", sites=["air"]), -4)[0]["label"]
    pgd = scored(pair, attack("pgd", **air), -4)[0]["label"]
    found, delta = scored(pair, attack("universal", **air), -4)
    assert pgd + 0.1 < found["label"] < noise - 0.1
    assert (delta["air"] == delta["air"][:1]).all()
    np.testing.assert_allclose(energy64(delta["air"]).mean(), from_db(-4.0) * 20, rtol=1e-4)
    late, delayed = scored(pair, attack("universal", synchronised=False, **air), -4)
    assert found["label"] + 0.1 < late["label"]
    spectra = torch.fft.fft(delayed["air"]).abs()
    torch.testing.assert_close(spectra, spectra[:1].expand_as(spectra), rtol=1e-3, atol=1e-4)
    assert len(delayed["air"].unique(dim=0)) == 20
    made, different = scored(pair, attack("perturbation_generator", steps=100, **air), 0)
    assert made["label"] < scored(pair, attack("noise", sites=["air"]), 0)[0]["label"] - 0.05
    assert len(different["air"].unique(dim=0)) == 150


def test_a_universal_perturbation_of_images_keeps_its_mean_power(pair: tuple[TrainedLink, Air]) -> None:
    link, _ = pair
    for norm in ("l2", "linf"):
        found, delta = scored(pair, attack("universal", norm=norm, steps=20, batch=32, **LABEL), -12)
        spent, clean = energy64(delta["input"]), energy64(link.images)
        assert spent.mean() <= from_db(-12.0) * clean.mean() * (1 + 1e-5)
        assert found["label"] < scored(pair, attack("noise"), -12)[0]["label"] - 0.1
        perturbed = link.images + delta["input"]
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1


def test_a_joint_attack_spares_no_task(pair: tuple[TrainedLink, Air]) -> None:
    """Each single objective leaves another task nearly alone; the joint one harms them all."""
    air = {"sites": ["air"]}
    clean = scored(pair, attack("pgd", steps=1, **air, **LABEL), -60)[0]
    joint = scored(pair, attack("pgd", objective="joint", **air), -5)[0]
    alone = scored(pair, attack("pgd", **air, **LABEL), -5)[0]
    assert joint["label"] < clean["label"] - 0.1
    assert joint["picture"] > clean["picture"] * 1.3
    assert joint["target"] < clean["target"] - 0.1
    assert alone["target"] > joint["target"] + 0.05


def test_at_minus_60_db_the_worst_case_is_the_clean_link(pair: tuple[TrainedLink, Air]) -> None:
    small = {"steps": 12, "other_steps": 6, "restarts": 1, "draws": 4, "judged_by": 32, "universal_steps": 10}
    found = scored(pair, attack("standard", **small, sites=["air"], **LABEL), -60)[0]
    clean = scored(pair, attack("pgd", steps=1, sites=["air"], **LABEL), -100)[0]
    assert abs(found["label"] - clean["label"]) <= 0.002


def test_standard_breaks_the_link_where_anything_may_be_sent(pair: tuple[TrainedLink, Air]) -> None:
    small = {"steps": 12, "other_steps": 6, "restarts": 1, "draws": 4, "judged_by": 32, "universal_steps": 10}
    assert scored(pair, attack("standard", **small, **LABEL), 0)[0]["label"] <= 0.01
    assert scored(pair, attack("standard", **small, objective={"picture": 1}, sites=["air"]), 0)[0]["picture"] > 0.06


def test_the_least_power_breaks_what_it_says_and_no_more(pair: tuple[TrainedLink, Air]) -> None:
    link, air = pair
    made = attack("minimum_power", sites=["air"], steps=8, halvings=6, **LABEL)
    problem = LinkProblem(link, air, made, 10.0, 10.0)
    problem.psr = from_db(0.0)
    delta = made.perturb(problem, Stream(0))
    spent = energy64(delta["air"]) / 20
    broken = spent > 0
    assert broken.mean() > 0.95
    failures = problem.failures(delta, -2, 64).numpy()
    assert failures[broken].mean() > 0.5
    # A third of the energy leaves most of them whole: it is about the least.
    less = {"air": delta["air"] * math.sqrt(1 / 3)}
    assert problem.failures(less, -2, 64).numpy()[broken].mean() < 0.3
    assert spent.max() <= 1 + 1e-5


@pytest.mark.parametrize("objective", [{"label": 2.5}, {"label": 1, "picture": 3}])
def test_failures_are_a_weighted_mean(pair: tuple[TrainedLink, Air], objective: dict[str, float]) -> None:
    link, air = pair
    still = {"input": torch.zeros_like(link.images)}

    def failures(weights: dict[str, float]) -> np.ndarray:
        return LinkProblem(link, air, attack("pgd", objective=weights), 0.0, 0.0).failures(still, -2, 8).numpy()

    wanted = sum(weight * failures({task: 1}) for task, weight in objective.items()) / sum(objective.values())
    np.testing.assert_allclose(failures(objective), wanted, rtol=1e-5)


def test_an_adversary_without_a_reserve_holds_some_training_images(
    pair: tuple[TrainedLink, Air], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all fifty thousand of CIFAR-10: evenly spaced ones."""
    monkeypatch.setattr(problem_module, "MOST_OWN", 7)
    link, air = pair
    problem = LinkProblem(link, air, attack("universal", **LABEL), 10.0, 10.0)
    train = link.plan.dataset.train
    assert link.plan.dataset.reserve is None
    assert problem.own == 7
    held = problem.imagine(torch.arange(7)).sites["input"].clean
    numbers = np.linspace(0, len(train) - 1, 7).round().astype(int)
    np.testing.assert_allclose(held.numpy(), train.images[numbers] / np.float32(255), rtol=1e-6)


def test_what_fails_without_an_attack_is_not_broken_by_it(pair: tuple[TrainedLink, Air]) -> None:
    """Wrong labels: those examples fail at any power, and say nothing of the least; nor is the grid's PSR exceeded."""
    link, _ = pair
    labels = link.labels.clone()
    labels[:40] = (labels[:40] + 1) % 10
    link = replace(link, examples=replace(link.examples, labels=labels))
    made = attack("minimum_power", sites=["air"], steps=4, halvings=3, **LABEL)
    problem = LinkProblem(link, Air(link), made, 10.0, 10.0)
    for psr_db in (0.0, -70.0):
        problem.psr = from_db(psr_db)
        spent = energy64(made.perturb(problem, Stream(0))["air"]) / 20
        assert not spent[:40].any()
        assert spent.max() <= from_db(psr_db) * (1 + 1e-5)
        assert spent.any() == (psr_db == 0)


# --------------------------------------------------------------------------------------------------- what is known


def test_whoever_knows_the_channel_does_more_harm_over_fading(trained_link: TrainedLink) -> None:
    """Over Rayleigh fading with unknown phases an adversary without channel knowledge points anywhere."""
    keys = {
        "channels": {
            "down": {"kind": "rayleigh", "csi": "zf"},
            "radar": {"kind": "sensing", "geometry": "bistatic", "fading": "rayleigh"},
        },
        "link": {"encoder": {"kind": "cnn", "channel_uses": 20}, "symbols": "complex"},
        "evaluation": {"draws": {"attack": 4, "score": 8}, "batch": 128, "baselines": False, "samples": 0},
    }
    tree = {**dump_scenario(trained_link.plan.scenario), **keys}
    plan = replace(trained_link.plan, scenario=check_scenario(tree))
    link = head(replace(trained_link, plan=plan), 60)
    faded = (link, Air(link))
    at = -6.0
    label = {
        (kind, channel): scored(
            faded, attack(kind, sites=["air"], steps=12, knowledge={"channel": channel}, **LABEL), at
        )[0]["label"]
        for kind in ("pgd", "universal")
        for channel in ("csi", "statistics")
    }
    noise = scored(faded, attack("noise", sites=["air"]), at)[0]["label"]
    assert label["pgd", "csi"] < label["universal", "csi"] < label["universal", "statistics"]
    assert label["pgd", "csi"] < label["pgd", "statistics"] <= noise + 0.01
    assert label["universal", "csi"] < noise - 0.1


def test_knowledge_of_the_channel_is_of_the_receptions_that_score() -> None:
    """The gradient's gains are those of the scoring draws, and its noise is not."""
    link = fresh_link({"kind": "rayleigh", "csi": "none"}, images=5)
    air = Air(link)
    problem = LinkProblem(link, air, attack("pgd", sites=["air"], knowledge={"channel": "csi"}), 10.0, 10.0)
    listener = link.listeners[0]
    score = air.score(listener)
    seen = problem._realisation(listener, 0, EVERYTHING)
    draws = len(score.h)
    assert len(problem.sites["air"].clean) == draws * 5
    for name in ("h", "g"):
        expected = getattr(score, name).flatten(0, 1)
        assert (getattr(seen, name) == expected).all()
    assert not np.isin(seen.noise.numpy(), score.noise.numpy()).any()
    rows = torch.tensor([7, 3])
    part = problem.select(rows)._realisation(listener, 0, EVERYTHING)
    assert (part.h == seen.h[:, rows]).all()
    shaped = problem.shaped({"air": torch.arange(draws * 5.0).view(-1, 1)})["air"]
    assert shaped[2, 3] == 2 * 5 + 3


def test_without_noise_draws_differ_by_fading_alone() -> None:
    link = fresh_link({"kind": "awgn"}, images=4)
    problem = LinkProblem(link, Air(link), attack("pgd", sites=["air"]), 10.0, 10.0).quiet()
    zero = {"air": torch.zeros_like(problem.sites["air"].clean)}
    scores = problem.scores(zero, 0)
    assert (scores == scores[:1]).all()
    clean = link.listeners[0].decoder(link.transmitter(link.images))
    torch.testing.assert_close(scores[0], clean)


def test_a_surrogate_has_the_budget_of_what_is_really_sent() -> None:
    """With `power: batch_average` two links send different energies for one image."""
    keys: dict[str, Any] = {
        "link": {"encoder": {"kind": "cnn", "channel_uses": 8}, "symbols": "real", "power": "batch_average"}
    }
    ours, theirs = (fresh_link({"kind": "awgn"}, images=6, seed=seed, **keys) for seed in (0, 1))
    made = attack("pgd", sites=["air"], steps=3)
    stolen = LinkProblem(theirs, Air(theirs), made, 10.0, 10.0)
    of_its_own = stolen.sites["air"].energy
    problem = LinkProblem(ours, Air(ours), made, 10.0, 10.0, stolen)
    assert not torch.allclose(of_its_own, problem.sites["air"].energy)
    problem.psr = from_db(-10.0)
    seen = problem.surrogate()
    assert seen is not None
    delta = made.perturb(seen, Stream(0))["air"]
    np.testing.assert_allclose(energy64(delta), 0.1 * problem.sites["air"].energy.numpy(), rtol=1e-3)


def test_restarts_are_rows_of_one_problem(pair: tuple[TrainedLink, Air]) -> None:
    link, air = pair
    problem = LinkProblem(link, air, attack("pgd", sites=["air"], **LABEL), 10.0, 10.0)
    g = torch.Generator().manual_seed(0)
    delta = torch.randn((150, 20), generator=g) * 0.1
    whole, gradient = differentiate(problem, {"air": delta}, 3, objective)
    rows = torch.tensor([4, 100, 4])
    some, its = differentiate(problem.select(rows), {"air": delta[rows]}, 3, objective)
    torch.testing.assert_close(some, whole[rows])
    torch.testing.assert_close(its["air"], gradient["air"][rows], rtol=1e-4, atol=1e-7)


SURROGATES: dict[str, Any] = {
    "schema": 1,
    "name": "surrogates",
    "compute": {"engine": "local"},
    "data": {"kind": "digits", "train_images": 800, "test_images": 120, "reserve": 500},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 20}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"all": {"count": 2, "tasks": ["label"], "channel": "down"}},
    "train": {"batch": 32, "optimizer": {"kind": "adam", "lr": 2e-3}, "snr_db": 10},
    "federation": {"kind": "none", "rounds": 8},
    "attacks": {
        "white": {"kind": "mi_fgsm"},
        "grey": {"kind": "mi_fgsm", "knowledge": {"weights": "surrogate"}, "surrogate": {"epochs": 8}},
        "again": {"kind": "pgd", "knowledge": {"weights": "surrogate"}, "surrogate": {"epochs": 8}},
    },
    "evaluation": {
        "draws": {"attack": 2, "score": 8},
        "samples": 0,
        "baselines": False,
        "grids": [{"attacks": ["none", "noise", "white", "grey", "again"], "snr_db": [10], "psr_db": [-14]}],
    },
}


def test_attacks_transfer_from_a_surrogate(tmp_path: Path) -> None:
    """Trained on images of its own and from its own start; two attacks share one surrogate."""
    results = run(SURROGATES, out=tmp_path)
    trained = {folder.name.rsplit("-", 1)[0] for folder in (results.folder / "checkpoints").iterdir()}
    assert len(list((results.folder / "checkpoints").iterdir())) == 2
    assert trained == {"seed0", "surrogate-seed0"}
    table = results.table
    rows = table[(table["metric"] == "accuracy") & table["seed"].notna()]
    accuracy = {
        name: float(rows[(rows["attack"] == name)]["value"].iloc[0]) for name in ("none", "white", "grey", "again")
    }
    assert accuracy["white"] < accuracy["grey"] - 0.05
    against = table[(table["metric"] == "accuracy_vs_noise") & (table["attack"] == "grey") & table["seed"].notna()]
    assert float(against["ci_high"].iloc[0]) < 0
    assert "weights: surrogate" in str(rows[rows["attack"] == "grey"]["knowledge"].iloc[0])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"kind": "apgd", "loss": "dlr", "objective": {"label": 1, "target": 1}}, "one classification task; use ce"),
        ({"kind": "standard", "targeted": {"label": 1}, "objective": {"label": 1}}, "asks how often the link fails"),
        ({"kind": "minimum_power", "targeted": {"label": 1}, "objective": {"label": 1}}, "asks what breaks an example"),
        ({"kind": "minimum_power"}, "is asked of one task; name it"),
        ({"kind": "pgd", "knowledge": {"signal": "statistics"}}, "works with exact, not 'statistics'"),
        ({"kind": "universal", "knowledge": {"signal": "exact"}}, "works with statistics, not 'exact'"),
        ({"kind": "pgd", "knowledge": {"weights": "none"}}, "works with all or surrogate, not 'none'"),
        ({"kind": "pgd", "knowledge": {"channel": "csi"}}, "use sites: .air."),
        ({"kind": "pgd", "knowledge": {"weights": "surrogate"}}, "write surrogate: {}"),
        ({"kind": "pgd", "surrogate": {}}, "keep some of them with data.reserve"),
        ({"kind": "noise", "surrogate": {}}, "'attacks.it.surrogate': noise aims at nothing; remove it"),
        ({"kind": "noise", "draws": 4}, "'attacks.it.draws': noise aims at nothing; remove it"),
        ({"kind": "pgd", "objective": "joint", "targeted": {"label": 1}}, "harms every task and aims at no goal"),
        ({"kind": "pgd", "objective": "both"}, "objective"),
        (
            {"kind": "pgd", "sites": ["air"], "knowledge": {"weights": "surrogate", "channel": "csi"}, "surrogate": {}},
            "is not modelled",
        ),
    ],
)
def test_what_cannot_be_known_or_aimed_at_is_refused(
    trained_link: TrainedLink, made: dict[str, Any], message: str
) -> None:
    tree = {
        **SURROGATES,
        "data": {"kind": "digits", "train_images": 60, "test_images": 20},
        "channels": {"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
        "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}},
        "receivers": {
            "all": {"count": 1, "tasks": ["label", "target"], "channel": {"label": "down", "target": "radar"}}
        },
        "attacks": {"it": made},
        "evaluation": {},
    }
    with pytest.raises(ScenarioError, match=message):
        resolve(check_scenario(tree))


@pytest.mark.parametrize(("path_loss", "refused"), [(0.0, False), (2.0, True)])
def test_gains_that_tell_the_distance_are_no_channel_knowledge(path_loss: float, refused: bool) -> None:
    radar = {"kind": "sensing", "range_bins": 4, "path_loss": path_loss}
    tree = {
        **SURROGATES,
        "channels": {"radar": radar},
        "tasks": {"target": {"kind": "sensing"}},
        "receivers": {"all": {"count": 1, "tasks": ["target"], "channel": "radar"}},
        "attacks": {"it": {"kind": "pgd", "sites": ["air"], "knowledge": {"channel": "csi"}}},
        "evaluation": {},
    }
    if not refused:
        resolve(check_scenario(tree))
        return
    with pytest.raises(ScenarioError, match=r"'attacks.it.knowledge.channel': over 'radar' the gain of the reflected"):
        resolve(check_scenario(tree))


def test_a_surrogate_over_the_air_must_send_as_many_numbers() -> None:
    other = {"encoder": {"kind": "cnn", "channel_uses": 10}}
    made = {"kind": "pgd", "sites": ["air"], "knowledge": {"weights": "surrogate"}, "surrogate": other}
    with pytest.raises(ScenarioError, match="it sends 10 numbers and the link 20"):
        resolve(check_scenario({**SURROGATES, "attacks": {"it": made}, "evaluation": {}}))


def test_training_on_a_reserve_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.reserve keeps no images"):
        resolve(
            check_scenario(
                {**SURROGATES, "data": {"kind": "digits", "portion": "reserve"}, "attacks": {}, "evaluation": {}}
            )
        )


def test_right_more_often_than_not_is_counted_by_image(pair: tuple[TrainedLink, Air]) -> None:
    link, air = pair
    made = attack("fgsm", norm="l2", **LABEL)
    problem = LinkProblem(link, air, made, 10.0, 10.0)
    problem.psr = from_db(-18.0)
    delta = made.perturb(problem, Stream(0))
    listeners = [one for one in link.listeners if one.branch.task == "label"]
    metrics = next(iter(Scorer(link, air).score(listeners, [10.0], delta, made)[0].values()))
    accuracy, mostly = tally(metrics, "accuracy"), tally(metrics, "mostly_right")
    share = accuracy.numerator / 32
    assert ((share > 0.5) == (mostly.numerator == 1)).all()
    assert 0 < mostly.numerator.mean() < 1
    assert (mostly.denominator == 1).all()
    assert mostly.receptions == 1


def test_a_grid_scores_the_tasks_that_it_names(tmp_path: Path) -> None:
    tree = {
        **SURROGATES,
        "data": {"kind": "digits", "train_images": 60, "test_images": 20},
        "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
        "receivers": {"all": {"count": 1, "tasks": ["label", "picture"], "channel": "down"}},
        "federation": {"kind": "none", "rounds": 1},
        "attacks": {"it": {"kind": "fgsm", "objective": {"label": 1}}},
    }
    grids = [
        {"snr_db": [10, 20]},
        {"attacks": ["it", "noise"], "tasks": ["label"], "snr_db": [10], "psr_db": [-20]},
        {"attacks": ["it"], "tasks": ["picture"], "snr_db": [10], "psr_db": [-10]},
    ]
    tree["evaluation"] = {**SURROGATES["evaluation"], "grids": grids}
    table = run(tree, out=tmp_path).table
    attacked = table[table["psr_db"].notna() & table["seed"].notna()]
    told = {(row["attack"], row["task"], row["psr_db"]) for _, row in attacked.iterrows()}
    assert told == {("it", "label", -20), ("noise", "label", -20), ("it", "picture", -10)}
    with pytest.raises(ScenarioError, match="tasks': unknown task 'lable'"):
        check_scenario({**tree, "evaluation": {"grids": [{"snr_db": [10], "tasks": ["lable"]}]}})
