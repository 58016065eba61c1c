"""The audit: planted gradient masks are caught, each by a check that is right for it; honest links are not flagged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assemble
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.auditing.finding import Family
from fedsem.auditing.gradients import GRADIENTS
from fedsem.auditing.records import RECORDS, Record
from fedsem.auditing.strength import STRENGTH
from fedsem.auditing.subject import Effort, Iterated, LinkSubject
from fedsem.checks import resolve
from fedsem.data.dataset import Split
from fedsem.evaluation.defended import defended
from fedsem.evaluation.flagging import Alarms
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.engine import federated
from fedsem.federation.job import Job
from fedsem.plan import scenario_text
from fedsem.registry import find
from fedsem.scenario import check_scenario

SMALL = Effort(images=40, draws=10, climbed=4, queries=200)
Layer = Callable[[Tensor], Tensor]

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "audited",
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 700, "test_images": 60},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 20}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
    "train": {
        "batch": 32,
        "draws": 4,
        "optimizer": {"kind": "adam", "lr": 2e-3, "schedule": "one_cycle"},
        "snr_db": 10,
    },
    "federation": {"kind": "none", "rounds": 8},
    "defenses": {
        "noisy": {"kind": "noise_augmentation", "psr_db": -10},
        "hard": {"kind": "adversarial_training", "norm": "linf", "psr_db": -15, "steps": 2},
    },
    "evaluation": {"draws": {"attack": 4, "score": 8}, "baselines": False, "samples": 0},
}


def trained(folder: Path, seed: int = 0, **changes: Any) -> TrainedLink:
    plan = resolve(check_scenario({**SCENARIO, **changes}))
    job = Job(scenario_text(plan.scenario), seed, folder)
    with federated([job], plan.scenario.compute, folder / "run.log", lambda number, done: None):
        pass
    return assemble(plan, seed, job.state())


@pytest.fixture(scope="module")
def undefended(tmp_path_factory: pytest.TempPathFactory) -> TrainedLink:
    """Digits over AWGN, trained plainly."""
    return trained(tmp_path_factory.mktemp("undefended"))


@pytest.fixture(scope="module")
def defended_links(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedLink]:
    """The same, trained with noise and adversarially."""
    return {name: trained(tmp_path_factory.mktemp(name), use={"defenses": [name]}) for name in ("noisy", "hard")}


@pytest.fixture(scope="module")
def reserve() -> Split:
    """Images on which detectors set their thresholds."""
    held = resolve(check_scenario({**SCENARIO, "data": {**SCENARIO["data"], "reserve": 200}})).dataset.reserve
    assert held is not None
    return held


def subject(link: TrainedLink, others: Mapping[str, TrainedLink] | None = None, **changes: Any) -> LinkSubject:
    return LinkSubject(link, "label", changes.pop("site", "input"), "l2", 10.0, 10.0, others or {}, SMALL, **changes)


class Masked(nn.Module):
    """A network behind and before other layers."""

    def __init__(self, network: nn.Module, before: Layer, after: Layer) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, signal: Tensor) -> Tensor:
        return self.after(self.network(self.before(signal)))


def same(signal: Tensor) -> Tensor:
    return signal


def masked_image(link: TrainedLink, layer: Layer) -> TrainedLink:
    transmitter = copy.deepcopy(link.transmitter)
    transmitter.encoder = Masked(transmitter.encoder, layer, same)
    return replace(link, transmitter=transmitter)


def masked_decision(link: TrainedLink, layer: Layer) -> TrainedLink:
    listeners = [replace(one, decoder=Masked(one.decoder, same, layer)) for one in link.listeners]
    return replace(link, listeners=tuple(listeners))


def verdict(link: LinkSubject | Record, name: str) -> tuple[str, str]:
    """What one check says."""
    families: tuple[Family[Any], ...] = (RECORDS,) if isinstance(link, Record) else (GRADIENTS, STRENGTH)
    (check,) = [check for family in families for check in family.checks if check.name == name]
    return check.ask(link)


def flagged(judged: LinkSubject) -> dict[str, str]:
    """What does not pass, but for what is asked of detectors alone."""
    return {
        finding.check: f"{finding.verdict}: {finding.evidence}"
        for family in (GRADIENTS, STRENGTH)
        for finding in family.examine(judged)
        if finding.verdict != "passed" and (judged.watched or finding.check not in ("alarm", "weight"))
    }


def test_an_honest_link_is_not_flagged(undefended: TrainedLink) -> None:
    """With its own first neighbour as the source of transferred perturbations."""
    judged = subject(undefended, {"itself": undefended})
    assert flagged(judged) == {}
    assert judged.clean.mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noisy", "hard"])
def test_honest_defenses_are_not_flagged(
    defended_links: dict[str, TrainedLink], undefended: TrainedLink, name: str
) -> None:
    judged = subject(defended_links[name], {"the undefended link": undefended})
    assert flagged(judged) == {}
    assert judged.clean.mean() > 0.9
    assert judged.half_db > subject(undefended).half_db


def one_hot(logits: Tensor) -> Tensor:
    return 10.0 * F.one_hot(logits.argmax(-1), logits.shape[-1])


def rounded(images: Tensor) -> Tensor:
    return (7 * images).round() / 7


def straight_through(images: Tensor) -> Tensor:
    return images + (rounded(images) - images).detach()


def staircase(images: Tensor) -> Tensor:
    """The image but for a ripple of 0.02, whose slope of +-12 hides that of the image."""
    return images + 0.02 * torch.sin(200 * torch.pi * images)


class Unrecorded:
    """Randomness that no channel draw accounts for: images are shifted, or logits disturbed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def shifted(self, images: Tensor) -> Tensor:
        down, across = torch.randint(-2, 3, (2,), generator=self.generator).tolist()
        return images.roll((down, across), (2, 3)) + 0.1 * torch.randn(images.shape, generator=self.generator)

    def undecided(self, logits: Tensor) -> Tensor:
        return logits + 3 * torch.randn(logits.shape, generator=self.generator)


def sigmoids(logits: Tensor) -> Tensor:
    """A chain of sigmoids behind the probabilities: it keeps the decisions, and multiplies slopes by 1e-3 each time."""
    probable = logits.softmax(-1)
    for _ in range(16):
        probable = torch.sigmoid(20 * (probable - 0.5))
    return probable


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is said to be twice what it is."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor) -> Tensor:
        return signal.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def not_a_number(images: Tensor) -> Tensor:
    """The identity: sqrt(0) = 0, but its derivative there is infinite, and 0 times that is NaN."""
    return images + (0 * images).sqrt()


IMAGE_MASKS: dict[str, tuple[Layer, dict[str, str]]] = {
    "rounding without gradient": (rounded, {"non_zero": "failed", "unbounded": "failed"}),
    "straight-through rounding": (straight_through, {"attached": "suspicious", "equal_to_differences": "failed"}),
    "random shifts": (Unrecorded().shifted, {"equal_to_differences": "failed", "frozen_noise": "failed"}),
    "staircase": (staircase, {"transfer": "failed"}),
    "doubled": (Doubled.apply, {"equal_to_differences": "failed"}),
    "NaN": (not_a_number, {"finite": "failed"}),
}
"""What is put before the encoder, and what the audit must say of it."""
DECISION_MASKS: dict[str, tuple[Layer, dict[str, str]]] = {
    "one-hot decisions": (one_hot, {"attached": "failed"}),
    "saturated logits": (
        lambda logits: 1e3 * logits,
        {"non_zero": "failed", "unsaturated": "failed", "unbounded": "failed"},
    ),
    "random decisions": (Unrecorded().undecided, {"equal_to_differences": "failed", "frozen_noise": "failed"}),
    "vanishing sigmoids": (sigmoids, {"non_zero": "failed"}),
}


@pytest.mark.slow
def test_a_black_box_finds_what_a_staircase_hides(undefended: TrainedLink) -> None:
    judged = replace(subject(masked_image(undefended, staircase)), effort=Effort(images=60))
    assert verdict(judged, "square")[0] == "failed"
    assert verdict(replace(subject(undefended), effort=Effort(images=60)), "square")[0] == "passed"


@pytest.mark.parametrize("name", [*IMAGE_MASKS, *DECISION_MASKS])
def test_planted_masks_are_caught(undefended: TrainedLink, name: str) -> None:
    layer, expected = (IMAGE_MASKS | DECISION_MASKS)[name]
    masked = (masked_image if name in IMAGE_MASKS else masked_decision)(undefended, layer)
    judged = subject(masked, {"the link without it": undefended})
    found = {check: verdict(judged, check) for check in expected}
    assert judged.clean.mean() > 0.5
    assert {check: told for check, (told, _) in found.items()} == expected, found


def test_a_defense_is_audited_with_what_the_attack_knows_of_it(undefended: TrainedLink) -> None:
    """Feature squeezing has no gradient: an attack that does not know it cannot be trusted, one by its stand-in can."""
    squeeze: Any = find("defense", "feature_squeezing").model_validate({"bits": 1})
    others = {"the link without it": undefended}
    unknown = subject(defended(undefended, squeeze), others)
    assert verdict(unknown, "non_zero")[0] == "failed"
    assert verdict(unknown, "unbounded")[0] == "failed"
    known = subject(defended(undefended, squeeze, known=True), others, declared=True)
    assert known.clean == pytest.approx(unknown.clean)
    told = {name: verdict(known, name)[0] for name in ("attached", "non_zero", "unbounded", "frozen_noise", "transfer")}
    assert set(told.values()) == {"passed"}, told
    assert verdict(known, "equal_to_differences")[0] == "not applicable"


@pytest.mark.parametrize("confidence", [0.0, 0.02])
def test_a_link_near_chance_says_nothing(undefended: TrainedLink, confidence: float) -> None:
    """A receiver who says nearly always the same has nowhere to fall."""
    always = F.one_hot(torch.tensor(0), 10)
    judged = subject(masked_decision(undefended, lambda logits: confidence * logits + always))
    assert judged.clean.mean() < 2 * judged.chance
    for name in ("unbounded", "frozen_noise"):
        told, evidence = verdict(judged, name)
        assert told == "not applicable"
        assert evidence.endswith("less than twice chance (0.100): a fall says nothing.")


def anomalies() -> Any:
    """A detector whose score has a gradient everywhere."""
    return find("defense", "symbol_anomaly").model_validate({})


def watched(link: TrainedLink, detector: Any, reserve: Split, **changes: Any) -> LinkSubject:
    behind = defended(link, detector)
    return subject(behind, {"the link without it": link}, alarms=Alarms(behind, detector, reserve), **changes)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (lambda score: score, "passed"),
        (lambda score: score.detach(), "failed"),
        (lambda score: score.round(), "failed"),
        (lambda score: score + (score.round() - score).detach(), "failed"),
        (lambda score: score + (0 * score).sqrt(), "failed"),
    ],
    ids=["honest", "detached", "rounded", "straight-through", "NaN"],
)
def test_planted_masks_of_an_alarm_are_caught(
    undefended: TrainedLink, reserve: Split, mask: Layer, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = anomalies()
    score = type(detector).score
    judged = watched(undefended, detector, reserve)
    monkeypatch.setattr(type(detector), "score", lambda *given: mask(score(*given)))
    told, evidence = verdict(judged, "alarm")
    assert told == expected, evidence
    # What the link itself says is not touched by it.
    assert verdict(judged, "non_zero")[0] == "passed"


def test_what_no_attack_works_around_has_no_alarm(undefended: TrainedLink) -> None:
    assert verdict(subject(undefended), "alarm")[0] == "not applicable"
    assert verdict(subject(undefended), "weight")[0] == "not applicable"


def test_an_attack_that_minds_being_flagged_too_much_is_caught(undefended: TrainedLink, reserve: Split) -> None:
    """Wrong decisions of little confidence are flagged: who shuns that from the start never gets across the border."""
    confidence: Any = find("defense", "max_softmax").model_validate({"penalty": 10.0})
    judged = watched(undefended, confidence, reserve)
    assert verdict(judged, "weight")[0] == "failed"
    assert verdict(judged, "unbounded")[0] == "passed"
    several = replace(judged, weighs=True)
    assert {verdict(several, name)[0] for name in ("weight", "more_steps", "more_restarts")} == {"not applicable"}


def test_a_vote_is_judged_by_what_it_decides(undefended: TrainedLink) -> None:
    """At 0 dB single receptions err; a vote of many is right more often, and what an attack takes from it is found all
    the same. What masks the decoder masks the vote."""
    vote: Any = find("defense", "reception_vote").model_validate({"n": 100, "n0": 10})
    single = replace(subject(undefended), snr_db=0.0)
    voted = replace(subject(defended(undefended, vote)), snr_db=0.0)
    assert set(voted.clean) <= {0.0, 1.0}
    assert voted.clean.mean() > single.clean.mean()
    told = {name: verdict(voted, name)[0] for name in ("attached", "non_zero", "unbounded", "noise", "last_iterate")}
    assert set(told.values()) == {"passed"}, told
    masked = subject(defended(masked_decision(undefended, lambda logits: 1e3 * logits), vote))
    assert verdict(masked, "unbounded")[0] == "failed"


def own(link: TrainedLink, kind: str, **options: Any) -> LinkSubject:
    """With an attack of the scenario, which is repeated in place of PGD."""
    judged = subject(link)
    return replace(judged, own=Iterated("'mine'", judged.attack(kind, **options)))


def test_an_attack_of_the_scenario_that_stops_too_early_is_caught(undefended: TrainedLink) -> None:
    """Eight steps of a twelfth of the radius do not reach its surface, sixteen do. Forty of PGD's own length have
    settled."""
    told, evidence = verdict(own(undefended, "pgd", steps=8, step_size=0.08), "more_steps")
    assert told == "failed", evidence
    assert "16 steps of 'mine' take" in evidence
    told, evidence = verdict(own(undefended, "pgd", steps=40), "more_steps")
    assert told == "passed", evidence


def test_long_attacks_are_repeated_on_fewer_images(undefended: TrainedLink) -> None:
    def images(**options: int) -> int:
        whole = replace(own(undefended, "apgd", **options), effort=Effort())
        return whole.repeated.effort.images

    assert images(steps=40) == 100
    assert images(steps=50) == 80
    assert images(steps=50, restarts=4) == 50
