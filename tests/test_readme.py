"""What the README and the guide show is what fedsem does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fedsem import run
from fedsem.ablation import planned
from fedsem.checks import resolve
from fedsem.scenario import check_scenario
from fedsem.scenario_file import load_scenario, read_tree
from fedsem.sweep import cells

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
SMALL = [
    "data={kind: digits, train_images: 100, test_images: 20}",
    "compute.engine=local",
    "seeds=[0]",
    "federation.rounds=1",
    "evaluation.draws={attack: 1, score: 1}",
    "sweep.link.encoder.channel_uses=[10, 20]",
]


def texts(holding: str) -> list[str]:
    whole = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    found = re.findall(r"```yaml\n(.*?)```", whole, re.DOTALL)
    return [text for text in found if holding in text]


def blocks(holding: str) -> list[dict[str, Any]]:
    return [YAML(typ="safe").load(text) for text in texts(holding)]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (text,) = texts("schema: 1")
    path = tmp_path_factory.mktemp("readme") / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "measured.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading where one is named."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8"))
    assert links
    for path, heading in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_example_scenario_is_valid_as_it_stands(example: Path) -> None:
    assert load_scenario(example).name == "mine"


def test_the_example_scenario_runs_to_its_end(example: Path, tmp_path: Path) -> None:
    results = run(example, SMALL, out=tmp_path)
    measured = results.table[results.table["stage"] == "evaluate"]
    assert set(measured["receiver"]) == {"users", "radars"}
    assert measured["cell"].nunique() == 2
    assert measured["value"].notna().all()


def test_defenses_of_a_trained_link_are_valid_as_they_stand() -> None:
    (block,) = blocks("feature_squeezing, bits")
    tree = read_tree("quickstart")
    plan = resolve(check_scenario({**tree, **block}))
    grids = plan.scenario.evaluation.grids
    assert {name: grid.attacks[2:] for grid in grids for name in grid.defenses} == {
        "none": [],
        "squeeze": ["adaptive_worst"],
        "watch": ["adaptive_worst"],
    }


def test_settings_of_the_mae_link_are_valid_as_they_stand() -> None:
    """What the README shows of it, in the place of what a shipped scenario says."""
    tree = read_tree("table1_mask_ratio")
    (shown,) = blocks("kind: mae")
    (named,) = blocks("trained_for")
    mae = resolve(check_scenario({**tree, **shown}))
    assert [mae.task(branch).weight for branch in mae.branches] == [1.5, 1, 0, 0]
    links = cells(check_scenario({**tree, **shown, **named}))
    assert [cell.settings["trained_for"] for cell in links] == ["picture", "mask", "joint"]


def test_attacks_run_as_they_are_shown(tmp_path: Path) -> None:
    (shown,) = blocks("broadcast: ")
    shown["attacks"]["worst"] |= {"steps": 2, "other_steps": 1, "universal_steps": 1, "draws": 2, "judged_by": 2}
    shown["attacks"]["grey"]["surrogate"] = {"epochs": 1}
    shown["attacks"]["broadcast"]["steps"] = 2
    shown["evaluation"] |= {"draws": {"attack": 1, "score": 3}, "baselines": False, "samples": 1}
    shown["data"] |= {"train_images": 60, "test_images": 12}
    tree = {**read_tree("quickstart"), **shown, "compute": {"engine": "local"}, "seeds": [0]}
    tree["federation"] = {"rounds": 1}
    tree["train"] |= {"epochs": 1}
    table = run(tree, out=tmp_path).table
    attacked = table[table["psr_db"].notna() & table["seed"].notna()]
    told = {(row["attack"], row["task"]) for _, row in attacked.iterrows()}
    everyone = {("broadcast", task) for task in ("label", "picture", "target")}
    assert told == {(name, "label") for name in ("worst", "grey", "oracle")} | everyone


def test_poisoned_training_is_valid_as_it_is_shown() -> None:
    tree = read_tree("backdoor_input")
    (shown,) = blocks("kind: patch")
    trainings = cells(check_scenario({**tree, **shown}))
    assert [cell.settings["use.attacks"] for cell in trainings] == [["patch"], ["patch", "boost"]]
    for cell in trainings:
        resolve(check_scenario(cell.tree))


def test_an_ablation_is_valid_as_it_is_shown() -> None:
    (shown,) = blocks("ablate:")
    tree = read_tree("robust_aggregation")
    grids = {"attacks": tree["attacks"] | {"standard": {"kind": "standard"}}, "sweep": {}}
    _, members = planned({**tree, **grids, **shown})
    left_out = [one.name for one in members if one.left_out]
    assert (len(members), left_out) == (18, [])


def test_defenses_are_valid_as_they_are_shown() -> None:
    (shown,) = blocks("kind: fltrust")
    plan = resolve(check_scenario({**read_tree("quickstart"), **shown}))
    assert plan.loss_defense is not None
    assert plan.scenario.federation.aggregator.needs_root
