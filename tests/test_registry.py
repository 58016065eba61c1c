"""Plug-ins: all are found, strangers' too, and what is wrong with one is said with its name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import PositiveInt, ValidationError

import fedsem.attacks
import fedsem.defenses
from fedsem import registry
from fedsem.channels.awgn import Awgn
from fedsem.errors import FedsemError, ScenarioError
from fedsem.registry import GROUPS, Options, find, names, register
from fedsem.scenario import dump_scenario
from fedsem.scenario_file import load_scenario
from fedsem.strict import Strict


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs an entry point `somebody` in `fedsem.plugins`; afterwards the registry is as it was."""
    names("attack")
    monkeypatch.setattr(registry, "_registry", {group: dict(known) for group, known in registry._registry.items()})
    real = registry.entry_points(group="fedsem.plugins")

    def install(value: str, only: bool = False) -> None:
        found = EntryPoints([*([] if only else real), EntryPoint("somebody", value, "fedsem.plugins")])
        monkeypatch.setattr(registry, "entry_points", lambda group: found.select(group=group))
        registry.load_plugins.cache_clear()

    yield install
    registry.load_plugins.cache_clear()


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)


def test_every_registered_class_in_the_source_is_found() -> None:
    written: dict[str, set[str]] = {group: set() for group in GROUPS}
    folders = [Path(registry.__file__).parent, Path(fedsem.attacks.__path__[0]), Path(fedsem.defenses.__path__[0])]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for call in (item for item in node.decorator_list if isinstance(item, ast.Call)):
                    if isinstance(call.func, ast.Name) and call.func.id == "register":
                        group, name = (ast.literal_eval(argument) for argument in call.args)
                        written[group].add(name)
    assert {group: set(names(group)) for group in GROUPS} == written
    assert {"awgn", "rayleigh", "rician", "sensing"} <= written["channel"]
    assert {"fgsm", "pgd", "noise", "torchattacks"} <= written["attack"]


@pytest.mark.parametrize("cls", [cls for group in GROUPS for cls in names(group).values()], ids=lambda cls: cls.kind)
def test_options_are_frozen_documented_and_strict(cls: type[Options]) -> None:
    assert issubclass(cls, Strict)
    assert cls.model_config["frozen"]
    assert cls.model_config["extra"] == "forbid"
    assert cls.model_config["strict"]
    assert cls.__doc__
    assert "kind" not in cls.model_fields
    with pytest.raises(ValidationError, match="unknown key"):
        cls.model_validate({"no_such_option": 1})


def test_options_cannot_be_changed() -> None:
    options = find("channel", "rician")()
    with pytest.raises(ValidationError, match="frozen"):
        options.k_factor = 1.0  # type: ignore[attr-defined]


def test_names_are_sorted_and_a_copy() -> None:
    known = names("channel")
    assert list(known) == sorted(known)
    known.clear()
    assert names("channel")


def test_an_unknown_name_comes_with_the_closest() -> None:
    with pytest.raises(KeyError, match=r"unknown channel 'rayliegh'\. Did you mean 'rayleigh'"):
        find("channel", "rayliegh")
    with pytest.raises(KeyError, match=r"unknown defense 'nobody'\. Known: "):
        find("defense", "nobody")


def test_a_name_is_given_once() -> None:
    with pytest.raises(FedsemError, match=r"Two plug-ins are called channel 'awgn': .*Awgn and .*Mine; rename one."):

        @register("channel", "awgn")
        class Mine(Awgn):
            pass

    assert names("channel")["awgn"] is Awgn
    assert register("channel", "awgn")(Awgn) is Awgn  # Importing a module again is no collision.


def test_a_group_must_exist() -> None:
    with pytest.raises(FedsemError, match=r"'echo' wants to be in the unknown group 'chanel'\. Did you mean 'channel'"):
        register("chanel", "echo")


def test_one_class_and_one_entry_point_make_a_plug_in(
    stranger: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Echo(Awgn):
        """An echo."""

        delay: PositiveInt = 1

    module(monkeypatch, "somebodys_plugins", Echo=register("channel", "echo")(Echo))
    stranger("somebodys_plugins")
    tree: dict[str, Any] = {
        "name": "t",
        "data": "digits",
        "channels": {"down": {"kind": "echo", "delay": 3}},
        "tasks": {"label": "classification"},
        "receivers": {"a": {"count": 1, "tasks": ["label"], "channel": "down"}},
    }
    assert isinstance(load_scenario(tree).channels["down"], Echo)
    assert dump_scenario(load_scenario(tree))["channels"] == {"down": {"kind": "echo", "delay": 3}}
    with pytest.raises(ScenarioError, match=r"'channels.down.delay': should be more than 0, not 0."):
        load_scenario({**tree, "channels": {"down": {"kind": "echo", "delay": 0}}})
    with pytest.raises(ScenarioError, match=r"'channels.down': unknown channel 'ecko'. Did you mean 'echo'\?"):
        load_scenario({**tree, "channels": {"down": "ecko"}})


def test_a_plug_in_package_is_imported_with_its_modules(
    stranger: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "somebodys_package").mkdir()
    (tmp_path / "somebodys_package" / "__init__.py").write_text("")
    (tmp_path / "somebodys_package" / "quiet.py").write_text(
        "from fedsem.channels.awgn import Awgn\nfrom fedsem.registry import register\n\n\n"
        "@register('channel', 'quiet')\nclass Quiet(Awgn):\n    '''No noise.'''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    stranger("somebodys_package")
    assert "quiet" in names("channel")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_plugins'"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("def f(:\n", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("from fedsem.registry import Options\nclass O(Options):\n    x: nothing", "NameError: "),
    ],
)
def test_a_broken_plug_in_package_is_named(
    text: str | None, why: str, stranger: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "broken_plugins.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_plugins", raising=False)
    stranger("broken_plugins")
    for _ in range(2):  # The failure is not remembered as done.
        with pytest.raises(FedsemError) as caught:
            names("attack")
        sentence = str(caught.value)
        assert sentence.startswith("The plug-in package 'broken_plugins' (entry point 'somebody') cannot be imported (")
        assert why in sentence
        assert sentence.isprintable()


def test_a_stranger_that_takes_a_name_is_named(stranger: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "rivals.py").write_text(
        "from fedsem.channels.awgn import Awgn\nfrom fedsem.registry import register\n\n\n"
        "@register('channel', 'awgn')\nclass Other(Awgn):\n    pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        stranger("rivals")
        with pytest.raises(FedsemError, match=r"Two plug-ins are called channel 'awgn': .* and rivals\.Other"):
            names("channel")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("rivals", None)


def test_without_an_installation_it_is_said(stranger: Callable[..., None]) -> None:
    stranger("os", only=True)
    with pytest.raises(FedsemError, match="fedsem is not installed in this environment; run 'pip install"):
        names("attack")
