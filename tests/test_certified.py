"""Votes and what they certify: published radii, worst cases of linear decoders, coverage, and rows of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import changed, fresh_link, head, tally
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.symbols import to_air
from fedsem.checks import resolve
from fedsem.errors import FedsemError, ScenarioError
from fedsem.evaluation import voting
from fedsem.evaluation.air import Air
from fedsem.evaluation.defended import defended
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer, key_of
from fedsem.evaluation.tabulate import rows
from fedsem.evaluation.trained import TrainedLink
from fedsem.evaluation.voting import Ballots
from fedsem.hooks.binomial import clopper_pearson, outnumbers, rank_above
from fedsem.hooks.evasion_losses import log_mean
from fedsem.hooks.vote import Vote
from fedsem.registry import find
from fedsem.reporting import figures
from fedsem.reporting.sample_table import SAMPLE_COLUMNS
from fedsem.reporting.table import frame
from fedsem.scenario import check_scenario, dump_scenario
from fedsem.tasks.classification import Classification
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.tasks.task import DecoderFormat
from fedsem.units import energy, from_db, to_db

AWGN = {"kind": "awgn"}
RAYLEIGH = {"kind": "rayleigh", "csi": "zf"}
NO_SAMPLES = pd.DataFrame(columns=list(SAMPLE_COLUMNS))
LABEL, PICTURE = Classification(), Reconstruction()
FORMAT = DecoderFormat(width=20, channel_uses=20, image_shape=(1, 8, 8), classes=10, range_bins=1)


def vote(kind: str, **options: Any) -> Vote:
    made = find("defense", kind).model_validate(options)
    assert isinstance(made, Vote)
    return made


def says(right: int, n: int, n0: int = 0, classes: int = 2) -> Tensor:
    """Outputs (n0 + n, 1, classes) of which all of the first n0 and `right` of the others name class 0."""
    told = torch.tensor([0] * n0 + [0] * right + [1] * (n - right))
    return F.one_hot(told, classes).float().unsqueeze(1)


def certified(defense: Vote, output: Tensor, distances: list[float]) -> list[float]:
    truth = torch.zeros(output.shape[1], dtype=torch.long)
    at = torch.tensor(distances, dtype=torch.float64).unsqueeze(1).expand(-1, output.shape[1])
    return [
        float(value)
        for value in defense.certify(output, truth, LABEL, at, FORMAT)["certified_accuracy"].numerator[:, 0]
    ]


def voting_link(channel: Mapping[str, Any], defense: dict[str, Any], psrs: list[float], **changes: Any) -> TrainedLink:
    """An untrained link of one classification task behind a vote that is called `mine`."""
    attacks = changes.get("attacks", {})
    grid = {"attacks": ["none", *attacks], "defenses": ["mine"], "snr_db": [10], "psr_db": psrs}
    draws = {"attack": 4, "score": 16}
    return fresh_link(
        channel,
        **{
            "defenses": {"mine": defense},
            "evaluation": {"draws": draws, "baselines": False, "samples": 0, "grids": [grid]},
            **changes,
        },
    )


def behind(link: TrainedLink, known: bool = False) -> TrainedLink:
    """The link behind its vote."""
    return defended(link, link.plan.scenario.defenses["mine"], known)


class AlwaysRight(nn.Module):
    """Names class 0 whatever it hears."""

    def forward(self, heard: Tensor) -> Tensor:
        return F.one_hot(torch.zeros(heard.shape[:-1], dtype=torch.long), 10).float()


class Linear(nn.Module):
    """Names class 0 where a . y > 0, else class 1."""

    def __init__(self, normal: Tensor) -> None:
        super().__init__()
        self.normal = normal

    def forward(self, heard: Tensor) -> Tensor:
        score = heard @ self.normal
        return torch.stack([score, -score], -1)


def with_decoder(link: TrainedLink, decoder: nn.Module) -> TrainedLink:
    """The link with another decoder, and class 0 as the truth of every image."""
    listeners = tuple(replace(one, decoder=decoder) for one in link.listeners)
    return replace(
        link, listeners=listeners, examples=replace(link.examples, labels=torch.zeros_like(link.examples.labels))
    )


def table(link: TrainedLink) -> list[dict[str, Any]]:
    return [row for row in rows([evaluate(link, lambda done, total: None).points], [0]) if row["seed"] is None]


# ------------------------------------------------------------------------------------------- counts, radii, ranks


@pytest.mark.parametrize("n", [10, 100, 1000, 100_000])
def test_clopper_pearson_is_the_beta_quantile(n: int) -> None:
    k = np.unique(np.linspace(0, n, 23).astype(int))
    for alpha in (0.001, 0.05):
        found = clopper_pearson(torch.from_numpy(k), n, alpha).numpy()
        assert found[0] == 0
        np.testing.assert_allclose(found[1:], stats.beta.ppf(alpha, k[1:], n - k[1:] + 1), rtol=1e-9)
        exact = [
            stats.binomtest(int(one), n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
            for one in k
        ]
        np.testing.assert_allclose(found, exact, rtol=1e-7)


def test_clopper_pearson_covers() -> None:
    """By simulation: the bound exceeds the truth with probability alpha at most, and not much less often."""
    k = torch.from_numpy(np.random.default_rng(0).binomial(200, 0.9, 200_000))
    wrong = float((clopper_pearson(k, 200, 0.05) > 0.9).double().mean())
    assert 0.02 < wrong < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200_000)


@pytest.mark.parametrize(
    ("sigma", "right", "radius"), [(0.25, 99_000, 0.572500), (0.5, 100_000, 1.905728)], ids=["sigma .25", "sigma .5"]
)
def test_radii_of_cohen_et_al(sigma: float, right: int, radius: float) -> None:
    low = clopper_pearson(torch.tensor(right), 100_000, 0.001)
    assert sigma * float(torch.special.ndtri(low)) == pytest.approx(radius, abs=5e-7)
    defense = vote("randomised_smoothing", sigma=sigma, n=100_000, alpha=0.001)
    distances = [(radius - 1e-5) / sigma, (radius + 1e-5) / sigma]
    assert certified(defense, says(right, 100_000, 100), distances) == [1, 0]


def test_half_of_the_votes_decide_nothing() -> None:
    for kind in ("randomised_smoothing", "reception_vote"):
        defense = vote(kind, n=100, n0=100)
        assert certified(defense, says(50, 100, 100), [0.0]) == [0]
        measured = defense.measure(says(50, 100, 100), torch.zeros(1, dtype=torch.long), LABEL)
        assert (measured["abstained"].numerator.item(), measured["accuracy"].numerator.item()) == (1, 0)
        measured = defense.measure(says(90, 100, 100), torch.zeros(1, dtype=torch.long), LABEL)
        assert (measured["abstained"].numerator.item(), measured["accuracy"].numerator.item()) == (0, 1)


def test_the_first_receptions_guess_and_the_others_count() -> None:
    """What only guesses is no evidence, and a wrong guess certifies nothing."""
    defense = vote("reception_vote", n=100, n0=10)
    assert certified(defense, says(100, 100, 10), [0.0]) == [1]
    assert certified(defense, torch.cat([says(0, 10), says(100, 100)]), [0.0]) == [0]


@given(st.integers(1, 400), st.integers(0, 400), st.sampled_from([0.001, 0.05]))
@settings(max_examples=60, deadline=None)
def test_who_wins_is_told_by_scipys_binomial_test(first: int, second: int, alpha: float) -> None:
    first, second = max(first, second), min(first, second)
    expected = stats.binomtest(first, first + second, 0.5).pvalue <= alpha
    assert bool(outnumbers(torch.tensor(first), torch.tensor(second), alpha)) == expected


@given(st.integers(10, 500), st.floats(0.01, 0.99), st.sampled_from([1e-6, 0.001, 0.05]))
@settings(max_examples=60, deadline=None)
def test_ranks_are_the_smallest_that_hold(n: int, quantile: float, alpha: float) -> None:
    k = int(rank_above(torch.tensor([quantile], dtype=torch.float64), n, alpha))
    fails = stats.binom.sf(k - 1, n, quantile)
    assert k == n + 1 or fails <= alpha * (1 + 1e-6)
    assert stats.binom.sf(k - 2, n, quantile) > alpha * (1 - 1e-6)


@given(st.integers(10, 2000), st.data(), st.sampled_from(["reception_vote", "single_shot_certificate"]))
@settings(max_examples=60, deadline=None)
def test_more_right_votes_never_certify_less(n: int, data: st.DataObject, kind: str) -> None:
    more = data.draw(st.integers(1, n))
    less = data.draw(st.integers(0, more))
    defense = vote(kind, n=n)
    distances = [0.0, 0.3, 1.0, 2.0, 4.0]
    n0 = 100 if kind == "reception_vote" else 0
    high, low = (certified(defense, says(k, n, n0), distances) for k in (more, less))
    assert all(a >= b for a, b in zip(high, low, strict=True))
    assert sorted(high, reverse=True) == high


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_the_order_of_images_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    told = torch.randint(0, 3, (130, 7), generator=generator)
    output, truth = F.one_hot(told * (torch.rand(130, 7, generator=generator) < 0.3), 3).float(), torch.arange(7) % 3
    distance = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    order = torch.randperm(7, generator=generator)
    for defense in (vote("reception_vote", n=30), vote("single_shot_certificate", n=130)):
        whole = defense.certify(output, truth, LABEL, distance, FORMAT)["certified_accuracy"].numerator
        mixed = defense.certify(output[:, order], truth[order], LABEL, distance[:, order], FORMAT)["certified_accuracy"]
        assert torch.equal(whole[:, order], mixed.numerator)


# ------------------------------------------------------------------------------------------- over the air


CLOSED_FORM = float(stats.norm.ppf(0.001 ** (1 / 1000))) ** 2 / (20 * 10)
"""Certified PSR of a vote of 1,000 that are all right: Phi^-1(alpha^(1/N))^2 / (nc SNR) at nc = 20 and 10 dB."""


@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_a_decoder_that_is_always_right_is_certified_up_to_the_closed_form(symbols: str) -> None:
    assert to_db(CLOSED_FORM) == pytest.approx(-15.2, abs=0.05)
    psrs = [to_db(CLOSED_FORM) - 0.001, to_db(CLOSED_FORM) + 0.001]
    link = voting_link(
        AWGN,
        {"kind": "reception_vote"},
        psrs,
        link={"encoder": {"kind": "cnn", "channel_uses": 20}, "symbols": symbols},
    )
    found = {
        (row.get("psr_db"), row["metric"]): row
        for row in table(with_decoder(link, AlwaysRight()))
        if row["attack"] == "none"
    }
    assert [found[psr, "certified_accuracy"]["value"] for psr in psrs] == [1, 0]
    row = found[psrs[0], "certified_accuracy"]
    assert (row["stage"], row["sites"], row["norm"], row["defense"], row["n"]) == (
        "certificate",
        "air",
        "l2",
        "mine",
        6,
    )
    assert row["pnr_db"] == pytest.approx(psrs[0] + 10)
    clean = next(value for (psr, metric), value in found.items() if metric == "accuracy")
    assert clean["value"] == 1
    assert clean["draws"] == 1100


@pytest.mark.parametrize("symbols", ["real", "complex"])
@pytest.mark.parametrize("channel", [AWGN, RAYLEIGH, {"kind": "rayleigh", "fading": "fast", "csi": "mmse"}])
def test_the_distance_is_that_of_what_arrives(channel: dict[str, Any], symbols: str) -> None:
    """No perturbation within the budget arrives with more than `reach` standard deviations of the noise, and over block
    fading one arrives with that."""
    link = voting_link(channel, {"kind": "single_shot_certificate", "n": 10}, [-10.0], symbols=symbols)
    link = defended(link, link.plan.scenario.defenses["mine"])
    air = Air(link)
    ballots, listener = Ballots(link, air), link.listeners[0]
    x = link.transmitter.send(link.images).x
    w = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    w = w * (energy(x) / energy(w)).sqrt().unsqueeze(1)
    # Noise N(0, 1/SNR) per real symbol; real and imaginary part of a complex one have half of it each.
    s = math.sqrt(from_db(-10.0) / (1 if symbols == "real" else 2))
    heard = list(ballots._receptions([listener], [10.0], {}))
    assert len(heard) == (1 if channel["kind"] == "awgn" else 8)
    for draw, ballot in enumerate(heard):
        g = air.score(listener).g[draw]
        g = g.abs() if symbols == "real" else g
        arrives = (g * to_air(w, "real" if symbols == "real" else "complex")).abs().square().sum(-1).sqrt() / s
        assert (arrives <= ballot.reach * from_db(0.001)).all()
        if channel.get("fading") != "fast":
            torch.testing.assert_close(arrives.double(), ballot.reach, rtol=1e-4, atol=0)


def linear(
    channel: dict[str, Any], defense: dict[str, Any], psr_db: float, **changes: Any
) -> tuple[TrainedLink, Tensor]:
    """A link behind a vote whose decoder is a half space that is right with some margin, and its unit normal."""
    link = voting_link(channel, defense, [psr_db], **changes)
    x = link.transmitter.send(link.images).x
    along = F.normalize(x.mean(0), dim=0)
    other = torch.randn(along.shape, generator=torch.Generator().manual_seed(1))
    normal = 0.2 * along + math.sqrt(1 - 0.2**2) * F.normalize(other - (other @ along) * along, dim=0)
    return with_decoder(link, Linear(normal)), normal


@pytest.mark.parametrize(
    ("channel", "averaged"), [(AWGN, 1), (RAYLEIGH, 1), (AWGN, 4)], ids=["awgn", "rayleigh", "averaged"]
)
def test_the_bound_is_tight_for_a_linear_decoder(channel: dict[str, Any], averaged: int) -> None:
    """A half space a . y > 0 is right with probability Phi(|h| a . x / s) and, under the worst w = -r a, with
    Phi((|h| a . x - |g| r) / s): nothing is left between the bound and that attack but the counting."""
    psr_db = -20.0 - to_db(float(averaged))
    options: dict[str, Any] = {"n": 100_000, "gains": 4}
    kind = "single_shot_certificate"
    if averaged > 1:
        kind, options = "coherent_averaging", {**options, "averaged_receptions": averaged}
    link, normal = linear(channel, {"kind": kind, **options}, psr_db)
    link = defended(link, link.plan.scenario.defenses["mine"])
    air = Air(link)
    scorer, listener = Scorer(link, air), link.listeners[0]
    assert scorer.ballots is not None
    x, s = link.transmitter.send(link.images).x.double(), math.sqrt(0.1 / averaged)
    r = (energy(x) * from_db(psr_db)).sqrt()
    draws = 1 if channel is AWGN else 4
    h, g = (value[:draws, :, 0].abs().double() for value in (air.score(listener).h, air.score(listener).g))
    clean = torch.special.ndtr(h * (x @ normal.double()) / s)
    exact = torch.special.ndtr((h * (x @ normal.double()) - g * r) / s)
    assert 0.6 < clean.mean() < 0.99
    assert exact.mean() < clean.mean() - 0.1

    key = key_of(listener)
    measured = tally(scorer.score([listener], [10.0], {})[0][key], "accuracy")
    assert measured.numerator.sum() / measured.denominator.sum() == pytest.approx(float(clean.mean()), abs=0.002)
    bound = scorer.ballots.certified([listener], 10.0, psr_db)["certified_accuracy"]
    assert (bound.numerator <= exact.sum(0).numpy()).all()
    assert (bound.numerator >= exact.sum(0).numpy() - 0.02 * draws).all()
    worst = {"air": -(r.unsqueeze(1) * normal).float()}
    attacked = tally(scorer.score([listener], [10.0], worst)[0][key], "accuracy")
    np.testing.assert_allclose(attacked.numerator, exact.sum(0).numpy(), atol=0.008 * draws)
    assert (bound.numerator <= attacked.numerator).all()


@given(st.integers(0, 2**31), st.floats(-35, -5))
@settings(max_examples=12, deadline=None)
def test_a_vote_certifies_no_linear_decoder_beyond_its_margin(seed: int, psr_db: float) -> None:
    link = LINEAR_LINK()
    x = link.transmitter.send(link.images).x.double()
    normal = F.normalize(torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0)
    link = with_decoder(changed(link, **grid_at(psr_db)), Linear(normal.float()))
    link = defended(link, link.plan.scenario.defenses["mine"])
    scorer, listener = Scorer(link, Air(link)), link.listeners[0]
    assert scorer.ballots is not None
    scorer.score([listener], [10.0], {})
    held = scorer.ballots.certified([listener], 10.0, psr_db)["certified_accuracy"].numerator > 0
    margin, r = (x @ normal).numpy() / math.sqrt(0.1), (energy(x) * from_db(psr_db)).sqrt().numpy() / math.sqrt(0.1)
    assert not (held & (r > margin)).any()
    # And nothing is given away but the counting: 20,000 votes know p to a hundredth of a standard deviation or so.
    sure = (r < margin - 0.1) & (margin < 2.5)
    assert held[sure].all()


def grid_at(psr_db: float, **more: Any) -> dict[str, Any]:
    grid = {"attacks": ["none"], "defenses": ["mine"], "snr_db": [10], "psr_db": [psr_db]}
    return {
        "evaluation": {"draws": {"attack": 4, "score": 16}, "baselines": False, "samples": 0, "grids": [grid], **more}
    }


_LINKS: list[TrainedLink] = []


def LINEAR_LINK() -> TrainedLink:
    if not _LINKS:
        _LINKS.append(voting_link(AWGN, {"kind": "reception_vote", "n": 20_000}, [-20.0]))
    return _LINKS[0]


def test_real_and_complex_symbols_certify_the_same_of_the_same_numbers() -> None:
    """At equal nc AWGN is the same channel (design section 4): of the same half space the same share is certified."""
    found = []
    for symbols in ("real", "complex"):
        link, _ = linear(AWGN, {"kind": "single_shot_certificate", "n": 50_000}, -20.0, symbols=symbols)
        found.append(next(row["value"] for row in table(link) if row["metric"] == "certified_accuracy"))
    assert 0.3 < found[0] < 0.95
    assert found[0] == pytest.approx(found[1], abs=0.01)


def test_a_vote_over_fading_fixes_the_gains() -> None:
    """A decoder that is always right is certified wherever |g|^2 PSR nc SNR < Phi^-1(p)^2, for the gains that score."""
    psr_db = to_db(CLOSED_FORM * 20 / 8)
    link = with_decoder(
        voting_link(RAYLEIGH, {"kind": "reception_vote", "gains": 16}, [psr_db], images=12), AlwaysRight()
    )
    found = next(row for row in table(link) if row["metric"] == "certified_accuracy")
    power = Air(defended(link, link.plan.scenario.defenses["mine"])).score(link.listeners[0]).g.abs().square()
    assert found["value"] == pytest.approx(float((power < 1).float().mean()), abs=1e-6)
    assert 0.5 < found["value"] < 0.75  # 1 - 1/e of all gains


def test_a_radar_can_be_certified_too() -> None:
    """An always-absent radar is right where no target was drawn, whatever arrives: it is certified exactly there."""

    class Absent(nn.Module):
        def forward(self, heard: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(*heard.shape[:-1], 2)

    link = voting_link(
        {"kind": "sensing", "range_bins": 3}, {"kind": "reception_vote"}, [-60.0], task="sensing", images=20
    )
    link = replace(link, listeners=tuple(replace(one, decoder=Absent()) for one in link.listeners))
    found = {row["metric"]: row["value"] for row in table(link)}
    target = Air(link).score(link.listeners[0]).target
    assert target is not None
    assert found["certified_accuracy"] == found["accuracy"] == pytest.approx(float((target[:8] == 0).float().mean()))


def test_results_do_not_depend_on_what_is_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for channel, defense in (
        (RAYLEIGH, {"kind": "reception_vote", "n": 50, "gains": 2}),
        (RAYLEIGH, {"kind": "randomised_smoothing", "n": 50, "n0": 10}),
    ):
        link = voting_link(channel, defense, [-30.0], attacks={"air": {"kind": "fgsm", "sites": ["air"]}})
        found = []
        for at_once in (10, 4096):
            monkeypatch.setattr(voting, "ROWS_AT_ONCE", at_once)
            found.append([(row["metric"], row["value"], row["ci_low"]) for row in table(link)])
        assert found[0] == found[1]


def test_an_adversary_who_knows_the_channel_meets_each_gain_with_a_signal_of_its_own() -> None:
    """The worst w of a half space at each gain, in the order of the draws that score."""
    link, normal = linear(RAYLEIGH, {"kind": "single_shot_certificate", "n": 20_000, "gains": 3}, -20.0)
    link = defended(link, link.plan.scenario.defenses["mine"])
    air = Air(link)
    scorer, listener = Scorer(link, air), link.listeners[0]
    x = link.transmitter.send(link.images).x.double()
    r = torch.linspace(0.1, 1.6, 16, dtype=torch.float64).view(-1, 1).expand(-1, len(x))
    delta = {"air": -(r.unsqueeze(-1) * normal).float()}
    h, g = (value[:3, :, 0].abs().double() for value in (air.score(listener).h, air.score(listener).g))
    exact = torch.special.ndtr((h * (x @ normal.double()) - g * r[:3]) / math.sqrt(0.1))
    measured = tally(scorer.score([listener], [10.0], delta)[0][key_of(listener)], "accuracy")
    np.testing.assert_allclose(measured.numerator, exact.sum(0).numpy(), atol=0.05)


# ------------------------------------------------------------------------------------------- at the input


def test_noisy_copies_are_certified_up_to_sigma_times_the_quantile_over_the_images_norm() -> None:
    """Always right: PSR ||u||^2 < sigma^2 Phi^-1(alpha^(1/n))^2, image by image."""
    link = voting_link(AWGN, {"kind": "randomised_smoothing", "sigma": 0.5, "n": 100, "n0": 10}, [-20.0, -30.0])
    radius = 0.5 * stats.norm.ppf(0.001 ** (1 / 100))
    power = energy(link.images.double()).numpy()
    middle = to_db(float(radius**2 / np.median(power)))
    link = with_decoder(changed(link, **grid_at(middle)), AlwaysRight())
    found = next(row for row in table(link) if row["metric"] == "certified_accuracy")
    assert found["value"] == np.mean(from_db(middle) * power < radius**2)
    assert 0 < found["value"] < 1
    assert found["sites"] == "input"


@pytest.mark.parametrize("kind", ["randomised_smoothing", "reception_vote"])
def test_a_vote_hears_symbols_that_a_trigger_turns(kind: str) -> None:
    """Half a turn of what arrives is heard as the same with its sign changed."""
    link = voting_link(AWGN, {"kind": kind, "n": 50}, [-20.0], symbols="complex")
    normal = torch.randn(8, generator=torch.Generator().manual_seed(0))
    turned = {"phase": torch.full((len(link.labels),), math.pi)}
    found = []
    for decoder, delta in ((Linear(normal), turned), (Linear(-normal), {})):
        mine = behind(with_decoder(link, decoder))
        scorer, listener = Scorer(mine, Air(mine)), mine.listeners[0]
        found.append(tally(scorer.score([listener], [10.0], delta)[0][key_of(listener)], "accuracy").numerator)
    np.testing.assert_array_equal(found[0], found[1])
    assert 0 < found[0].sum() < len(link.labels)


@pytest.mark.parametrize("kind", ["randomised_smoothing", "reception_vote", "single_shot_certificate"])
def test_behind_a_vote_it_is_told_how_often_a_trigger_reaches_its_goal(kind: str) -> None:
    """A decoder that always says class 1: every example of another class gets there, and none of class 1 counts."""

    class One(nn.Module):
        def forward(self, heard: Tensor) -> Tensor:
            return torch.eye(10)[1].expand(*heard.shape[:-1], 10)

    link = with_decoder(voting_link(AWGN, {"kind": kind, "n": 50}, [-20.0]), One())
    mine = behind(link)
    scorer, listener = Scorer(mine, Air(mine)), mine.listeners[0]
    for goal, share in ((1, 1.0), (2, 0.0)):
        trigger: Any = find("attack", "patch").model_validate({"targets": {listener.branch.task: goal}})
        delta = {"input": torch.zeros_like(link.images)}
        reached = tally(scorer.score([listener], [10.0], delta, trigger)[0][key_of(listener)], "reached")
        assert reached.numerator.sum() / reached.denominator.sum() == share
        np.testing.assert_array_equal(reached.denominator > 0, (link.labels != goal).numpy())


def test_who_attacks_smoothing_climbs_the_mean_probability_over_its_noise() -> None:
    """SmoothAdv: -log of the mean softmax over noisy copies and channel draws, written out by hand."""
    attack = {"kind": "pgd", "sites": ["input"], "knowledge": {"defense": "adaptive"}}
    link = voting_link(
        AWGN, {"kind": "randomised_smoothing", "sigma": 0.3, "n": 50}, [-30.0], attacks={"pgd": attack}, seed=3
    )
    seen = defended(link, link.plan.scenario.defenses["mine"], known=True)
    made = seen.plan.scenario.attacks["pgd"]
    air = Air(seen)
    problem = LinkProblem(seen, air, made, 10.0, 10.0)
    delta = 0.05 * torch.rand(link.images.shape, generator=torch.Generator().manual_seed(0))
    leaf = delta.clone().requires_grad_(True)
    loss = log_mean(problem, {"input": leaf}, 5, slice(None))
    drawn, listener = air.attack_transform(5, 4), link.listeners[0]
    assert drawn is not None
    heard = air.attack(listener, 5)
    mean = torch.stack(
        [
            F.softmax(
                listener.decoder(
                    link.transmitter.send(link.images + leaf + 0.3 * drawn[k]).x + math.sqrt(0.1) * heard.noise[k]
                ),
                -1,
            )
            for k in range(4)
        ]
    ).mean(0)
    expected = -mean.gather(1, link.labels.unsqueeze(1)).squeeze(1).log()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    mine, theirs = (torch.autograd.grad(one.sum(), leaf, retain_graph=True)[0] for one in (loss, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert mine.abs().sum() > 0


# ------------------------------------------------------------------------------------------- medians


def toy(points: Tensor) -> Tensor:
    """Two pixels of a point in the plane, neither linear nor monotone."""
    first = 0.5 + 0.4 * torch.sin(3 * points[..., 0]) * torch.cos(points[..., 1])
    return torch.stack([first, 0.3 + 0.2 * points[..., 0].square() - 0.1 * points[..., 1]], -1).clamp(0, 1)


@pytest.mark.parametrize("distance", [0.1, 0.5, 1.0])
def test_no_perturbed_median_leaves_its_bounds(distance: float) -> None:
    """Medians at points of a circle of that radius, by brute force, against what is certified at its centre: whatever
    the true picture is, none of them has more squared error."""
    generator, sigma = torch.Generator().manual_seed(0), 0.4
    centre = torch.tensor([0.2, -0.5])
    defense = vote("median_smoothing", n=2000, sigma=sigma)
    copies = toy(centre + sigma * torch.randn(2000, 1, 2, generator=generator))
    angles = torch.linspace(0, 2 * math.pi, 33)[:-1]
    around = centre + distance * sigma * torch.stack([angles.cos(), angles.sin()], -1)
    noise = sigma * torch.randn(20_000, 1, 2, generator=generator)
    medians = toy(around + noise).median(0).values
    worst = []
    for truth in (torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.3]])):
        at = torch.full((1, 1), distance, dtype=torch.float64)
        bound = float(defense.certify(copies, truth, PICTURE, at, FORMAT)["certified_mse"].numerator)
        errors = (medians - truth).square().mean(-1)
        assert float(errors.max()) <= bound
        worst.append((float(errors.max()), bound))
    assert worst[0][1] < 1  # bounds of some use


def test_medians_are_bounded_by_order_statistics() -> None:
    """One pixel, of which n copies are i / n: at distance d the bounds are the copies of rank k and n + 1 - k, with
    P(Bin(n, Phi(d)) <= k - 1) >= 1 - alpha / 2; far away nothing is known of a pixel but that it is one."""
    n, d = 1000, 0.7
    copies = (torch.randperm(n, generator=torch.Generator().manual_seed(0)).double() + 1).view(n, 1, 1) / n
    defense = vote("median_smoothing", n=n, alpha=0.01)
    k = stats.binom.ppf(1 - 0.005, n, stats.norm.cdf(d)) + 1
    at = torch.tensor([[d], [20.0]], dtype=torch.float64)
    low = defense.certify(copies, torch.zeros(1, 1, dtype=torch.float64), PICTURE, at, FORMAT)[
        "certified_mse"
    ].numerator
    high = defense.certify(copies, torch.ones(1, 1, dtype=torch.float64), PICTURE, at, FORMAT)[
        "certified_mse"
    ].numerator
    assert low[:, 0].tolist() == pytest.approx([(k / n) ** 2, 1])
    assert high[:, 0].tolist() == pytest.approx([(1 - (n + 1 - k) / n) ** 2, 1])
    assert defense.measure(copies, torch.full((1, 1), 0.5), PICTURE)["mse"].numerator.item() == pytest.approx(
        0, abs=1e-6
    )


def test_median_smoothing_writes_rows_of_reconstruction() -> None:
    link = voting_link(
        AWGN, {"kind": "median_smoothing", "n": 500, "sigma": 0.5}, [-50.0, -20.0], task="reconstruction"
    )
    found = {(row.get("psr_db"), row["metric"]): row["value"] for row in table(link) if row["attack"] == "none"}
    clean = next(value for (_, metric), value in found.items() if metric == "mse")
    assert clean <= found[-50.0, "certified_mse"] <= found[-20.0, "certified_mse"] <= 1
    assert found[-50.0, "certified_mse"] < 0.9
    assert found[-50.0, "certified_psnr_db"] > found[-20.0, "certified_psnr_db"]


# ------------------------------------------------------------------------------------------- trained links, refusals


def test_certified_accuracy_stays_below_what_attacks_leave(trained_link: TrainedLink) -> None:
    """The same classifiers, norm, site and images: what holds for every attack holds for PGD."""
    psrs = [-40.0, -30.0, -25.0, -20.0, -15.0]
    defenses = {
        "vote": {"kind": "reception_vote"},
        "one": {"kind": "single_shot_certificate"},
        "mean": {"kind": "coherent_averaging", "averaged_receptions": 10},
        "smooth": {"kind": "randomised_smoothing", "sigma": 0.12, "n": 100, "n0": 20},
    }
    pgd = {"kind": "pgd", "steps": 10, "objective": {"label": 1.0}}
    on_air = {"defenses": ["vote", "one", "mean"], "attacks": ["none", "air"]}
    at_input = {"defenses": ["smooth"], "attacks": ["none", "image"]}
    link = changed(
        head(trained_link, 40),
        defenses=defenses,
        attacks={"air": {**pgd, "sites": ["air"]}, "image": {**pgd, "sites": ["input"]}},
        evaluation={
            "draws": {"attack": 8, "score": 8},
            "baselines": False,
            "samples": 0,
            "grids": [
                {**grid, "tasks": ["label"], "snr_db": [10], "psr_db": some}
                for grid, some in ((on_air, psrs), (at_input, [-45.0, -40.0]))
            ],
        },
    )
    found = {(row["defense"], row["attack"], row.get("psr_db"), row["metric"]): row["value"] for row in table(link)}
    for name in defenses:
        for psr in psrs if name != "smooth" else [-45.0, -40.0]:
            attack = "image" if name == "smooth" else "air"
            assert found[name, "none", psr, "certified_accuracy"] <= found[name, attack, psr, "accuracy"]
    assert found["vote", "none", -25.0, "certified_accuracy"] > 0.7
    assert found["one", "none", -40.0, "certified_accuracy"] > 0.8
    # Averaging leaves less noise: more is right without attack, and less is certain under one.
    assert found["mean", "none", -20.0, "certified_accuracy"] < found["vote", "none", -20.0, "certified_accuracy"]
    assert found["smooth", "none", -45.0, "certified_accuracy"] > 0.1


def test_a_link_that_has_broken_down_certifies_nothing() -> None:
    link, _ = linear(AWGN, {"kind": "single_shot_certificate", "n": 10}, -20.0)
    broken = replace(
        link, listeners=tuple(replace(one, decoder=Linear(torch.full((8,), torch.nan))) for one in link.listeners)
    )
    with pytest.raises(FedsemError, match="NaN or infinite"):
        table(broken)


SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "refused",
    "data": {"kind": "digits", "train_images": 60},
    "channels": {"air": RAYLEIGH},
    "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
    "receivers": {"all": {"count": 1, "tasks": ["label", "picture"], "channel": "air"}},
}


def grids(**grid: Any) -> dict[str, Any]:
    return {"evaluation": {"grids": [{"defenses": ["mine"], "snr_db": [10], "tasks": ["label"], **grid}]}}


@pytest.mark.parametrize(
    ("defense", "changes", "message"),
    [
        ({"kind": "reception_vote"}, grids(), r"grids\.0': 'reception_vote' certifies .* list PSRs in 'psr_db'"),
        (
            {"kind": "reception_vote"},
            grids(psr_db=[-20], tasks=["label", "picture"]),
            r"grids\.0\.tasks': 'reception_vote' does not certify the task 'picture' \(reconstruction\)",
        ),
        (
            {"kind": "median_smoothing"},
            grids(psr_db=[-20]),
            r"'median_smoothing' does not certify the task 'label' .*, reconstruction and detection, in",
        ),
        (
            {"kind": "single_shot_certificate", "gains": 33},
            grids(psr_db=[-20]),
            r"'defenses\.mine\.gains': evaluation\.draws\.score has \d+ draws",
        ),
        (
            {"kind": "randomised_smoothing"},
            {
                **grids(psr_db=[-20], attacks=["air"]),
                "attacks": {"air": {"kind": "pgd", "sites": ["air"], "knowledge": {"channel": "csi"}}},
            },
            r"grids\.0\.attacks': 'air' knows the channel of a reception",
        ),
        (
            {"kind": "reception_vote"},
            {
                "data": {"kind": "digit_scenes", "train_scenes": 8, "test_scenes": 2},
                "link": {"encoder": {"kind": "mae"}},
            },
            r"'defenses\.mine': 'reception_vote' decodes 1100 receptions .* would paint every one",
        ),
        (
            {"kind": "interval_certificate"},
            grids(psr_db=[-20], tasks=["picture"]),
            r"grids\.0\.tasks': 'interval_certificate' knows no bounds of the decisions of 'picture'",
        ),
        ({"kind": "interval_certificate"}, grids(), r"list PSRs in 'psr_db'"),
        (
            {"kind": "reception_vote"},
            {"use": {"defenses": ["mine"]}},
            r"'use\.defenses': 'mine' acts on a trained link",
        ),
    ],
)
def test_what_cannot_be_certified_is_refused(defense: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        resolve(check_scenario({**SCENARIO, "defenses": {"mine": defense}, **changes}))


def test_interval_bounds_write_rows_and_hold_for_pgd() -> None:
    """L-inf over the air: below what PGD leaves, all of the clean accuracy at no power, and little at 20 dB."""
    psrs = [-90.0, -25.0, -20.0, 20.0]
    link = voting_link(
        RAYLEIGH,
        {"kind": "interval_certificate"},
        psrs,
        attacks={"pgd": {"kind": "pgd", "sites": ["air"], "norm": "linf", "knowledge": {"channel": "csi"}}},
        images=20,
    )
    # What the untrained decoder says most often counts as right, so that there is something to lose.
    told = link.listeners[0].decoder(link.transmitter.send(link.images).x).argmax(-1)
    link = replace(link, examples=replace(link.examples, labels=told))
    found = {(row["attack"], row.get("psr_db"), row["metric"]): row for row in table(link)}
    bounds = [found["none", psr, "certified_accuracy"]["value"] for psr in psrs]
    left = [found["pgd", psr, "accuracy"]["value"] for psr in psrs]
    assert all(bound <= attacked for bound, attacked in zip(bounds, left, strict=True))
    assert sorted(bounds, reverse=True) == bounds
    assert bounds[0] == found["none", None, "accuracy"]["value"] > 0.3
    assert bounds[-1] < 0.1
    row = found["none", -25.0, "certified_accuracy"]
    assert (row["stage"], row["norm"], row["sites"], row["draws"]) == ("certificate", "linf", "air", 16)


def test_undefended_figures_stay_as_they_are() -> None:
    """To the last bit, whether a vote stands beside them in the grid or not."""
    link = voting_link(RAYLEIGH, {"kind": "coherent_averaging", "n": 10}, [-20.0], attacks={"a": {"kind": "fgsm"}})
    tree = dump_scenario(link.plan.scenario)["evaluation"]
    found = []
    for names in (["none"], ["none", "mine"]):
        grid = {**tree["grids"][0], "defenses": names}
        points = evaluate(changed(link, evaluation={**tree, "grids": [grid]}), lambda done, total: None).points
        plain = [point for point in points if "defense" not in point.columns]
        found.append(
            [(point.columns["attack"], *map(float, tally(point.metrics, "accuracy").numerator)) for point in plain]
        )
    assert found[0] == found[1]


def test_an_adversary_meets_the_noise_that_averaging_leaves_if_it_knows_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the attack of another link would be scored on this one."""
    met: dict[str, float] = {}
    attacks = {
        f"knows_{level}": {"kind": "fgsm", "sites": ["air"], "knowledge": {"defense": level}}
        for level in ("exact", "none")
    }
    averaging = {"kind": "coherent_averaging", "averaged_receptions": 100, "n": 10}
    link = voting_link(AWGN, averaging, [-20.0], attacks=attacks)
    draw = Air.attack

    def watched(self: Air, *args: Any, **keys: Any) -> Any:
        found = draw(self, *args, **keys)
        met["averaged" if self.link.averaged > 1 else "plain"] = float(found.noise.std())
        return found

    monkeypatch.setattr(Air, "attack", watched)
    evaluate(link, lambda done, total: None)
    assert met["averaged"] == pytest.approx(0.1, rel=0.1)
    assert met["plain"] == pytest.approx(1, rel=0.1)


def test_the_figure_shows_what_is_certified_dashed_beside_what_attacks_leave() -> None:
    attack = {"kind": "fgsm", "sites": ["air"]}
    psrs = [-30.0, -20.0, -10.0]
    link, _ = linear(AWGN, {"kind": "single_shot_certificate", "n": 1000}, -20.0)
    grid = {"attacks": ["none", "fgsm"], "defenses": ["none", "mine"], "snr_db": [10], "psr_db": psrs}
    tree = dump_scenario(link.plan.scenario)["evaluation"]
    link = changed(link, attacks={"fgsm": attack}, evaluation={**tree, "grids": [grid]})
    found = frame([{"seed": 0, **row} if row.get("seed") is None else row for row in table(link)])
    drawn = figures.draw("certified_vs_psr", found, NO_SAMPLES)
    (axes,) = drawn.axes
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert legend == ["mine, certified", "mine, under FGSM", "No defense, under FGSM"]
    bound = found[found["metric"].eq("certified_accuracy") & found["stage"].eq("certificate")]
    dashed, solid, plain = axes.lines
    assert np.asarray(dashed.get_xdata()).tolist() == psrs
    assert np.asarray(dashed.get_ydata()).tolist() == pytest.approx(list(100 * bound["value"]))
    assert (dashed.get_linestyle(), solid.get_linestyle()) == ("--", "-")
    assert dashed.get_color() == solid.get_color() != plain.get_color()
    assert all(np.asarray(dashed.get_ydata()) <= np.asarray(solid.get_ydata()))
    without = found[found["stage"] != "certificate"]
    with pytest.raises(FedsemError, match="no grid names a defense that certifies"):
        figures.draw("certified_vs_psr", without, NO_SAMPLES)


def test_the_figure_says_which_norm_each_certificate_is_for_where_they_differ() -> None:
    grid = {"attacks": ["none"], "defenses": ["ball", "cube"], "snr_db": [10], "psr_db": [-30.0, -20.0]}
    link = fresh_link(
        AWGN,
        defenses={"ball": {"kind": "reception_vote", "n": 20, "n0": 5}, "cube": {"kind": "interval_certificate"}},
        evaluation={"draws": {"attack": 1, "score": 4}, "baselines": False, "samples": 0, "grids": [grid]},
    )
    found = frame([{"seed": 0, **row} if row.get("seed") is None else row for row in table(link)])
    drawn = figures.draw("certified_vs_psr", found, NO_SAMPLES)
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert legend == ["ball, certified (L2)", "cube, certified (L\u221e)"]
