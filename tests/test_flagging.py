"""Detectors on received symbols: their scores, their thresholds, and what an adversary who knows them does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_LINK, assemble, changed, fresh_link, head, tally
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.covariance import shrunk_covariance
from torch import Tensor, nn

from fedsem.checks import resolve
from fedsem.data.dataset import Split
from fedsem.evaluation.air import Air
from fedsem.evaluation.defended import defended
from fedsem.evaluation.flagging import Alarm, Alarms
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.engine import federated
from fedsem.federation.job import Job
from fedsem.hooks.detector import Detector
from fedsem.hooks.evasion import Evasion, Perturbation
from fedsem.hooks.evasion_losses import difference_of_logits_ratio, log_mean, margin_to, measure, objective
from fedsem.plan import scenario_text
from fedsem.registry import find, names
from fedsem.scenario import check_scenario
from fedsem.streams import Stream
from fedsem.units import from_db

ALL = sorted(name for name, cls in names("defense").items() if issubclass(cls, Detector))


def defense(name: str, **options: Any) -> Any:
    return find("defense", name).model_validate(options)


def evasion(kind: str, **options: Any) -> Evasion:
    made = find("attack", kind).model_validate({"objective": {"label": 1}, **options})
    assert isinstance(made, Evasion)
    return made


def reserve_of(link: TrainedLink) -> Split:
    reserve = link.plan.dataset.reserve
    assert reserve is not None
    return reserve


def receptions(rows: int, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixing + 0.5


# ------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("shrinkage", [0.01, 0.5])
def test_the_distance_is_scipys_with_sklearns_covariance(shrinkage: float) -> None:
    """Lee et al., equation 1: class means, one covariance of all that is left around them."""
    clean, decisions = receptions(300), torch.arange(300) % 3
    clean = clean + 4 * torch.eye(6)[decisions]
    made = defense("symbol_anomaly", shrinkage=shrinkage)
    fitted = made.fit(nn.Identity(), clean, decisions, Stream(0))
    asked = receptions(40, seed=1).view(2, 20, 6)
    rows = clean.double().numpy()
    means = np.stack([rows[decisions.numpy() == one].mean(0) for one in range(3)])
    around = rows - means[decisions.numpy()]
    covariance = shrunk_covariance(around.T @ around / len(rows), shrinkage=shrinkage)
    distances = cdist(asked.flatten(0, 1).numpy(), means, "mahalanobis", VI=np.linalg.inv(covariance)) ** 2
    got = made.score(nn.Identity(), asked, fitted)
    assert got.shape == (2, 20)
    np.testing.assert_allclose(got.flatten().numpy(), distances.min(1), rtol=1e-3)


def test_without_decisions_there_is_one_class() -> None:
    clean = receptions(200)
    made = defense("symbol_anomaly")
    one = made.fit(nn.Identity(), clean, None, Stream(0))
    same = made.fit(nn.Identity(), clean, torch.full((200,), 7), Stream(0))
    assert torch.equal(made.score(nn.Identity(), clean, one), made.score(nn.Identity(), clean, same))


def test_symbols_that_never_vary_are_no_division_by_zero() -> None:
    made = defense("symbol_anomaly")
    fitted = made.fit(nn.Identity(), torch.ones(30, 4), torch.arange(30) % 2, Stream(0))
    assert bool(made.score(nn.Identity(), torch.zeros(1, 5, 4), fitted).isfinite().all())


class Table(nn.Module):
    """A decoder whose logits are a linear map, so that superpositions can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 1.0]])

    def forward(self, heard: Tensor) -> Tensor:
        return heard @ self.weight


def test_strip_is_the_mean_entropy_of_superpositions() -> None:
    """Gao et al., equation 4, in bits, by NumPy, one superposition after another."""
    clean, asked = receptions(50, 2), receptions(12, 2, seed=1).view(3, 4, 2)
    made = defense("strip", overlays=5)
    fitted = made.fit(Table(), clean, None, Stream(4))
    overlays = fitted["overlays"].numpy()
    assert len(overlays) == 5
    assert all((clean.numpy() == one).all(1).any() for one in overlays)
    expected = np.zeros((3, 4))
    for place in np.ndindex(3, 4):
        entropies = []
        for overlay in overlays:
            logits = (asked.numpy()[place] + overlay) / np.sqrt(2) @ Table().weight.numpy()
            chances = np.exp(logits) / np.exp(logits).sum()
            entropies.append(stats.entropy(chances, base=2))
        expected[place] = np.mean(entropies)
    np.testing.assert_allclose(made.score(Table(), asked, fitted).numpy(), -expected, rtol=1e-4, atol=1e-5)
    high = defense("strip", overlays=5, flags="high")
    np.testing.assert_allclose(high.score(Table(), asked, fitted).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_strip_tells_a_decision_that_nothing_changes() -> None:
    """What outweighs every overlay is a trigger; a fair coin has one bit."""
    made = defense("strip", overlays=8)
    fitted = made.fit(Table(), receptions(50, 2), None, Stream(0))
    trigger, usual = torch.tensor([[[200.0, 0.0]]]), torch.zeros(1, 1, 2)
    low, high = (-made.score(Table(), one, fitted).item() for one in (trigger, usual))
    assert low == pytest.approx(0, abs=1e-4)
    assert 0.2 < high < np.log2(3)


def test_confidence_is_the_largest_probability() -> None:
    asked = receptions(20, 2).view(4, 5, 2)
    logits = asked.numpy() @ Table().weight.numpy()
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = defense("max_softmax").score(Table(), asked, {})
    np.testing.assert_allclose(np.exp(-got.numpy()), chances.max(-1), rtol=1e-5)


def test_the_energy_of_clean_receptions_follows_the_noncentral_chi_square_law() -> None:
    """Urkowitz: SNR ||y||^2 ~ chi2'(nc, nc SNR) for ||x||^2 = nc; the threshold is its quantile, and a Gaussian jammer
    of PSR r is detected as often as (1 + r SNR) chi2'(nc, nc SNR / (1 + r SNR)) says."""
    data = {"kind": "digits", "train_images": 60, "test_images": 300, "reserve": 900}
    link = fresh_link({"kind": "awgn"}, data=data)
    made = defense("energy_detector", false_alarm=0.1)
    watched = defended(changed(link, evaluation={"draws": {"score": 8}, "samples": 0}), made)
    scorer = Scorer(watched, Air(watched))
    snr_db, listener = 4.0, link.listeners[0]
    snr, uses = from_db(snr_db), 8
    law = stats.ncx2(uses, uses * snr)
    energies = torch.cat([made.score(listener.decoder, heard.inputs, {}).flatten()
                          for _, heard in scorer.receptions.heard([listener], [snr_db], {})])  # fmt: skip
    assert len(energies) == 2400
    assert stats.kstest(snr * energies.double().numpy(), law.cdf).pvalue > 1e-3
    assert scorer.alarms is not None
    alarm = scorer.alarms.alarm(listener, snr_db)
    assert alarm is not None
    # 1,800 scores set it: three standard errors of a share of 0.1 are 0.021.
    assert law.sf(snr * alarm.threshold) == pytest.approx(0.1, abs=0.021)
    r = 0.3
    jam = {"air": r**0.5 * torch.randn(300, uses, generator=torch.Generator().manual_seed(0))}
    flagged = []
    for delta in ({}, jam):
        metrics = scorer.score([listener], [snr_db], delta)[0].popitem()[1]
        one = tally(metrics, "flagged")
        flagged.append(one.numerator.sum() / one.denominator.sum())
    louder = 1 + r * snr
    expected = [law.sf(snr * alarm.threshold), stats.ncx2(uses, uses * snr / louder).sf(snr * alarm.threshold / louder)]
    np.testing.assert_allclose(flagged, expected, atol=0.05)
    assert flagged[1] > 2 * flagged[0]


# -------------------------------------------------------------------------------------------------- thresholds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TrainedLink:
    """A classifier over AWGN, trained for a few seconds, with a reserve."""
    folder = tmp_path_factory.mktemp("tiny")
    tree = {
        **SHARED_LINK,
        "data": {"kind": "digits", "train_images": 500, "test_images": 80, "reserve": 300},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
        "federation": {"kind": "none", "rounds": 8},
    }
    plan = resolve(check_scenario(tree))
    job = Job(scenario_text(plan.scenario), 0, folder)
    with federated([job], plan.scenario.compute, folder / "run.log", lambda number, done: None):
        pass
    return assemble(plan, 0, job.state())


def alarm_of(link: TrainedLink, made: Detector, snr_db: float = 10.0) -> Alarm:
    alarm = Alarms(link, made, reserve_of(link)).alarm(link.listeners[0], snr_db)
    assert alarm is not None
    return alarm


@pytest.mark.parametrize("name", ALL)
def test_clean_receptions_of_unseen_images_are_flagged_as_often_as_promised(tiny: TrainedLink, name: str) -> None:
    """150 images set the threshold and 80 test it; receptions of one image go together, so that images count: three
    standard errors of a share of 0.1 over 80 and over 150."""
    link = defended(tiny, defense(name, false_alarm=0.1))
    metrics = Scorer(link, Air(link)).score(link.listeners, [10.0], {})[0].popitem()[1]
    flagged = tally(metrics, "flagged")
    share = flagged.numerator.sum() / flagged.denominator.sum()
    assert share == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 80 + 0.09 / 150))
    assert share > 0


def test_no_test_image_takes_part_in_a_threshold(tiny: TrainedLink) -> None:
    made = defense("symbol_anomaly")
    one = alarm_of(tiny, made)
    black = replace(tiny, examples=replace(tiny.examples, images=torch.zeros_like(tiny.images)))
    other = alarm_of(black, made)
    assert (one.threshold, one.spread) == (other.threshold, other.spread)
    assert all(torch.equal(value, other.fitted[name]) for name, value in one.fitted.items())


def test_what_a_detector_learns_and_what_sets_its_threshold_are_different_images(tiny: TrainedLink) -> None:
    seen: list[Receptions] = Alarms(tiny, defense("symbol_anomaly"), reserve_of(tiny))._receptions
    fitted, setting = ({image.tobytes() for image in one.link.images.numpy()} for one in seen)
    assert not fitted & setting
    assert len(fitted) > 140 < len(setting)


def test_each_snr_has_a_threshold_of_its_own(tiny: TrainedLink) -> None:
    alarms = Alarms(tiny, defense("energy_detector"), reserve_of(tiny))
    low, high = (alarms.alarm(tiny.listeners[0], snr_db) for snr_db in (0.0, 20.0))
    assert low is not None
    assert high is not None
    assert low.threshold > high.threshold
    assert alarms.alarm(tiny.listeners[0], 0.0) is low


def test_what_is_no_number_is_flagged() -> None:
    listener = fresh_link({"kind": "awgn"}).listeners[0]
    alarm = Alarm(defense("energy_detector"), listener, {}, 1.0, 1.0)
    heard = torch.tensor([[[0.5, 0.5], [torch.nan, 0.0], [torch.inf, 0.0], [1.0, 1.0]]])
    assert alarm.flags(heard).tolist() == [[False, True, True, True]]
    assert alarm.excess(heard)[0, [0, 3]].tolist() == [0.0, 1.0]


def test_a_confidence_watches_decisions_alone() -> None:
    data = {"kind": "digits", "train_images": 60, "test_images": 6, "reserve": 40}
    link = fresh_link({"kind": "awgn"}, task="reconstruction", data=data)
    for name in ALL:
        watched = defended(link, defense(name))
        metrics = Scorer(watched, Air(watched)).score(watched.listeners, [10.0], {})[0].popitem()[1]
        assert ("flagged" in metrics) == (not watched.detector.needs_decisions)  # type: ignore[union-attr]
        assert "undetected_error" not in metrics


def test_what_passes_and_what_does_not_are_all_there_is(tiny: TrainedLink) -> None:
    link = defended(tiny, defense("max_softmax", false_alarm=0.3))
    found = Scorer(link, Air(link)).score(link.listeners, [3.0], {})[0].popitem()[1]
    flagged, right, passed, missed, both = (
        tally(found, name) for name in ("flagged", "accuracy", "accuracy_passed", "undetected_error", "passed_right")
    )
    np.testing.assert_array_equal(flagged.numerator + missed.numerator + both.numerator, flagged.denominator)
    np.testing.assert_array_equal(flagged.numerator + passed.denominator, right.denominator)
    np.testing.assert_array_equal(passed.denominator - passed.numerator, missed.numerator)
    assert (passed.numerator <= right.numerator).all()
    # Decisions of more confidence are better ones: what the control is for.
    shares = (one.numerator.sum() / one.denominator.sum() for one in (passed, right))
    assert next(shares) > next(shares)


# --------------------------------------------------------------------------------------------- who knows of them

SMALL = {"steps": 10, "restarts": 1, "classes": 1, "other_steps": 10, "universal_steps": 5, "judged_by": 64, "draws": 4}


def attacked(
    link: TrainedLink, made: Detector, kind: str, psr_db: float, **options: Any
) -> tuple[dict[str, float], Perturbation]:
    """Metrics under an attack that knows the detector, or does not, over draws that it has not seen."""
    watched = defended(link, made)
    scorer = Scorer(watched, Air(watched))
    attack = evasion(kind, **options)
    alarms = scorer.alarms if attack.knowledge.defense == "adaptive" else None
    problem = LinkProblem(link, scorer.receptions.air, attack, 10.0, 10.0, alarms=alarms)
    problem.psr = from_db(psr_db)
    delta = attack.perturb(problem, Stream(0))
    metrics = scorer.score(watched.listeners, [10.0], problem.shaped(delta))[0].popitem()[1]
    found = {name: tally(metrics, name) for name in ("accuracy", "flagged", "undetected_error")}
    return {name: one.numerator.sum() / one.denominator.sum() for name, one in found.items()}, delta


@pytest.mark.parametrize(("name", "site", "psr_db"), [("symbol_anomaly", "input", -16), ("energy_detector", "air", -3)])
def test_standard_that_knows_a_detector_is_no_weaker_than_one_that_does_not(
    tiny: TrainedLink, name: str, site: str, psr_db: float
) -> None:
    made = defense(name, false_alarm=0.1)
    found = {
        level: attacked(head(tiny, 50), made, "standard", psr_db, sites=[site], knowledge={"defense": level}, **SMALL)[
            0
        ]
        for level in ("exact", "adaptive")
    }
    exact, adaptive = found["exact"], found["adaptive"]
    assert adaptive["undetected_error"] >= exact["undetected_error"] - 0.01
    assert adaptive["undetected_error"] > exact["undetected_error"] + 0.05
    assert adaptive["flagged"] < exact["flagged"]


def test_the_more_an_attack_minds_the_less_it_is_flagged(tiny: TrainedLink) -> None:
    flagged, excess = [], []
    for penalty in (0.0, 1.0, 100.0):
        made = defense("symbol_anomaly", false_alarm=0.1, penalty=penalty)
        found, delta = attacked(tiny, made, "pgd", -14, steps=8, knowledge={"defense": "adaptive"})
        if penalty == 0:
            _, careless = attacked(tiny, made, "pgd", -14, steps=8)
            assert torch.equal(delta["input"], careless["input"])
        flagged.append(found["flagged"])
        heard = Receptions(tiny, Air(tiny)).heard(list(tiny.listeners), [10.0], delta)
        excess.append(float(torch.cat([alarm_of(tiny, made).excess(one.inputs) for _, one in heard], -1).mean()))
    # What it minds is how far it is above the threshold. How many receptions a penalty of 1 brings below it depends on
    # the link, and that on the processor.
    assert excess[0] > 1.05 * excess[1] > 1.05 * excess[2]
    assert flagged[0] > flagged[2] + 0.03
    assert max(np.diff(flagged)) < 0.02


@pytest.mark.parametrize("targeted", [{}, {"label": 3}])
def test_what_is_flagged_has_not_failed(tiny: TrainedLink, targeted: dict[str, int]) -> None:
    made = evasion("pgd", targeted=targeted)
    nothing = {"input": torch.zeros_like(tiny.images)}
    alarms = Alarms(tiny, defense("energy_detector"), reserve_of(tiny))
    listener = tiny.listeners[0]
    alarm = alarms.alarm(listener, 10.0)
    assert alarm is not None
    problem = LinkProblem(tiny, Air(tiny), made, 10.0, 10.0, alarms=alarms)
    before = problem.failures(nothing, -1, 16)
    alarms._set[listener.name, 10.0] = replace(alarm, threshold=-1.0)
    every = problem.failures(nothing, -1, 16)
    assert every.tolist() == [-1.0 if targeted else 0.0] * 80
    alarms._set[listener.name, 10.0] = replace(alarm, threshold=np.inf)
    none = problem.failures(nothing, -1, 16)
    free = LinkProblem(tiny, Air(tiny), made, 10.0, 10.0).failures(nothing, -1, 16)
    assert torch.equal(none, free)
    assert bool(((every <= before) & (before <= free)).all())


def test_losses_mind_the_alarm_by_its_weight(tiny: TrainedLink) -> None:
    """The objective, log-mean, DLR and margins all fall by penalty (s - threshold)+ / sigma, averaged over draws."""
    made = evasion("pgd")
    alarms = Alarms(tiny, defense("symbol_anomaly", penalty=0.7, false_alarm=0.9), reserve_of(tiny))
    problem = LinkProblem(tiny, Air(tiny), made, 10.0, 10.0, alarms=alarms)
    delta = {"input": 0.3 * torch.rand(tiny.images.shape, generator=torch.Generator().manual_seed(0))}
    listener = tiny.listeners[0]
    alarm = alarms.alarm(listener, 10.0)
    assert alarm is not None
    y = tiny.transmitter.send(tiny.images + delta["input"]).x
    draws = Air(tiny).attack(listener, 5, 4)
    heard = tiny.plan.channel(listener.branch).apply(y, draws, 10.0, "real")
    score = alarm.detector.score(listener.decoder, heard, alarm.fitted).numpy()
    cost = 0.7 * np.maximum(0, (score - alarm.threshold) / alarm.spread).mean(0)
    assert cost.mean() > 0.5
    for loss in (objective, log_mean, difference_of_logits_ratio, margin_to(torch.zeros(80, dtype=torch.long))):
        less = measure(problem.avoiding(0), delta, 5, loss) - measure(problem, delta, 5, loss)
        np.testing.assert_allclose(less.numpy(), cost, rtol=1e-3, atol=1e-3)


def test_every_detector_says_where_it_is_from_and_how_it_is_attacked(tmp_path: Path) -> None:
    assert {"energy_detector", "max_softmax", "strip", "symbol_anomaly"} <= set(ALL)
    for name in ALL:
        made = defense(name)
        doc = type(made).__doc__ or ""
        assert "20" in doc or "19" in doc
        assert made.adaptive() == {"kind": "standard", "knowledge": {"defense": "adaptive"}}
