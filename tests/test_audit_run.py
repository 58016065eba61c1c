"""The audit of a whole run: its records, what it attacks, what it writes, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import fedsem
from fedsem import registry
from fedsem.audit import audit, targets_of
from fedsem.auditing.finding import beaten, difference
from fedsem.auditing.records import RECORDS, Record
from fedsem.auditing.subject import Effort
from fedsem.catalogue import ROOT
from fedsem.checks import resolve
from fedsem.cli import app
from fedsem.data.dataset import Split
from fedsem.errors import OutputError
from fedsem.federation.state import FederationState
from fedsem.hooks.budget import ascent, radius
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.plan import Plan
from fedsem.reporting import table
from fedsem.reporting.findings import FILE, Finding, counts, digest, read_findings, write_findings
from fedsem.reporting.results import Results
from fedsem.scenario import check_scenario
from fedsem.streams import Stream

SCENARIO: dict[str, Any] = {
    "schema": 1,
    "name": "audited",
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 60, "test_images": 20, "reserve": 40},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
    "receivers": {"all": {"count": 4, "tasks": ["label", "picture"], "channel": "down"}},
    "train": {"batch": 16, "snr_db": 10},
    "federation": {"rounds": 2, "aggregator": {"kind": "median"}},
    "attacks": {
        "flip": {"kind": "sign_flip", "fraction": 0.25},
        "steps": {"kind": "pgd", "steps": 2},
        "knowing": {"kind": "pgd", "steps": 2, "objective": {"label": 1}, "knowledge": {"defense": "adaptive"}},
        "loud": {"kind": "jamming"},
        "once": {"kind": "fgsm", "norm": "linf", "objective": {"label": 1}},
        "asks": {"kind": "square", "queries": 5000, "objective": {"label": 1}},
        "all": {"kind": "universal", "steps": 5000, "objective": {"label": 1}},
        "runs": {"kind": "apgd", "steps": 1, "restarts": 3, "norm": "linf", "objective": {"label": 1}},
        "worst": {"kind": "standard", "steps": 2, "restarts": 2, "objective": {"label": 1}},
        "blind": {"kind": "pgd", "objective": {"label": 1}, "knowledge": {"defense": "none"}},
    },
    "defenses": {
        "squeeze": {"kind": "feature_squeezing"},
        "watch": {"kind": "symbol_anomaly"},
        "ballot": {"kind": "reception_vote", "n": 20, "n0": 2},
    },
    "evaluation": {
        "draws": {"attack": 2, "score": 4},
        "samples": 0,
        "baselines": False,
        "grids": [
            {"attacks": ["none", "steps"], "snr_db": [10], "psr_db": [-20]},
            {"attacks": ["knowing"], "defenses": ["watch"], "tasks": ["label"], "snr_db": [10], "psr_db": [-20]},
            {"attacks": ["blind"], "defenses": ["squeeze"], "tasks": ["label"], "snr_db": [10], "psr_db": [-20]},
        ],
    },
}
PLACE = {"stage": "evaluate", "round": 2, "receiver": "all", "task": "label", "snr_db": 10.0, "defense": "none"}
STEPS: dict[str, Any] = {
    "attack": "steps",
    "norm": "l2",
    "sites": "input",
    "psr_db": -20.0,
    "attack_params": {"kind": "pgd"},
}


def row(metric: str, value: float, low: float | None = None, high: float | None = None, **columns: Any) -> Any:
    ends = {"ci_low": value if low is None else low, "ci_high": value if high is None else high}
    return {**PLACE, "seed": 0, "cell": "", "metric": metric, "value": value, **ends, "n": 20, **columns}


def plan_of(**changes: Any) -> Plan:
    return resolve(check_scenario({**SCENARIO, **changes}))


def record(*rows: Any, plan: Plan | None = None, round_number: int = 2) -> Record:
    whole = table.frame(rows)
    return Record(plan or plan_of(), 0, FederationState(round_number, {}, {}), whole, whole)


def said(name: str, of: Record) -> tuple[str, str]:
    (finding,) = [one for one in RECORDS.examine(of) if one.check == name]
    return finding.verdict, finding.evidence


def test_only_the_last_round_is_reported() -> None:
    assert said("last_round", record(row("accuracy", 0.9)))[0] == "passed"
    assert said("last_round", record(row("accuracy", 0.9, round=1)))[0] == "failed"
    assert said("last_round", record(row("accuracy", 0.9), round_number=1))[0] == "failed"
    assert said("last_round", record(row("accuracy", 0.9, stage="federate")))[0] == "not applicable"


def test_no_test_image_is_known_before() -> None:
    plan = plan_of()
    data = plan.dataset
    assert data.reserve is not None

    def among(train: int, reserve: int) -> Plan:
        """With so many test images among the training images and in the reserve."""

        def mixed(split: Split, count: int) -> Split:
            return Split(
                np.concatenate([split.images, data.test.images[:count]]),
                np.append(split.labels, data.test.labels[:count]),
            )

        assert data.reserve is not None
        return replace(
            plan, dataset=replace(data, train=mixed(data.train, train), reserve=mixed(data.reserve, reserve))
        )

    clean = record(row("accuracy", 0.9), plan=plan)
    assert said("disjoint", clean) == (
        "passed",
        "Of 20 test images 0 are among 60 training images and 0 among 40 of the reserve.",
    )
    assert said("disjoint", replace(clean, plan=among(0, 1)))[0] == "failed"
    assert said("disjoint", replace(clean, plan=among(1, 0)))[0] == "failed"
    images, labels = np.repeat(data.test.images, 6, axis=0), np.repeat(data.test.labels, 6)
    images = (
        (images.astype(int) + np.arange(6).repeat(1)[np.arange(120) % 6, None, None, None])
        .clip(0, 255)
        .astype(np.uint8)
    )
    many = replace(plan.dataset, test=Split(images, labels), train=Split(images[:1], labels[:1]))
    assert said("disjoint", replace(clean, plan=replace(plan, dataset=many)))[0] == "suspicious"


def test_poison_was_there() -> None:
    poisoned = plan_of(use={"attacks": ["flip"]})

    def present(value: float, assumed: int | None) -> Any:
        return row("malicious_updates", value, stage="federate", f_assumed=assumed)

    assert said("poison_present", record(present(1, 1)))[0] == "not applicable"
    verdict, evidence = said("poison_present", record(present(1, 1), plan=poisoned))
    assert (verdict, evidence) == ("passed", "1 of 2 rounds hold malicious updates, up to 1 of one group.")
    assert said("poison_present", record(present(1, None), plan=poisoned))[0] == "passed"
    assert said("poison_present", record(present(2, 1), plan=poisoned))[0] == "suspicious"
    assert said("poison_present", record(row("accuracy", 0.9), plan=poisoned))[0] == "failed"
    assert said("poison_present", record(present(0, 1), plan=poisoned))[0] == "failed"


def test_no_attack_exceeds_its_budget() -> None:
    assert said("achieved_psr", record(row("accuracy", 0.5, **STEPS, psr_achieved_db=-20.1)))[0] == "passed"
    assert said("achieved_psr", record(row("accuracy", 0.5, **STEPS, psr_achieved_db=-19.9)))[0] == "failed"
    assert said("achieved_psr", record(row("accuracy", 0.9)))[0] == "not applicable"


def test_no_image_exceeds_its_own_budget() -> None:
    within = row("accuracy", 0.5, **STEPS, psr_achieved_db=-20.1)
    for share, verdict in ((0.0, "passed"), (0.25, "failed")):
        over = row("over_budget", share, **STEPS, psr_achieved_db=-20.1)
        assert said("achieved_psr", record(within, over))[0] == verdict
    told = said("achieved_psr", record(within, over))[1]
    assert told.endswith("25% of the images have more than their own under 'steps' at PSR -20 dB.")


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (-0.3, -0.4, -0.2, "passed"),
        (0.008, -0.01, 0.03, "passed"),
        (0.008, 0.005, 0.011, "passed"),
        (0.01, 0.009, 0.011, "passed"),
        (0.016, 0.002, 0.034, "suspicious"),
        (0.03, -0.01, 0.07, "suspicious"),
        (0.06, 0.02, 0.1, "failed"),
    ],
)
def test_what_should_do_no_more_harm_is_judged_by_its_interval(
    value: float, low: float, high: float, verdict: str
) -> None:
    assert beaten((value, low, high)) == verdict
    found = record(row("accuracy_vs_noise", value, low, high, **STEPS))
    assert said("noise_of_equal_power", found)[0] == verdict
    # Whatever else there is: the surest of those that fail, or else the largest.
    others = row("accuracy_vs_noise", -0.1, -0.2, 0.0, **STEPS), row("accuracy_vs_noise", 0.005, 0.004, 0.006, **STEPS)
    assert (
        said("noise_of_equal_power", record(*others, row("accuracy_vs_noise", value, low, high, **STEPS)))[0] == verdict
    )
    blind = record(row("accuracy_vs_noise", value, low, high, **{**STEPS, "norm": None}))
    assert said("noise_of_equal_power", blind)[0] == "not applicable"


def test_the_undefended_link_falls() -> None:
    def fall(value: float, high: float, **columns: Any) -> Any:
        return row("accuracy_change", value, value - 0.1, high, **{**STEPS, **columns})

    assert said("undefended_falls", record(fall(-0.5, -0.4)))[0] == "passed"
    assert said("undefended_falls", record(fall(-0.05, -0.01)))[0] == "suspicious"
    assert said("undefended_falls", record(fall(-0.2, 0.01)))[0] == "suspicious"
    assert said("undefended_falls", record(fall(-0.5, -0.4, defense="hard")))[0] == "not applicable"
    assert said("undefended_falls", record(row("accuracy", 0.9)))[0] == "not applicable"
    # The undefended link of another cell is looked at.
    hard, plain = fall(-0.01, 0.0, defense="hard", cell="hard"), fall(-0.5, -0.4, cell="plain")
    both = record(hard, plain)
    own = replace(both, rows=both.table[both.table["cell"] == "hard"])
    assert said("undefended_falls", own)[0] == "passed"


KNOWS = {"attack": "adaptive_steps", "knowledge": "weights: all, defense: adaptive"}


def left(value: float, of: str = "noisy", **columns: Any) -> Any:
    """What PGD leaves of a link with a defense, in an interval of four points."""
    return row("accuracy", value, value - 0.02, value + 0.02, **{**STEPS, "defense": of, **columns})


def test_an_attack_that_knows_a_defense_is_no_weaker_than_one_that_does_not() -> None:
    def judged(*rows: Any) -> tuple[str, str]:
        return said("adaptive_below_fixed", record(*rows))

    assert judged(left(0.5), left(0.4, **KNOWS))[0] == "passed"
    assert judged(left(0.5), left(0.51, **KNOWS))[0] == "passed"
    assert judged(left(0.5), left(0.52, **KNOWS)) == (
        "suspicious",
        "Of noisy 'adaptive (steps) \u221220\u00a0dB', which knows the defense, leaves +0.020 [-0.020, +0.060] more "
        "accuracy than 'steps \u221220\u00a0dB', which does not; no other of 1 is worse.",
    )
    assert judged(left(0.5), left(0.545, **KNOWS))[0] == "suspicious"
    assert judged(left(0.5), left(0.56, **KNOWS))[0] == "failed"
    # The least of either counts, and the worst of all budgets.
    assert judged(left(0.5), left(0.56, **KNOWS), left(0.4, **{**KNOWS, "attack": "other"}))[0] == "passed"
    assert judged(left(0.5), left(0.7, attack="weak"), left(0.6, **KNOWS))[0] == "failed"
    at_ten: dict[str, Any] = {"psr_db": -10.0}
    verdict, evidence = judged(left(0.5), left(0.4, **KNOWS), left(0.2, **at_ten), left(0.23, **at_ten, **KNOWS))
    assert verdict == "suspicious"
    assert evidence.endswith("no other of 2 is worse.")


@pytest.mark.parametrize(
    "other",
    [
        {"psr_db": -10.0},
        {"norm": "linf"},
        {"sites": "air"},
        {"snr_db": 0.0},
        {"seed": 1},
        {"of": "hard"},
        {"task": "other"},
        {"attack": "noise"},
        {"attack_params": {"kind": "universal"}},
        KNOWS,
    ],
)
def test_attacks_are_compared_under_one_threat_alone(other: dict[str, Any]) -> None:
    found = record(left(0.3, **other), left(0.5, **KNOWS))
    assert said("adaptive_below_fixed", found)[0] == "not applicable"


def test_nothing_is_known_of_a_link_without_defense() -> None:
    assert said("adaptive_below_fixed", record(left(0.3, "none"), left(0.5, "none", **KNOWS)))[0] == "not applicable"
    assert said("adaptive_below_fixed", record(left(0.3), left(0.5)))[0] == "not applicable"


def test_attacks_in_training_are_compared_over_the_cells_of_an_ablation() -> None:
    def cell(attack: str, value: float, aggregator: str = "median", share: float = 0.3) -> Any:
        name = f"federation.aggregator={aggregator}; attacks={attack}"
        more = {"aggregator": aggregator, "adversary_fraction": share if attack != "none" else 0.0}
        return row("accuracy", value, value - 0.02, value + 0.02, cell=name, **more)

    def judged(attack: str, *rows: Any) -> str:
        whole = record(cell("none", 0.3), *rows, cell("ipm", 0.2, "fedavg"), cell("alie", 0.1, "krum"))
        own = whole.table[whole.table["cell"] == f"federation.aggregator=median; attacks={attack}"]
        return said("adaptive_below_fixed", replace(whole, rows=own))[0]

    fixed = cell("ipm", 0.5), cell("alie", 0.7)
    assert judged("adaptive", *fixed, cell("adaptive", 0.4)) == "passed"
    assert judged("adaptive", *fixed, cell("adaptive", 0.53)) == "suspicious"
    assert judged("adaptive", *fixed, cell("adaptive", 0.6)) == "failed"
    # It is told once, of the cell of the attack that knows.
    assert judged("ipm", *fixed, cell("adaptive", 0.6)) == "not applicable"
    # Other shares are other threats.
    assert judged("adaptive", *fixed, cell("adaptive", 0.6, share=0.2)) == "not applicable"


def test_a_trigger_is_judged_by_what_it_reaches_and_not_by_images_without_it() -> None:
    def cell(name: str, clean: float, reached: float) -> list[Any]:
        more = {"cell": f"defenses=clusters; attacks={name}", "defense": "clusters", "adversary_fraction": 0.2}
        known = {"knowledge": "defense: adaptive"} if name == "adaptive" else {}
        trigger = {"attack": f"{name}_blend" if known else name, "psr_db": np.nan, "norm": None, **known}
        return [
            row("accuracy", clean, clean - 0.01, clean + 0.01, attack="none", psr_db=np.nan, norm=None, **more),
            row("reached", reached, reached - 0.01, reached + 0.01, **trigger, **more),
        ]

    def judged(*rows: Any) -> str:
        whole = record(*rows)
        own = whole.table[whole.table["cell"] == "defenses=clusters; attacks=adaptive"]
        return said("adaptive_below_fixed", replace(whole, rows=own))[0]

    # It leaves five points more without trigger, and reaches more with it.
    assert judged(*cell("patch", 0.90, 0.7), *cell("adaptive", 0.95, 0.9)) == "passed"
    assert judged(*cell("patch", 0.95, 0.9), *cell("adaptive", 0.90, 0.885)) == "suspicious"
    assert judged(*cell("patch", 0.95, 0.9), *cell("adaptive", 0.90, 0.7)) == "failed"


def test_the_measured_rules_that_are_not_searched_well_are_told() -> None:
    """Ten rules against forged updates that know them: against two a fixed attack does more than greedy searches."""
    whole = table.read(ROOT / "results" / "reference" / "matrix_byzantine")
    cells = [str(cell) for cell in whole["cell"].unique() if str(cell).endswith("attacks=adaptive")]
    (check,) = [one for one in RECORDS.checks if one.name == "adaptive_below_fixed"]
    verdicts = {}
    for cell in cells:
        own = whole[(whole["cell"] == cell) & (whole["seed"] == 0)]
        verdicts[cell.partition(";")[0].removeprefix("rule=")] = check.ask(
            Record(plan_of(), 0, FederationState(2, {}, {}), own, whole)
        )[0]
    told = {rule: verdict for rule, verdict in verdicts.items() if verdict != "passed"}
    assert told == {"geometric_median": "suspicious", "centred_clipping": "failed"}
    assert len(verdicts) == 10


def test_certificates_lie_below_what_attacks_leave() -> None:
    def certified(value: float, metric: str = "accuracy", **columns: Any) -> Any:
        place = {"stage": "certificate", "attack": "none", "norm": "l2", "sites": "input", "psr_db": -20.0}
        return row(f"certified_{metric}", value, value - 0.02, value + 0.02, **{**place, **columns})

    def left(value: float, metric: str = "accuracy", **columns: Any) -> Any:
        return row(metric, value, value - 0.02, value + 0.02, **{**STEPS, **columns})

    def verdict(*rows: Any) -> str:
        return said("certified_below_attacked", record(*rows))[0]

    assert verdict(certified(0.5), left(0.7)) == "passed"
    assert verdict(certified(0.5), left(0.48)) == "suspicious"
    assert verdict(certified(0.5), left(0.4)) == "failed"
    assert verdict(certified(0.5), left(0.7), left(0.4, attack="other")) == "failed"
    # The cube lies inside the ball, the ball not inside the cube.
    assert verdict(certified(0.5), left(0.4, norm="linf")) == "failed"
    assert verdict(certified(0.5, norm="linf"), left(0.4)) == "not applicable"
    # Another classifier, another budget, another site, and what is not covered.
    others: list[dict[str, Any]] = [{"defense": "vote"}, {"psr_db": -10.0}, {"sites": "air"}]
    for other in [*others, *({"attack_params": {"kind": kind}} for kind in ("universal", "patch"))]:
        assert verdict(certified(0.5), left(0.4, **other)) == "not applicable"
    assert verdict(left(0.4)) == "not applicable"
    # Objects; and of an error more is worse.
    assert verdict(certified(0.5, "f1"), left(0.7, "f1"), left(0.3)) == "passed"
    assert verdict(certified(0.5, "f1"), left(0.4, "f1")) == "failed"
    assert verdict(certified(0.5, "mse"), left(0.4, "mse")) == "passed"
    assert verdict(certified(0.5, "mse"), left(0.505, "mse")) == "passed"
    assert verdict(certified(0.010, "mse"), left(0.015, "mse")) == "suspicious"
    failing = record(certified(0.5, "mse"), left(0.7, "mse"), certified(0.51), left(0.5))
    verdict_, evidence = said("certified_below_attacked", failing)[:2]
    assert verdict_ == "failed"
    assert "mse 0.5 is certified" in evidence


def test_differences_are_paired_over_images() -> None:
    """Against SciPy's paired bootstrap."""
    generator = np.random.default_rng(0)
    other = generator.integers(0, 5, 100) / 4
    one = np.clip(other - (generator.random(100) < 0.2) / 4, 0, 1)
    value, low, high = difference(one, other)
    peer = stats.bootstrap((one - other,), np.mean, method="percentile", rng=generator).confidence_interval
    assert value == pytest.approx((one - other).mean())
    assert (low, high) == (pytest.approx(peer.low, abs=5e-3), pytest.approx(peer.high, abs=5e-3))


def test_each_task_and_site_behind_each_defense_is_attacked() -> None:
    def found(*grids: Any) -> set[tuple[str, str, str, str]]:
        evaluation = {**SCENARIO["evaluation"], "grids": list(grids)}
        return {(one.defense, one.task, one.site, one.known) for one in targets_of(plan_of(evaluation=evaluation))}

    calm = {"attacks": ["none"], "snr_db": [10]}
    attacked = {"snr_db": [10], "psr_db": [-20]}
    assert found(calm) == found({"attacks": ["loud", "noise"], **attacked}) == set()
    both = {("none", "label", "input", "exact"), ("none", "picture", "input", "exact")}
    assert found({"attacks": ["steps"], **attacked}) == both
    assert found({"attacks": ["knowing"], "defenses": ["none", "squeeze", "watch"], **attacked}) == {
        ("none", "label", "input", "exact"),
        ("squeeze", "label", "input", "adaptive"),
        ("watch", "label", "input", "adaptive"),
    }
    # A detector that is not worked around changes nothing of what an attack meets.
    assert found({"attacks": ["steps"], "defenses": ["watch"], **attacked}) == both
    ballot = {"attacks": ["steps"], "tasks": ["label"], "defenses": ["ballot"], **attacked}
    assert found(ballot) == {("ballot", "label", "input", "exact"), ("ballot", "picture", "input", "exact")}
    assert found({"attacks": ["blind"], "defenses": ["squeeze"], **attacked}) == {("squeeze", "label", "input", "none")}
    # An attack that knows the defense is the better measure.
    mixed = found({"attacks": ["steps", "knowing"], "defenses": ["squeeze"], **attacked})
    assert mixed == {("squeeze", "label", "input", "adaptive"), ("squeeze", "picture", "input", "exact")}


def test_the_attack_of_most_steps_is_the_one_that_is_repeated() -> None:
    def told(*names: str, defense: str = "none") -> tuple[str, str, bool]:
        grid = {"attacks": list(names), "defenses": [defense], "snr_db": [10], "psr_db": [-20]}
        (target,) = targets_of(plan_of(evaluation={**SCENARIO["evaluation"], "grids": [grid]}))
        return target.attack, target.norm, target.weighs

    assert told("knowing") == told("once", "knowing") == ("knowing", "l2", False)
    assert told("knowing", "runs") == ("runs", "linf", False)
    assert told("once", "asks", "all") == ("once", "linf", False)
    assert told("runs", "worst") == ("worst", "l2", True)
    # What knows less of the defense is not what its figure rests on.
    assert told("runs", "knowing", defense="squeeze") == ("knowing", "l2", False)


FINDINGS = [
    Finding("finite", "passed", "0%.", "Gradients", "a=1", 0, "none", "label at the input"),
    Finding("finite", "passed", "1%.", "Gradients", "a=2", 0, "none", "label at the input"),
    Finding("attached", "suspicious", "Hm <b>.", "Gradients", "a=1", 0, "squeeze_it", "label at the input"),
    Finding("last_round", "failed", "No.", "Records", "", 1),
]


def test_findings_are_kept_and_summed_up(tmp_path: Path) -> None:
    assert read_findings(tmp_path) == []
    write_findings(FINDINGS, tmp_path)
    assert read_findings(tmp_path) == FINDINGS
    assert counts(FINDINGS) == "1 failed, 1 suspicious, 2 passed"
    assert digest(FINDINGS) == [
        ["failed", "last round", "seed 1", "No."],
        ["suspicious", "attached", "a 1, seed 0, behind squeeze it, label at the input", "Hm <b>."],
        ["passed", "finite", "2 links", "0%."],
    ]


@pytest.mark.parametrize(
    "content", ["{", '[{"check": "finite"}]', json.dumps([{**vars(FINDINGS[0]), "verdict": "good"}])]
)
def test_damaged_findings_are_said(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot be read .*; run 'fedsem audit"):
        read_findings(tmp_path)


class Uneven(Evasion):
    """Twice the power on every other row, and none on the others."""

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        delta: Perturbation = {}
        for name in self.sites:
            site = problem.sites[name]
            power = 2 * problem.psr * torch.arange(len(site.clean)).remainder(2)
            delta[name] = ascent(torch.ones_like(site.clean), "l2") * radius(site, power, "l2")
        return delta


def test_a_strangers_attack_that_spends_images_budgets_on_others_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(registry._registry["attack"], "uneven", Uneven)
    monkeypatch.setattr(Uneven, "kind", "uneven", raising=False)
    monkeypatch.setattr(Uneven, "group", "attack", raising=False)
    attacks = {
        "even": {"kind": "pgd", "steps": 1, "sites": ["air"]},
        "uneven": {"kind": "uneven", "sites": ["air"]},
        "knowing": {"kind": "uneven", "sites": ["air"], "knowledge": {"channel": "csi"}},
    }
    grid = {"attacks": ["none", "noise", *attacks], "snr_db": [10], "psr_db": [-20, -10]}
    evaluation = {**SCENARIO["evaluation"], "grids": [grid]}
    found = fedsem.run({**SCENARIO, "seeds": [0, 1], "attacks": attacks, "evaluation": evaluation}, out=tmp_path)
    rows = found.table[found.table["metric"].str.startswith("over_budget")]
    place = rows[["attack", "task", "psr_db", "seed"]].fillna({"seed": -1})
    assert len(rows) == len(place.drop_duplicates()) == 2 * 2 * 2 * 3
    assert set(rows["attack"]) == {"uneven", "knowing"}
    assert set(rows["value"]) == {0.5}
    assert (found.table["psr_achieved_db"] - found.table["psr_db"]).max() < 0.01
    verdicts = {one.verdict for one in read_findings(found.folder) if one.check == "achieved_psr"}
    assert verdicts == {"failed"}


def test_more_liars_than_what_comes_before_a_rule_assumes_are_suspicious(tmp_path: Path) -> None:
    federation = {"rounds": 1, "aggregator": "median", "pre_aggregators": [{"kind": "nnm", "f": 1}]}
    evaluation = {**SCENARIO["evaluation"], "grids": [{"attacks": ["none"], "snr_db": [10]}]}
    changes = {"federation": federation, "evaluation": evaluation, "use": {"attacks": ["flip"]}}
    flip = {"flip": {"kind": "sign_flip", "fraction": 0.5}}
    found = fedsem.run({**SCENARIO, **changes, "attacks": flip}, out=tmp_path)
    assert set(found.table["f_assumed"]) == {1}
    (finding,) = [one for one in read_findings(found.folder) if one.check == "poison_present"]
    assert finding.verdict == "suspicious"
    assert finding.evidence.endswith("up to 2 of one group, and 1 are assumed.")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    sweep = {"use.attacks": [[], ["flip"]]}
    return fedsem.run({**SCENARIO, "sweep": sweep}, out=tmp_path_factory.mktemp("audited"))


@pytest.fixture
def folder(results: Results, tmp_path: Path) -> Path:
    copied = tmp_path / results.folder.name
    shutil.copytree(results.folder, copied)
    return copied


def test_every_run_ends_with_an_audit_of_its_records(results: Results) -> None:
    findings = read_findings(results.folder)
    assert {finding.family for finding in findings} == {"Records"}
    assert len(findings) == 2 * len(RECORDS.checks)
    assert {finding.verdict for finding in findings if finding.check in ("last_round", "disjoint", "achieved_psr")} == {
        "passed"
    }
    (poison,) = [one for one in findings if one.check == "poison_present" and one.cell == 'use.attacks=["flip"]']
    assert (poison.verdict, poison.evidence) == (
        "passed",
        "2 of 2 rounds hold malicious updates, up to 1 of one group.",
    )
    html = (results.folder / "report.html").read_text(encoding="utf-8")
    assert '<section id="audit">' in html
    assert "Only records were looked at" in html


def test_links_are_attacked_anew_and_told_in_the_report(folder: Path) -> None:
    findings = audit(folder, Effort(images=6, draws=2, climbed=1, steps=2, queries=3))
    assert findings == read_findings(folder)
    looked_at = {("none", "label at the input"), ("none", "picture at the input")}
    looked_at |= {("watch", "label at the input, defense: adaptive")}
    looked_at |= {("squeeze", "label at the input, defense: none")}
    assert {(one.defense, one.target, one.cell) for one in findings if one.check == "finite"} == {
        (*place, cell) for place in looked_at for cell in ("use.attacks=[]", 'use.attacks=["flip"]')
    }
    assert {one.verdict for one in findings if one.check == "finite" and one.defense != "squeeze"} == {"passed"}
    assert {one.verdict for one in findings if one.defense == "squeeze"} == {"not applicable"}
    assert {one.verdict for one in findings if one.check == "alarm" and one.defense == "watch"} == {"passed"}
    assert {one.verdict for one in findings if one.check == "alarm" and one.defense == "none"} == {"not applicable"}
    repeated = {one.defense: one.evidence for one in findings if one.check == "more_steps" and "label" in one.target}
    assert "'steps'" in repeated["none"]
    assert "'knowing'" in repeated["watch"]
    assert "No attack of the scenario knows" in repeated["squeeze"]
    (transfer,) = [
        one
        for one in findings
        if one.check == "transfer" and one.cell == "use.attacks=[]" and one.target == "label at the input"
    ]
    assert transfer.verdict == "not applicable" or "link of seed 0" in transfer.evidence
    assert {one.verdict for one in findings if one.check == "unbounded" and "picture" in one.target} == {
        "not applicable"
    }
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Only records were looked at" not in html
    assert "equal to differences" in html
    # What is drawn or finished again keeps what was found.
    Results(folder).report()
    fedsem.run(resume=folder)
    assert read_findings(folder) == findings


def test_the_command_says_what_failed_by_its_exit_code(folder: Path) -> None:
    command = ["audit", str(folder), "--images", "4", "--queries", "2"]
    whole = table.read(folder)
    whole.loc[whole["psr_achieved_db"].notna(), "psr_achieved_db"] = -19.0
    table.write(whole, folder)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    # On a slow machine how far it is stands there, each minute.
    assert all(line.startswith("auditing ") for line in done.stderr.splitlines())
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["failed", "achieved", "psr"] or any("achieved psr" in line for line in lines)
    assert any(line.startswith("failed") and "+1.000 dB beside the budget" in line for line in lines)


def test_an_unfinished_run_is_not_audited(folder: Path, tmp_path: Path) -> None:
    next(folder.glob("checkpoints/*/state.json")).unlink()
    done = CliRunner().invoke(app, ["audit", str(folder)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "is not finished, or another version of fedsem made it" in done.stderr
    with pytest.raises(OutputError, match="is not the folder of a run"):
        audit(tmp_path)


def test_the_page_names_every_check_and_says_something_of_it() -> None:
    """That it is what the checks say now is a test of the catalogue."""
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    for check in RECORDS.checks:
        assert f"### `{check.name}`" in page
        assert len(check.paragraph) > 60
