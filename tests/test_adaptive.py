"""The name `adaptive`: in each scenario the attack that knows the defenses in use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsem
from fedsem import registry
from fedsem.adaptive import NothingKnown, knowing, knows, planted, with_adaptive
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.hooks.aggregate import Updates
from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.update import Seen
from fedsem.registry import names
from fedsem.scenario import Scenario, check_scenario
from fedsem.streams import Stream

BASE: dict[str, Any] = {
    "name": "t",
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 60, "test_images": 12},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 4}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"all": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 20},
    "federation": {"rounds": 1},
    "attacks": {
        "fgsm": {"kind": "fgsm", "norm": "linf"},
        "worst": {"kind": "standard", "norm": "linf", "steps": 2, "objective": {"label": 2.0}},
        "steps": {"kind": "pgd", "steps": 3, "norm": "linf", "objective": {"label": 2.0}},
    },
    "defenses": {
        "hard": {"kind": "adversarial_training", "norm": "linf", "psr_db": -15, "steps": 1},
        "blur": {"kind": "mystery"},
        "secret": {"kind": "secret"},
    },
    "evaluation": {
        "draws": {"attack": 1, "score": 2},
        "baselines": False,
        "samples": 0,
        "grids": [{"attacks": ["none", "fgsm", "worst", "adaptive"], "snr_db": [10], "psr_db": [-20]}],
    },
}


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defense that an attack of five steps knows, and one that nobody knows."""
    names("defense")

    class Mystery(Defense):
        def adaptive(self) -> Mapping[str, Any]:
            return {"kind": "pgd", "steps": 5}

    class Secret(Defense):
        pass

    for cls, name in ((Mystery, "mystery"), (Secret, "secret")):
        cls.kind, cls.group = name, "defense"
        monkeypatch.setitem(registry._registry["defense"], name, cls)


def scenario(used: list[str], **changes: Any) -> Scenario:
    return with_adaptive(check_scenario({**BASE, "use": {"defenses": used}, **changes}))


def listed(defenses: list[str], **changes: Any) -> list[str]:
    return scenario(defenses, **changes).evaluation.grids[0].attacks


def test_in_a_grid_it_has_the_place_of_the_standard_attack() -> None:
    found = scenario(["blur"])
    assert found.evaluation.grids[0].attacks == ["none", "fgsm", "worst", "adaptive_worst"]
    attack = found.attacks["adaptive_worst"]
    assert (attack.kind, attack.steps, attack.norm, attack.sites) == ("pgd", 5, "linf", ["input"])
    assert attack.objective == {"label": 2.0}


def test_without_a_standard_attack_it_has_that_of_the_first_and_the_options_of_its_own_kind() -> None:
    grid = {"attacks": ["none", "steps", "fgsm", "adaptive"], "snr_db": [10], "psr_db": [-20]}
    found = scenario(["blur"], evaluation={"grids": [grid]})
    # What the defense says goes before what the attack of the same kind has.
    assert found.attacks["adaptive_steps"] == found.attacks["steps"].model_copy(update={"steps": 5})


def test_an_attack_that_knows_the_defense_already_is_not_made_twice() -> None:
    assert listed(["hard"]) == ["none", "fgsm", "worst"]
    assert listed([]) == ["none", "fgsm", "worst"]


def test_a_defense_that_nobody_knows_leaves_the_whole_unknown() -> None:
    assert listed(["hard", "secret"]) == ["none", "fgsm", "worst"]
    found = check_scenario({**BASE, "use": {"defenses": ["secret"]}})
    worst: Evasion = found.attacks["worst"]
    assert knowing([found.defenses["secret"]], worst) is None
    assert not knows(worst, [found.defenses["hard"], found.defenses["secret"]])
    assert knows(worst, [found.defenses["hard"]])
    assert not knows(worst, [])
    assert not knows(found.attacks["fgsm"], [found.defenses["hard"]])


def test_an_attack_that_sees_less_than_it_could_does_not_know_a_defense() -> None:
    tree = {**BASE, "data": {"kind": "digits", "train_images": 60, "test_images": 12, "reserve": 30}}
    blind = {"knowledge": {"weights": "surrogate"}, "surrogate": {"epochs": 1}}
    found = check_scenario({**tree, "attacks": {**BASE["attacks"], "worst": BASE["attacks"]["worst"] | blind}})
    assert not knows(found.attacks["worst"], [found.defenses["hard"]])


def test_every_defense_that_says_something_else_has_an_attack_of_its_own() -> None:
    assert listed(["hard", "blur"]) == ["none", "fgsm", "worst", "adaptive_worst"]
    grid = {"attacks": ["fgsm", "adaptive"], "snr_db": [10], "psr_db": [-20]}
    assert listed(["hard", "blur"], evaluation={"grids": [grid]}) == ["fgsm", "adaptive_fgsm", "adaptive_fgsm_2"]


def test_each_defense_of_a_trained_link_meets_the_attacks_that_know_it() -> None:
    """And those in training with it; the link without it is not attacked by what knows nothing of it."""
    defenses = {
        "hard": BASE["defenses"]["hard"],
        "bits": {"kind": "feature_squeezing"},
        "smooth": {"kind": "feature_squeezing", "bits": 3},
        "blur": {"kind": "mystery"},
    }
    grid = {
        "attacks": ["none", "worst", "adaptive"],
        "defenses": ["none", "bits", "smooth"],
        "psr_db": [-20],
        "snr_db": [10],
    }
    for trained, at_training in (([], []), (["hard"], []), (["blur"], ["adaptive_worst"])):
        found = scenario(trained, defenses=defenses, evaluation={"grids": [grid]})
        grids = {tuple(one.defenses): one.attacks[2:] for one in found.evaluation.grids}
        name = "adaptive_worst" if not at_training else "adaptive_worst_2"
        assert grids == {("none",): at_training, ("bits", "smooth"): [*at_training, name]}
        assert found.attacks[name].knowledge.defense == "adaptive"
        assert found.attacks[name].steps == found.attacks["worst"].steps


FORGED = {
    "flip": {"kind": "sign_flip", "fraction": 0.4, "first_round": 1},
    "ipm": {"kind": "ipm", "fraction": 0.4},
}


def trained(aggregator: Any, attacks: Mapping[str, Any] = FORGED, **changes: Any) -> Scenario:
    federation = {"rounds": 1, "aggregator": aggregator, **changes}
    tree = {**BASE, "evaluation": {}, "attacks": attacks, "federation": federation}
    return with_adaptive(check_scenario({**tree, "use": {"attacks": ["adaptive"]}}))


def test_in_training_it_is_the_line_search_through_the_rule() -> None:
    found = trained("median")
    assert found.use.attacks == ["adaptive_tailored"]
    attack = found.attacks["adaptive_tailored"]
    assert (attack.kind, attack.fraction) == ("tailored", 0.4)
    # Mixing makes a defense of an average too.
    assert trained("fedavg", pre_aggregators=[{"kind": "nnm", "f": 2}]).use.attacks == ["adaptive_tailored"]
    assert resolve(found).training_attacks == (attack,)


PATCH = {"kind": "patch", "fraction": 0.4, "samples": 0.3, "targets": {"label": 2}, "size": 6}


DEFENSES = {
    "cluster": {"kind": "activation_clustering"},
    "prune": {"kind": "fine_pruning"},
    "bits": {"kind": "feature_squeezing"},
}


def planting(used: list[str], behind: list[str], attacks: Mapping[str, Any]) -> Scenario:
    grids = [{"attacks": ["none", "p"], "defenses": behind, "snr_db": [10]}, {"snr_db": [10], "defenses": behind}]
    tree = {**BASE, "defenses": DEFENSES, "attacks": attacks, "evaluation": {"grids": grids}}
    return with_adaptive(check_scenario({**tree, "use": {"attacks": ["adaptive"], "defenses": used}}))


def test_a_backdoor_that_knows_a_filter_or_a_repair_is_trained_and_its_trigger_measured() -> None:
    found = planting(["cluster"], ["none"], {"p": PATCH})
    assert found.use.attacks == ["adaptive_blend"]
    made = found.attacks["adaptive_blend"]
    assert (made.samples, made.targets, made.fraction) == (0.3, {"label": 2}, 0.4)
    assert (made.cover, made.shown, made.alpha) == (0.0, 0.5, 0.2)
    assert [grid.attacks for grid in found.evaluation.grids] == [["none", "p", "adaptive_blend"], ["none"]]
    # What knows the filter is a blended trigger, which knows the repair too: it is planted once.
    both = planting(["cluster"], ["none", "bits", "prune"], {"p": PATCH})
    assert both.use.attacks == ["adaptive_blend"]
    assert both.attacks["adaptive_blend"] == made
    # The scenario's own blended trigger says how faint it is.
    blend = {"kind": "blend", "alpha": 0.5, **{key: PATCH[key] for key in ("fraction", "samples", "targets")}}
    assert planting(["cluster"], ["none"], {"p": PATCH, "b": blend}).attacks["adaptive_blend"].alpha == 0.5
    with pytest.raises(NothingKnown, match="'fedavg' and 'feature_squeezing' names none"):
        planting([], ["bits"], {"p": PATCH})
    other = {"q": {**PATCH, "samples": 0.2}}
    with pytest.raises(ScenarioError, match="'samples' and 'targets' of the other attacks at its hook, and those diff"):
        planting(["cluster"], ["none"], {"p": PATCH, **other})


def test_a_backdoor_knows_what_says_so() -> None:
    found = planting(["cluster"], ["none", "bits", "prune"], {"p": PATCH})
    partial, plain = found.attacks["adaptive_blend"], found.attacks["p"]
    whole = planting([], ["prune"], {"p": PATCH}).attacks["adaptive_blend"]

    def known(attack: Any, used: list[str], behind: str | None = None, **federation: Any) -> bool:
        tree = {**BASE, "defenses": DEFENSES, "use": {"defenses": used}, "federation": {"rounds": 1, **federation}}
        here = check_scenario(tree)
        return planted(attack, here, None if behind is None else here.defenses[behind])

    assert known(partial, ["cluster"])
    assert not known(plain, ["cluster"])
    assert known(partial, ["cluster"], "prune")
    assert not known(whole, ["cluster"])
    assert not known(partial, [], "bits")
    assert not known(partial, [])
    assert known(whole, [], "prune")
    # A rule that no trigger knows stands there too, and so does what comes before plain averaging.
    assert not known(partial, ["cluster"], aggregator="median")
    assert not known(partial, ["cluster"], pre_aggregators=[{"kind": "nnm", "f": 1}])
    assert not known(partial, [], aggregator="median")


def test_every_rule_but_averaging_has_an_attack_that_knows_it() -> None:
    known = {kind: cls.model_construct().adaptive() for kind, cls in names("aggregator").items()}  # type: ignore[attr-defined]
    assert {kind for kind, said in known.items() if said is None} == {"fedavg", "fedprox"}
    for said in known.values():
        if said is not None:
            names("attack")[said["kind"]].model_validate({k: v for k, v in said.items() if k != "kind"})


@pytest.mark.parametrize(
    ("aggregator", "attacks", "said"),
    [
        ("fedavg", FORGED, "'fedavg' names none"),
        ("median", {**FORGED, "more": {"kind": "ipm", "fraction": 0.2}}, "and those differ; make them the same"),
        (
            "median",
            {"adaptive_tailored": {"kind": "ipm"}},
            "'attacks.adaptive_tailored': this is what 'adaptive' is called here",
        ),
    ],
)
def test_what_cannot_be_adapted(aggregator: str, attacks: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        trained(aggregator, attacks)
    assert said in str(error.value)
    assert isinstance(error.value, NothingKnown) == (aggregator == "fedavg")


def test_it_needs_an_attack_beside_it_and_nobody_may_take_its_name() -> None:
    with pytest.raises(ScenarioError, match="takes its sites, norm and objective from another attack of the grid"):
        scenario(["blur"], evaluation={"grids": [{"attacks": ["adaptive"], "snr_db": [10], "psr_db": [-20]}]})
    with pytest.raises(ScenarioError, match=r"'attacks.adaptive': 'adaptive' is built in"):
        scenario([], attacks={**BASE["attacks"], "adaptive": {"kind": "fgsm"}})
    with pytest.raises(ScenarioError, match="attacks need 'psr_db'"):
        scenario([], evaluation={"grids": [{"attacks": ["adaptive"], "snr_db": [10]}]})


def lost(made: np.ndarray, mean: np.ndarray) -> float:
    """The loss of a network that has as much to learn again as the honest have learnt."""
    return float(np.linalg.norm(made - 2 * mean))


def facing(rule: Any, honest: np.ndarray, own: np.ndarray, root: np.ndarray | None = None) -> Seen:
    """What malicious receivers see who have learnt `own` where a server combines by this rule and has learnt `root`."""

    def server(forged: np.ndarray) -> np.ndarray:
        rows = np.concatenate([honest, forged]).astype(np.float32)
        updates = Updates(rows, np.ones(len(rows)), tuple(range(len(rows))), root=root)
        made: np.ndarray = rule.aggregate(updates).delta
        return made

    return Seen(honest, tuple(range(len(honest))), own, server, lambda made: lost(made, honest.mean(0)))


def harm(seen: Seen, sent: np.ndarray) -> float:
    """How much more the network loses than with what the honest send."""
    return seen.loss(seen.aggregate(sent)) - seen.loss(seen.honest.mean(0))


def forged(said: Mapping[str, Any] | None, seen: Seen) -> np.ndarray:
    """What an attack sends, as a defense writes it."""
    written = dict(said or {})
    attack: Any = names("attack")[written.pop("kind")].model_validate(written)
    sent: np.ndarray = attack.forge(seen, Stream(0))
    return sent


def test_the_search_does_no_less_harm_than_any_of_its_fixed_scales() -> None:
    """Krum among six honest updates and two forgeries, against the whole line by brute force."""
    honest = (np.random.default_rng(0).normal(size=(6, 5)) + 2).astype(np.float32)
    rule: Any = names("aggregator")["krum"].model_validate({"f": 2})
    seen, mean = facing(rule, honest, honest[:2]), honest.mean(0)
    line = [harm(seen, np.repeat(-scale * mean[None], 2, 0)) for scale in np.geomspace(0.004, 250, 400)]
    assert harm(seen, forged(rule.adaptive(), seen)) >= 0.9 * max(line)


@pytest.mark.parametrize(
    ("kind", "options"), [("multi_krum", {"f": 6}), ("dnc", {"f": 6}), ("signguard", {}), ("flame", {})]
)
def test_the_search_finds_what_lies_between_the_mean_and_nothing(kind: str, options: dict[str, Any]) -> None:
    """Where the honest agree, rules that look at directions or distances drop all that points the other way, and keep a
    part of the mean: no point of the line from there through zero, by brute force, does much more harm."""
    honest = (np.random.default_rng(0).normal(size=(14, 200)) / 2 + 1).astype(np.float32)
    rule: Any = names("aggregator")[kind].model_validate(options)
    seen, mean = facing(rule, honest, honest[:6]), honest.mean(0)

    line = [harm(seen, np.repeat(factor * mean[None], 6, 0)) for factor in np.linspace(-2, 1, 61)]
    assert max(line) > 0.02 * np.linalg.norm(mean)
    assert harm(seen, forged(rule.adaptive(), seen)) >= 0.85 * max(line)


OPTIONS: dict[str, dict[str, Any]] = {"bulyan": {"f": 4}, "foolsgold": {}, "reputation": {}}


@pytest.mark.parametrize("common", [0.1, 0.5])
@pytest.mark.parametrize("kind", sorted({*names("aggregator")} - {"fedavg", "fedprox"}))
def test_what_knows_a_rule_does_more_harm_than_what_does_not(kind: str, common: float) -> None:
    """Twenty receivers who agree little or much, six of them malicious: no less than ALIE, Min-Max and IPM at fixed
    scales. (Along the mean alone nothing does more to FLTrust, nor to FLAME where they agree little.)"""
    deltas = (np.random.default_rng(0).normal(size=(20, 200)) + common).astype(np.float32)
    cls: Any = names("aggregator")[kind]
    rule = cls.model_validate(OPTIONS.get(kind, {"f": 6} if "f" in cls.model_fields else {}))
    honest, mean = deltas[:14], deltas[:14].mean(0)
    root = (mean + np.random.default_rng(1).normal(size=200) / 2).astype(np.float32)
    seen = facing(rule, honest, deltas[14:], root)

    known = harm(seen, forged(rule.adaptive(), seen))
    for said in ({"kind": "alie", "z": 1.5}, {"kind": "min_max"}, {"kind": "ipm", "epsilon": 3.0}):
        assert known >= 0.9 * harm(seen, forged(said, seen)), said


@pytest.mark.parametrize("kind", ["foolsgold", "reputation"])
def test_rules_that_look_for_colluders_meet_malicious_receivers_that_are_not_alike(kind: str) -> None:
    """Honest receivers of different data, as FoolsGold supposes: what all send alike does less than what each does."""
    deltas = (np.random.default_rng(0).normal(size=(20, 300)) + 0.7).astype(np.float32)
    rule: Any = names("aggregator")[kind].model_validate({})
    seen, mean = facing(rule, deltas[:14], deltas[14:]), deltas[:14].mean(0)
    known, alike = (
        np.linalg.norm(seen.aggregate(forged(said, seen)) - mean)
        for said in (rule.adaptive(), {"kind": "ipm", "search": True})
    )
    assert known > alike + 0.1 * np.linalg.norm(mean)


def test_the_table_says_which_attack_knows_the_defenses(tmp_path: Path) -> None:
    quick = {"restarts": 1, "other_steps": 1, "universal_steps": 1, "draws": 1, "judged_by": 2}
    attacks = {**BASE["attacks"], "worst": BASE["attacks"]["worst"] | quick}
    defenses = {"hard": BASE["defenses"]["hard"], "bits": {"kind": "feature_squeezing"}}
    grid = {**BASE["evaluation"]["grids"][0], "defenses": ["none", "bits"]}
    changes = {"attacks": attacks, "defenses": defenses, "evaluation": {**BASE["evaluation"], "grids": [grid]}}
    results = fedsem.run({**BASE, **changes, "use": {"defenses": ["hard"]}}, out=tmp_path)
    table = results.table[results.table["psr_db"].notna()]
    known = table["knowledge"].str.contains("defense: adaptive")
    assert set(zip(table["defense"], table["attack"], known, strict=True)) == {
        ("hard", "fgsm", False),
        ("hard", "worst", True),
        ("hard+bits", "fgsm", False),
        ("hard+bits", "worst", False),
        ("hard+bits", "adaptive_worst", True),
    }
    assert "attack_matrix" in results.figures
    assert not fedsem.compare(results.folder, "adaptive_worst", "worst").empty
