"""A trained link behind defenses: what is paired with what, who knows what, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_LINK, fresh_link, tally
from torch import Tensor

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import TRANSFORMS, Air
from fedsem.evaluation.defended import defended
from fedsem.evaluation.evaluate import Measurement, evaluate
from fedsem.evaluation.point import Point, Tally, load_points, save_points
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.reception import Receptions
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.evasion import Evasion, Perturbation, Problem
from fedsem.registry import find
from fedsem.scenario import check_scenario, dump_scenario
from fedsem.stages import plans_of, prepare
from fedsem.store import Store
from fedsem.streams import Stream
from fedsem.units import from_db

DATA = {"kind": "digits", "train_images": 60, "test_images": 10, "reserve": 40}
AWGN = {"kind": "awgn"}
RADAR = {"kind": "sensing", "geometry": "bistatic", "fading": "rayleigh"}
DEFENSES = {
    "squeeze": {"kind": "feature_squeezing", "bits": 2},
    "pad": {"kind": "random_resize_pad", "smallest": 0.6},
    "clip": {"kind": "symbol_clipping", "level": 0.7},
    "watch": {"kind": "symbol_anomaly"},
}
PGD = {"kind": "pgd", "steps": 2}
ATTACKS = {
    "exact": PGD,
    "blind": {**PGD, "knowledge": {"defense": "none"}},
    "aware": {**PGD, "knowledge": {"defense": "adaptive"}},
    "airy": {**PGD, "sites": ["air"], "knowledge": {"defense": "adaptive"}},
}


def nobody(done: int, total: int) -> None:
    pass


def link_of(channel: Mapping[str, Any] = AWGN, task: str = "classification", seed: int = 0, **changes: Any) -> Any:
    keys: dict[str, Any] = {
        "data": DATA,
        "defenses": DEFENSES,
        "attacks": ATTACKS,
        "evaluation": {"draws": {"attack": 3, "score": 5}, "baselines": False, "samples": 2},
    }
    return fresh_link(channel, task=task, seed=seed, **{**keys, **changes})


def over(link: TrainedLink, grid: Mapping[str, Any] | None, **evaluation: Any) -> TrainedLink:
    """The same link with one grid and other keys under `evaluation`."""
    tree = dump_scenario(link.plan.scenario)
    grids = [] if grid is None else [{"snr_db": [10], **grid}]
    tree["evaluation"] = {**tree["evaluation"], "grids": grids, **evaluation}
    return replace(link, plan=replace(link.plan, scenario=check_scenario(tree)))


def evasion(kind: str = "pgd", **options: Any) -> Evasion:
    made = find("attack", kind).model_validate(options)
    assert isinstance(made, Evasion)
    return made


def behind(link: TrainedLink, name: str, known: bool = False) -> TrainedLink:
    return defended(link, link.plan.scenario.defenses[name], known)


def alike(one: Point, other: Point) -> bool:
    if one.columns != other.columns or one.metrics.keys() != other.metrics.keys():
        return False
    return all(
        np.array_equal(tally(one.metrics, name).numerator, tally(other.metrics, name).numerator)
        and np.array_equal(tally(one.metrics, name).denominator, tally(other.metrics, name).denominator)
        for name in one.metrics
    )


def value(point: Point, name: str) -> float:
    found = tally(point.metrics, name)
    return float(found.numerator.sum() / found.denominator.sum())


# ------------------------------------------------------------------------------------------------- what is paired


@pytest.mark.parametrize(("channel", "task"), [(AWGN, "classification"), (RADAR, "sensing")])
def test_rows_without_a_defense_are_those_of_a_run_that_knows_none(channel: Mapping[str, Any], task: str) -> None:
    link = link_of(channel, task)
    attacks = ["none", "noise", *ATTACKS]
    plain = evaluate(over(link, {"attacks": attacks, "psr_db": [-5]}), nobody)
    named = ["watch", "none", "pad", "squeeze", "clip"]
    whole = evaluate(over(link, {"attacks": attacks, "psr_db": [-5], "defenses": named}), nobody)
    there = [point for point in whole.points if "defense" not in point.columns]
    assert len(there) == len(plain.points) > 5
    for one, other in zip(plain.points, there, strict=True):
        # What an attack knows of a defense is told only of rows that have one.
        assert alike(one, other)
    assert {point.columns["defense"] for point in whole.points if "defense" in point.columns} == set(DEFENSES)
    assert len(whole.points) == 5 * len(plain.points)


def test_every_defended_point_stands_beside_the_same_point_without(tmp_path: Path) -> None:
    grid = {"attacks": ["none", "noise", "exact", "blind"], "psr_db": [-20, -5], "defenses": ["none", "pad", "watch"]}
    points = evaluate(over(link_of(), grid), nobody).points
    save_points(points, tmp_path)
    assert [point.undefended for point in load_points(tmp_path)] == [point.undefended for point in points]
    for point in points:
        if "defense" not in point.columns:
            assert point.undefended is None
            continue
        assert point.undefended is not None
        other = points[point.undefended]
        same = ("attack", "psr_db", "snr_db", "task")
        assert [point.columns.get(key) for key in same] == [other.columns.get(key) for key in same]
        assert "defense" not in other.columns
        if point.columns["attack"] == "noise":
            assert point.columns["attack_params"] == other.columns["attack_params"]
        # A detector changes no decision, and whoever does not know a defense does what he did.
        if point.columns["defense"] == "watch":
            np.testing.assert_array_equal(
                tally(point.metrics, "accuracy").numerator, tally(other.metrics, "accuracy").numerator
            )
        if point.columns["attack"] == "blind":
            assert point.columns["psr_achieved_db"] == other.columns["psr_achieved_db"]


def test_a_perturbation_that_does_not_see_the_defense_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any, bool, bool]] = []
    cls = find("attack", "pgd")
    plain = cls.perturb  # type: ignore[attr-defined]

    def perturb(self: Evasion, problem: LinkProblem, stream: Stream) -> Perturbation:
        transform = problem.link.transform
        met = "clip" if "Behind" in type(problem.link.listeners[0].decoder).__name__ else transform and transform.kind
        seen.append((self.knowledge.defense, met, problem.link.known, problem.watched))
        delta: Perturbation = plain(self, problem, stream)
        return delta

    monkeypatch.setattr(cls, "perturb", perturb)
    grid = {"attacks": ["exact", "blind", "aware"], "psr_db": [-5], "defenses": ["none", *DEFENSES]}
    evaluate(over(link_of(), grid), nobody)
    squeeze, pad = "feature_squeezing", "random_resize_pad"
    assert [(met, known, watched) for level, met, known, watched in seen if level == "none"] == [(None, False, False)]
    assert [met for level, met, *_ in seen if level == "exact"] == [None, squeeze, pad, "clip"]
    assert not any(known or watched for level, _, known, watched in seen if level == "exact")
    assert [one[1:] for one in seen if one[0] == "adaptive"] == [
        (None, False, False),
        (squeeze, True, False),
        (pad, True, False),
        ("clip", False, False),
        (None, False, True),
    ]


@pytest.mark.parametrize("name", list(DEFENSES))
def test_results_do_not_depend_on_the_batch(name: str) -> None:
    grid = {"attacks": ["none", "exact", "aware", "airy"], "psr_db": [-5], "defenses": [name]}
    found: list[Measurement] = [evaluate(over(link_of(), grid, batch=batch), nobody) for batch in (3, 128)]
    for one, other in zip(found[0].points, found[1].points, strict=True):
        for metric, share in one.metrics.items():
            assert isinstance(share, Tally)
            # One reception of fifty may stand on a border, where rounding decides.
            assert np.abs(share.numerator - tally(other.metrics, metric).numerator).sum() <= 1
        if "psr_achieved_db" in one.columns:
            assert one.columns["psr_achieved_db"] == pytest.approx(other.columns["psr_achieved_db"], abs=1e-3)


def test_a_twin_stands_behind_the_same_defense() -> None:
    patch = {"kind": "patch", "fraction": 0.5, "targets": {"job": 0}}
    link = link_of(attacks={"patch": patch})
    grid = {"attacks": ["none", "patch"], "defenses": ["none", "squeeze"]}
    link = over(link, grid)
    twin = replace(link_of(seed=1), plan=link.plan)
    points = evaluate(link, nobody, twin).points
    theirs = [point for point in points if point.columns["stage"] == "twin"]
    scorer = Scorer(behind(twin, "squeeze"), Air(behind(twin, "squeeze")))
    direct = scorer.score(scorer.link.listeners, [10.0], {})[0].popitem()[1]
    clean = [one for one in theirs if one.columns.get("defense") == "squeeze" and one.columns["attack"] == "none"]
    assert len(clean) == 1
    np.testing.assert_array_equal(tally(clean[0].metrics, "accuracy").numerator, tally(direct, "accuracy").numerator)
    for point in points:
        if point.twin is not None:
            assert points[point.twin].columns.get("defense") == point.columns.get("defense")
    assert {point.columns.get("defense") for point in theirs} == {None, "squeeze"}


# ------------------------------------------------------------------------------------------- what a problem computes


def by_hand(link: TrainedLink, images: Tensor, step: int, draws: int) -> Tensor:
    """Mean loss over a step's draws, with the m draws of the transform shared out over the channel draws."""
    air, listener = Air(link), link.listeners[0]
    drawn = air.attack_transform(step, draws)
    assert drawn is not None
    assert link.transform is not None
    realisation = air.attack(listener, step, draws)
    losses = []
    for k in range(draws):
        changed = link.transform.transform(images, drawn[k * len(drawn) // draws])
        x = link.transmitter.send(changed).x
        heard = link.plan.channel(listener.branch).apply(x, realisation.draws(slice(k, k + 1)), 10.0, "real")
        output = listener.decoder(heard)[0]
        losses.append(torch.nn.functional.cross_entropy(output, link.labels, reduction="none"))
    return torch.stack(losses).mean(0)


@pytest.mark.parametrize("draws", [3, 2 * TRANSFORMS + 1])
def test_an_attack_meets_the_mean_over_a_transforms_draws(draws: int) -> None:
    """Value and gradient (expectation over transformation) by a plain loop."""
    link = behind(link_of(), "pad")
    problem = LinkProblem(link, Air(link), evasion(draws=draws), 10.0, 10.0)
    images = link.images.clone().requires_grad_(True)
    expected = by_hand(link, images, 4, draws)
    nothing = {"input": torch.zeros_like(link.images)}
    torch.testing.assert_close(problem.objective(nothing, 4), expected, rtol=1e-4, atol=1e-5)
    slope = torch.autograd.grad(expected.sum(), images)[0]
    torch.testing.assert_close(problem.gradient(nothing, 4)["input"], slope, rtol=1e-3, atol=1e-5)
    different = problem.objective(nothing, 5)
    assert not torch.allclose(different, expected)


def test_a_backward_pass_is_the_stand_ins_and_the_value_the_links() -> None:
    """One bit leaves no gradient; who knows it has that of the link without it, at the squeezed image."""
    link = link_of(defenses={"bit": {"kind": "feature_squeezing", "bits": 1}})
    nothing = {"input": torch.zeros_like(link.images)}
    exact, known = (
        LinkProblem(one, Air(one), evasion(), 10.0, 10.0) for one in (behind(link, "bit"), behind(link, "bit", True))
    )
    assert not exact.gradient(nothing, 0)["input"].any()
    assert torch.equal(exact.objective(nothing, 0), known.objective(nothing, 0))
    squeezed = replace(link, examples=replace(link.examples, images=link.images.round()))
    free = LinkProblem(squeezed, Air(squeezed), evasion(), 10.0, 10.0)
    torch.testing.assert_close(known.gradient(nothing, 0)["input"], free.gradient(nothing, 0)["input"])


@pytest.mark.parametrize("site", ["input", "air"])
@pytest.mark.parametrize("draws", [2, 40])
def test_rows_of_a_problem_behind_a_random_transform_are_those_rows(site: str, draws: int) -> None:
    link = behind(link_of(), "pad")
    problem = LinkProblem(link, Air(link), evasion(sites=[site], draws=draws), 10.0, 10.0)
    delta = {site: 0.1 * torch.randn(problem.sites[site].clean.shape, generator=torch.Generator().manual_seed(0))}
    whole, rows = problem.objective(delta, 2), torch.tensor([7, 1, 7])
    some = problem.select(rows).objective({site: delta[site][rows]}, 2)
    torch.testing.assert_close(some, whole[rows], rtol=1e-4, atol=1e-5)
    parts = [problem.objective({site: delta[site][index]}, 2, index) for index in (slice(0, 4), slice(4, 10))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    failures = problem.failures(delta, -1, 64)
    assert torch.equal(problem.select(rows).failures({site: delta[site][rows]}, -1, 64), failures[rows])


def test_without_channel_noise_a_random_transform_is_still_random() -> None:
    link = link_of()
    plain, random = (LinkProblem(one, Air(one), evasion(), 10.0, 10.0).quiet() for one in (link, behind(link, "pad")))
    nothing = {"input": torch.zeros_like(link.images)}
    assert len(plain.scores(nothing, 0)) == 1
    scores = random.scores(nothing, 0)
    assert len(scores) == 3
    assert not torch.allclose(scores[0], scores[1])


def test_knowledge_of_the_channel_goes_with_a_random_transform() -> None:
    link = behind(link_of({"kind": "rayleigh", "csi": "none"}), "pad")
    problem = LinkProblem(link, Air(link), evasion(sites=["air"], knowledge={"channel": "csi"}), 10.0, 10.0)
    zero = {"air": torch.zeros_like(problem.sites["air"].clean)}
    assert len(zero["air"]) == 5 * 10
    whole = problem.objective(zero, 1)
    rows = torch.tensor([31, 4])
    some = problem.select(rows).objective({"air": zero["air"][rows]}, 1)
    torch.testing.assert_close(some, whole[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pad", "squeeze"])
def test_an_adversary_imagines_its_own_images_behind_the_defense(name: str) -> None:
    """One perturbation for all, fitted on the reserve."""
    link = behind(link_of(), name, known=True)
    made = evasion("universal", steps=3)
    problem = LinkProblem(link, Air(link), made, 10.0, 10.0)
    problem.psr = from_db(-5.0)
    own = problem.imagine(torch.arange(6))
    assert own.link.transform is link.transform
    assert len(own.link.labels) == problem.own == 40
    delta = made.perturb(problem, Stream(0))["input"]
    assert bool(delta.any())
    alone = LinkProblem(link_of(), Air(link_of()), made, 10.0, 10.0)
    alone.psr = from_db(-5.0)
    assert not torch.allclose(made.perturb(alone, Stream(0))["input"], delta)


@pytest.mark.parametrize("level", ["exact", "adaptive", "none"])
def test_a_surrogate_stands_behind_the_defense_that_its_adversary_knows(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    grey = {**PGD, "knowledge": {"weights": "surrogate", "defense": level}, "surrogate": {}}
    link = over(
        link_of(attacks={"grey": grey}), {"attacks": ["grey"], "psr_db": [-5], "defenses": ["squeeze", "watch"]}
    )
    stolen = link_of(seed=9)
    seen: list[LinkProblem] = []
    cls = find("attack", "pgd")
    plain = cls.perturb  # type: ignore[attr-defined]

    def perturb(self: Evasion, problem: Problem, stream: Stream) -> Perturbation:
        assert isinstance(problem, LinkProblem)
        seen.append(problem)
        delta: Perturbation = plain(self, problem, stream)
        return delta

    monkeypatch.setattr(cls, "perturb", perturb)
    evaluate(link, nobody, surrogates={"grey": stolen})
    assert all(one.link.transmitter is stolen.transmitter for one in seen)
    told = [(one.link.transform is not None, one.link.known, one.watched) for one in seen]
    assert (
        told
        == {
            "exact": [(True, False, False), (False, False, False)],
            "adaptive": [(True, True, False), (False, False, True)],
            "none": [(False, False, False)],
        }[level]
    )


def test_scoring_shares_a_transforms_draws_out_over_the_receptions() -> None:
    """By hand, one reception after another; more receptions than draws of the transform."""
    link = behind(over(link_of(), None, draws={"attack": 3, "score": 40}), "pad")
    assert link.transform is not None
    air, listener = Air(link), link.listeners[0]
    receptions = Receptions(link, air)
    got = torch.cat([heard.inputs for _, heard in receptions.heard([listener], [10.0], {})])
    drawn, realisation = air.score_transform(), air.score(listener)
    assert drawn is not None
    assert len(drawn) == TRANSFORMS
    for k in (0, 1, 2, 3, 20, 39):
        x = link.transmitter.send(link.transform.transform(link.images, drawn[k * TRANSFORMS // 40])).x
        expected = link.plan.channel(listener.branch).apply(x, realisation.draws(slice(k, k + 1)), 10.0, "real")[0]
        torch.testing.assert_close(got[k], expected, rtol=1e-4, atol=1e-5)


def test_a_transform_of_receptions_stands_before_every_decoder() -> None:
    link = link_of()
    clipped, listener = behind(link, "clip"), link.listeners[0]
    heard = 2 * torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(0))
    expected = listener.decoder(heard.clamp(-0.7, 0.7))
    assert torch.equal(clipped.listeners[0].decoder(heard), expected)
    assert clipped.transform is None
    assert not torch.equal(listener.decoder(heard), expected)


# -------------------------------------------------------------------------------------------------- the whole way


def test_the_table_holds_defenses_and_detections(tmp_path: Path) -> None:
    tree = {
        **SHARED_LINK,
        "data": {**DATA, "reserve": 60},
        "channels": {"down": AWGN},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
        "federation": {"kind": "none", "rounds": 1},
        "defenses": DEFENSES,
        "attacks": {name: ATTACKS[name] for name in ("exact", "aware")},
        "evaluation": {
            "draws": {"attack": 2, "score": 4},
            "baselines": False,
            "samples": 1,
            "grids": [
                {
                    "attacks": ["none", "noise", "exact", "aware"],
                    "defenses": ["none", *DEFENSES],
                    "snr_db": [10],
                    "psr_db": [-20, -10],
                }
            ],
        },
    }
    results = run(tree, out=tmp_path)
    table = results.table
    rows = table[table["stage"] == "evaluate"]
    assert set(rows["defense"]) == {"none", *DEFENSES}
    metrics = {str(name): set(some) for name, some in rows.groupby("defense")["metric"]}
    assert {"flagged", "accuracy_passed", "undetected_error", "accuracy_vs_undefended"} <= metrics["watch"]
    assert "flagged" not in metrics["squeeze"]
    assert "accuracy_vs_undefended" not in metrics["none"]
    attacked = rows[(rows["attack"] == "exact")]
    assert set(attacked.loc[attacked["defense"] == "none", "knowledge"]) == {
        "weights: all, signal: exact, channel: statistics"
    }
    assert attacked.loc[attacked["defense"] == "pad", "knowledge"].str.endswith("defense: exact").all()
    # The report tells the defenses apart, and says what the detector is worth.
    assert {"accuracy_vs_psr", "alarms_vs_psr"} <= set(results.figures)
    titles = [axes.get_title("left").replace("\n", " ") for axes in results.plot("accuracy_vs_psr").axes]
    assert all(any(f"{name} defense" in title for title in titles) for name in DEFENSES)
    titles = [axes.get_title("left").replace("\n", " ") for axes in results.plot("alarms_vs_psr").axes]
    assert [title for title in titles if title] == ["label · watch defense"]
    report = (results.folder / "report.html").read_text(encoding="utf-8")
    for metric in ("Wrong and not flagged (%)", "Flagged receptions (%)"):
        assert f"label · watch defense · SNR 10\u00a0dB: {metric}" in report
        assert f"squeeze defense · SNR 10\u00a0dB: {metric}" not in report


def test_what_acts_on_a_trained_link_decides_its_evaluation_and_no_training(tmp_path: Path) -> None:
    tree = {**SHARED_LINK, "data": DATA, "evaluation": {"grids": [{"snr_db": [10], "defenses": ["one"]}]}}
    units = []
    for bits in (1, 2):
        options = {"one": {"kind": "feature_squeezing", "bits": bits}}
        scenario = check_scenario({**tree, "defenses": options})
        units += prepare(scenario, plans_of(scenario), Store(tmp_path / str(bits), {"git": None}), [])
    first, second = units
    assert first.job.folder.name == second.job.folder.name
    assert first.evaluation.name != second.evaluation.name


# --------------------------------------------------------------------------------------------------- what is refused

GRID = {"snr_db": [10], "psr_db": [-10]}


def grids(**changes: Any) -> dict[str, Any]:
    return {"evaluation": {"baselines": False, "grids": [{**GRID, **changes}]}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use": {"defenses": ["squeeze"]}}, "'use.defenses': 'squeeze' acts on a trained link; name it in defenses"),
        (
            {"defenses": {"hard": {"kind": "noise_augmentation", "psr_db": -10}}, **grids(defenses=["hard"])},
            r"'evaluation\.grids\.0\.defenses': 'hard' acts in training; name it in use\.defenses",
        ),
        (grids(defenses=["squeze"]), r"unknown defense 'squeze'.*Did you mean 'squeeze'"),
        (grids(defenses=["squeeze", "squeeze"]), r"lists 'squeeze' twice"),
        ({"defenses": {"none": {"kind": "jpeg"}}}, r"'none' is built in; give your defense another name"),
        ({"defenses": {"a": {"kind": "jpg"}}}, r"Did you mean 'jpeg'"),
        (
            {"data": {**DATA, "reserve": 0}},
            r"'defenses\.watch': 'symbol_anomaly' sets its threshold with images that neither a receiver nor a test",
        ),
        (
            {"data": {**DATA, "reserve": 39}},
            r"'defenses\.watch\.false_alarm': 39 images cannot tell so rare an alarm; raise it, or data\.reserve to 40",
        ),
        ({"defenses": {"a": {"kind": "feature_squeezing", "median": 4}}}, r"'median' should be odd.*not 4"),
        ({"defenses": {"a": {"kind": "feature_squeezing", "bits": 8}}}, r"nothing is squeezed; lower 'bits'"),
        ({"defenses": {"a": {"kind": "feature_squeezing", "bits": 0}}}, r"defenses\.a.*bits"),
        ({"defenses": {"a": {"kind": "jpeg", "quality": 0}}}, r"defenses\.a.*quality"),
        ({"defenses": {"a": {"kind": "random_resize_pad", "smallest": 1}}}, r"defenses\.a.*smallest"),
        ({"defenses": {"a": {"kind": "symbol_anomaly", "false_alarm": 0}}}, r"defenses\.a.*false_alarm"),
        (
            {
                "defenses": {"a": {"kind": "max_softmax"}},
                "tasks": {"label": {"kind": "reconstruction"}},
            },
            r"'defenses\.a': 'max_softmax' watches decisions, and no task makes any",
        ),
        (
            {
                "attacks": {"spy": {"kind": "eavesdropper", "channel": "down", "task": {"kind": "classification"}}},
                **grids(attacks=["spy"], defenses=["squeeze"], psr_db=None),
            },
            r"what 'spy' learns is measured on the link without defenses of a trained link",
        ),
        (
            {
                "attacks": {"lib": {"kind": "torchattacks", "name": "PGDL2", "knowledge": {"defense": "adaptive"}}},
                **grids(attacks=["lib"], defenses=["watch"]),
            },
            r"'attacks\.lib\.knowledge\.defense': 'torchattacks' climbs class scores that know no detector",
        ),
        (
            {"attacks": {"a": {**PGD, "knowledge": {"defense": "all"}}}},
            r"attacks\.a.*knowledge\.defense",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    tree = copy.deepcopy(SHARED_LINK) | {
        "data": DATA,
        "channels": {"down": AWGN},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
        "defenses": DEFENSES,
    }
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario({**tree, **changes}))


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"kind": "symbol_anomaly"}, r"'symbol_anomaly' watches symbols, and receivers of 'mae' decode pictures"),
        ({"kind": "random_resize_pad"}, r"'random_resize_pad' is random, and pictures of 'mae' are painted"),
        ({"kind": "symbol_clipping"}, r"'symbol_clipping' acts on symbols, and receivers of 'mae' decode pictures"),
        ({"kind": "feature_squeezing", "bits": 4}, None),
    ],
)
def test_a_link_of_patches_takes_what_acts_on_its_pictures_alone(made: dict[str, Any], sentence: str | None) -> None:
    tree = {
        **SHARED_LINK,
        "data": {"kind": "digit_scenes", "train_scenes": 60, "test_scenes": 4, "reserve": 40},
        "link": {"encoder": {"kind": "mae", "scorer": "small"}},
        "channels": {"down": AWGN},
        "tasks": {"picture": {"kind": "reconstruction"}},
        "receivers": {"all": {"count": 1, "tasks": ["picture"], "channel": "down"}},
        "defenses": {"a": made},
    }
    if sentence is None:
        assert resolve(check_scenario(tree)).scenario.defenses["a"].bits == 4
        return
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario(tree))
