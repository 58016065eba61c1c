"""The pages in docs/ are what the plug-ins say now, and each of them says what a reader needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import PositiveInt

from fedsem.catalogue import PAGES, ROOT, hook, known, main, meanings, ours, page, summary, write
from fedsem.errors import FedsemError
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.update import Directed, UpdateAttack
from fedsem.registry import Options, names

DOCUMENTED = [(group, name) for groups, _ in PAGES.values() for group in groups for name in ours(group)]
CITATION = re.compile(r"\((?:[^()]|\([^()]*\))*\b(?:19|20)\d\d\b|\[S[03]\]")


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_what_the_plug_ins_say_now(name: str) -> None:
    committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert committed == page(name), "run: python -m fedsem.catalogue"


@pytest.mark.parametrize(("group", "name"), DOCUMENTED)
def test_each_says_what_it_computes_and_where_it_was_published(group: str, name: str) -> None:
    said = summary(names(group)[name])
    assert len(said) > 80
    assert CITATION.search(said), "a docstring needs its source: (Authors, Title, year), or [S3]"


@pytest.mark.parametrize(("group", "name"), DOCUMENTED)
def test_each_option_is_documented(group: str, name: str) -> None:
    cls = names(group)[name]
    assert set(meanings(cls)) == set(cls.model_fields)
    for option, meaning in meanings(cls).items():
        assert meaning, f"{name}.{option} is missing from the docstring's Attributes"


def test_all_attacks_stand_on_the_page_under_their_hook() -> None:
    sections = re.split(r"^## ", page("attacks.md"), flags=re.MULTILINE)[1:]
    under = {
        name: section.splitlines()[0] for section in sections for name in re.findall(r"^### `(\w+)`", section, re.M)
    }
    assert set(under) == set(ours("attack"))
    assert under["pgd"] == under["jamming"] == "Hooks `input` and `air` at test time"
    assert under["alie"] == under["mimic"] == "Hook `update`"


def test_types_and_defaults_are_those_of_the_fields() -> None:
    """Read off the classes by hand."""
    text = page("attacks.md")
    assert "- `steps` (whole number above 0; default `20`): number of steps." in text
    assert "- `name` (text; required): class name in torchattacks" in text
    assert "- `duty` (number above 0 and at most 1; default `0.25`): share of the symbols" in text
    assert "- `value` (number or `nan` or `inf`; default `1.0`): of every coordinate" in text
    assert "- `random_start` (true or false; default `false`): " in text
    assert "- `sites` (list of `input` or `air`; default `[air]`): " in text
    assert known(names("attack")["square"]).endswith("weights `none`, signal `exact`, channel `statistics` or `csi`.")
    # What all have is said once; what one declares anew is said there.
    assert text.count("- `targeted` ") == 1
    training = ("## Hooks `data` and `air` in training", "## Hook `loss`", "## Hook `update`")
    for section in training:
        assert text.partition(section)[2].partition("\n## ")[0].count("- `fraction` ") == 1
    assert text.count("- `fraction` ") == len(training)


def test_a_plug_in_of_any_hook_finds_its_section() -> None:
    class Mine(Directed):
        """Mine."""

    class Lonely(Options):
        """On no hook (Nobody, 2026)."""

        many: PositiveInt = 1

    assert hook(Mine) is UpdateAttack
    assert hook(names("attack")["fgsm"]) is Evasion
    assert hook(Lonely) is Lonely


def test_a_summary_holds_what_neighbours_share() -> None:
    """Min-Max's formula and source stand in the class that it shares with Min-Sum."""
    assert summary(names("attack")["min_max"]).startswith("Min-Max: ")
    assert "Shejwalkar" in summary(names("attack")["min_max"])
    assert "Shejwalkar" not in summary(names("attack")["alie"])
    for name in ("universal", "perturbation_generator"):
        assert page("attacks.md").count(summary(names("attack")[name])) == 1


def test_all_defenses_stand_on_the_page_under_their_hook() -> None:
    sections = re.split(r"^## ", page("defenses.md"), flags=re.MULTILINE)[1:]
    under = {
        name: section.splitlines()[0] for section in sections for name in re.findall(r"^### `(\w+)`", section, re.M)
    }
    groups = PAGES["defenses.md"][0]
    assert set(groups) == {"aggregator", "pre_aggregator", "defense"}
    assert set(under) == {name for group in groups for name in ours(group)}
    assert under["krum"] == "Hook `aggregate`: `aggregator`"
    assert under["nnm"] == "Hook `aggregate`: `pre_aggregator`"
    assert under["adversarial_training"] == under["trades"] == "Hook `loss`"
    assert under["differential_privacy"] == "Hook `update`"
    assert under["feature_squeezing"] == "Hook `transform`"
    assert under["symbol_anomaly"] == "Hook `detector`"
    assert under["spectral_signatures"] == "Hook `data`, in every round"
    assert under["drift_monitor"] == "Hook `monitor`"
    assert under["neural_cleanse"] == "Hook `model`"


def test_a_page_that_there_is_not_is_an_error() -> None:
    with pytest.raises(FedsemError, match=r"There is no page 'channels.md'; choose one of attacks.md, "):
        page("channels.md")


def test_pages_are_written_into_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write(tmp_path / "docs")
    assert {path.name: path.read_text(encoding="utf-8") for path in written} == {name: page(name) for name in PAGES}
    monkeypatch.setattr("fedsem.catalogue.ROOT", tmp_path)
    with pytest.raises(SystemExit, match="belong to a checkout"):
        main()


def test_the_readme_leads_to_the_pages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = [name for name in PAGES if f"(docs/{name})" in readme]
    assert first
    for name in set(PAGES) - set(first):
        assert any(f"({name})" in page(other) for other in first)
