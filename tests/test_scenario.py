"""The scenario: what is refused, in which words, and what survives writing and reading."""

from __future__ import annotations

import copy
import datetime
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsem.errors import ScenarioError
from fedsem.scenario import Scenario, check_scenario, dump_scenario, json_schema, write_scenario
from fedsem.scenario_file import load_scenario, read_yaml, shipped_scenarios
from fedsem.sweep import assign, cells

BASE: dict[str, Any] = {
    "name": "t",
    "data": {"kind": "digits", "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "rayleigh"}, "radar": {"kind": "sensing"}},
    "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}},
    "receivers": {
        "a": {"count": 2, "tasks": ["label"], "channel": "down"},
        "b": {"count": 1, "tasks": ["label", "target"], "channel": {"label": "down", "target": "radar"}},
    },
    "train": {"optimizer": {"kind": "adam", "lr": 1e-3}, "snr_db": {"uniform": [0, 20]}},
    "federation": {"kind": "flower", "aggregator": {"kind": "fedavg"}},
    "attacks": {"fgsm": {"kind": "fgsm", "knowledge": {"weights": "all"}}},
    "evaluation": {"grids": [{"attacks": ["none", "fgsm"], "snr_db": [10], "psr_db": [-20]}]},
}
JARGON = re.compile(
    r"Input |type=|[Vv]alue error|pydantic|validation error|Traceback|should be a valid|string_|_type|ctx|<class"
)
EXAMPLES = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
NAN, INF = math.nan, math.inf


def base(**changes: Any) -> dict[str, Any]:
    """`BASE` with other values at dotted paths, written with two underscores for the dot."""
    tree = copy.deepcopy(BASE)
    for path, value in changes.items():
        tree = assign(tree, path.split("__"), value)
    return tree


def refusal(scenario: Any, *set_options: str) -> str:
    """What is said about a scenario; it must be one line in plain words."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario(scenario, set_options)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert not JARGON.search(sentence), sentence
    return sentence


def test_the_base_is_valid() -> None:
    assert load_scenario(BASE).tasks.keys() == {"label", "target"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Unknown keys, at every level.
        ("nme", "x", "'nme': unknown key. Did you mean 'name'?"),
        ("link.encodr", {}, "'link.encodr': unknown key. Did you mean 'encoder'?"),
        ("link.encoder.chanel_uses", 3, "'link.encoder.chanel_uses': unknown key. Did you mean 'channel_uses'?"),
        ("data.partition.alpa", 1, "'data.partition.alpa': unknown key."),
        ("receivers.a.cont", 3, "'receivers.a.cont': unknown key. Did you mean 'count'?"),
        ("attacks.fgsm.knowledge.wieghts", 1, "'attacks.fgsm.knowledge.wieghts': unknown key. Did you mean 'weights'?"),
        ("evaluation.grids.0.snr", [1], "'evaluation.grids.0.snr': unknown key. Did you mean 'snr_db'?"),
        ("train.snr_db", {"unifrom": [0, 1]}, "'train.snr_db.unifrom': unknown key. Did you mean 'uniform'?"),
        ("evil\nkey\x1b", 1, r"'evil\nkey\x1b': unknown key."),
        ("train.{gt}", 1, "'train.{gt}': unknown key."),
        # Wrong types: nothing is coerced but whole numbers to numbers.
        ("federation.rounds", "10", "'federation.rounds': should be a whole number, not '10'."),
        ("federation.rounds", True, "'federation.rounds': should be a whole number, not true."),
        ("federation.rounds", 10.0, "'federation.rounds': should be a whole number, not 10.0."),
        ("federation.rounds", None, "'federation.rounds': should be a whole number, not null."),
        ("federation.rounds", [1], "'federation.rounds': should be a whole number, not [1]."),
        ("train.optimizer.lr", "1e-3", "'train.optimizer.lr': should be a number, not '1e-3'."),
        ("train.optimizer.lr", True, "'train.optimizer.lr': should be a number, not true."),
        ("train.optimizer", "adam", "'train.optimizer': should be a mapping, not 'adam'."),
        ("seeds", [True], "'seeds.0': should be a whole number, not true."),
        ("seeds", [0, "1"], "'seeds.1': should be a whole number, not '1'."),
        ("seeds", 3, "'seeds': should be a list, not 3."),
        ("seeds", {}, "'seeds': should be a list, not {}."),
        ("name", 3, "'name': should be text, not 3."),
        ("name", None, "'name': should be text, not null."),
        ("description", ["x"], "'description': should be text, not ['x']."),
        ("compute", None, "'compute': should be a mapping, not null."),
        ("channels", ["down"], "'channels': should be a mapping, not ['down']."),
        ("channels.down.decoder_csi", "yes", "'channels.down.decoder_csi': should be true or false, not 'yes'."),
        ("channels.down.decoder_csi", 1, "'channels.down.decoder_csi': should be true or false, not 1."),
        (
            "attacks.fgsm.objective",
            ["label"],
            "'attacks.fgsm.objective': should be a mapping from tasks to weights, or 'joint'",
        ),
        ("evaluation.grids", {"snr_db": [1]}, "'evaluation.grids': should be a list, not {'snr_db': [1]}."),
        ("evaluation.grids", [3], "'evaluation.grids.0': should be a mapping, not 3."),
        ("evaluation.grids.0.snr_db", 10, "'evaluation.grids.0.snr_db': should be a list, not 10."),
        ("receivers.a", None, "'receivers.a': should be a mapping, not null."),
        ("receivers.a.tasks", "label", "'receivers.a.tasks': should be a list, not 'label'."),
        ("receivers.a.channel", 3, "the name of a channel, or a mapping from tasks to channels, not 3."),
        ("receivers.b.channel", {"label": 3}, "'receivers.b.channel.label': should be text, not 3."),
        ("federation.server_optimizer", "adam", "'federation.server_optimizer': should be a mapping, not 'adam'."),
        ("federation.server_optimizer", {"kind": "adam"}, "'federation.server_optimizer.kind': unknown value 'adam'."),
        ("federation.server_optimizer", {"momentum": 1}, "'federation.server_optimizer.momentum': "),
        ("description", datetime.date(2020, 1, 1), "'description': 2020-01-01 is neither valid text nor a number"),
        ("description", "\ud800", r"'description': '\ud800' is neither valid text"),
        ("train", {1: 2}, "'train': the key 1 should be text; put it in quotes."),
        ("sweep", {"data.train_images": [b"\xff"]}, "'sweep.data.train_images.0': b'\\xff' is neither"),
        # Values out of range.
        ("schema", 2, "'schema': should be 1, not 2."),
        ("schema", "1", "'schema': should be 1, not '1'."),
        ("seeds", [], "'seeds': has too few items: []."),
        ("seeds", [-1], "'seeds.0': should be at least 0, not -1."),
        ("seeds", [2**63], "'seeds.0': should be less than 9223372036854775808, not"),
        ("seeds", [1, 1], "'seeds': lists 1 twice."),
        (
            "name",
            "a/../b",
            "'name': names begin with a letter and hold at most 100 letters, digits, '_' and '-', not 'a/../b'.",
        ),
        ("channels.my chan", "awgn", "'channels.my chan': names begin with a letter"),
        ("receivers.a.count", 0, "'receivers.a.count': should be at least 1, not 0."),
        ("receivers.a.count", 10**12, "'receivers.a.count': should be at most 1000000, not 1000000000000."),
        ("receivers.a.tasks", [], "'receivers.a.tasks': has too few items: []."),
        ("receivers.a.tasks", ["label"] * 2, "'receivers.a.tasks': lists 'label' twice."),
        ("receivers", {}, "'receivers': has too few items: {}."),
        ("federation.fraction", 0, "'federation.fraction': should be more than 0, not 0."),
        ("federation.fraction", 1.5, "'federation.fraction': should be at most 1, not 1.5."),
        ("link.encoder.dropout", 1, "'link.encoder.dropout': should be less than 1, not 1."),
        ("train.augment", ["flip", "flip"], "'train.augment': lists 'flip' twice."),
        ("train.optimizer.momentum", 0.9, "'momentum' belongs to kind: sgd"),
        # SNR and PSR.
        ("train.snr_db", "ten", "'train.snr_db': should be a number of dB or {uniform: [low, high]}, not 'ten'."),
        ("train.snr_db", [0, 10], "'train.snr_db': should be a number of dB or {uniform: [low, high]}, not [0, 10]."),
        ("train.snr_db", True, "'train.snr_db': should be a number of dB or {uniform: [low, high]}, not true."),
        ("train.snr_db", NAN, "'train.snr_db': should be a finite number, not .nan."),
        ("train.snr_db", 1000, "'train.snr_db': should be at most 200, not 1000."),
        ("train.snr_db", {}, "'train.snr_db.uniform': this key is required."),
        ("train.snr_db.uniform", [10, 0], "'train.snr_db': the range [10.0, 0.0] is empty or negative"),
        ("train.snr_db.uniform", [1, 1], "'train.snr_db': the range [1.0, 1.0] is empty or negative"),
        ("train.snr_db.uniform", [], "'train.snr_db.uniform': has too few items: []."),
        ("train.snr_db.uniform", [1], "'train.snr_db.uniform': has too few items: [1]."),
        ("train.snr_db.uniform", [1, 2, 3], "'train.snr_db.uniform': has too many items: [1, 2, 3]."),
        ("train.snr_db.uniform", 5, "'train.snr_db.uniform': should be a list, not 5."),
        ("train.snr_db.uniform", ["a", 2], "'train.snr_db.uniform.0': should be a number, not 'a'."),
        ("train.sensing_snr_db", {"uniform": [0, -INF]}, "'train.sensing_snr_db.uniform.1': should be a finite number"),
        ("evaluation.grids.0.psr_db", ["abc"], "'evaluation.grids.0.psr_db.0': should be a number, not 'abc'."),
        ("evaluation.grids.0.psr_db", [NAN], "'evaluation.grids.0.psr_db.0': should be a finite number, not .nan."),
        ("evaluation.grids.0.psr_db", [INF], "'evaluation.grids.0.psr_db.0': should be a finite number, not .inf."),
        ("evaluation.grids.0.psr_db", [], "'evaluation.grids.0.psr_db': has too few items: []."),
        ("evaluation.grids.0.psr_db", None, "'evaluation.grids.0': attacks need 'psr_db'"),
        ("evaluation.grids.0.snr_db", [], "'evaluation.grids.0.snr_db': has too few items: []."),
        ("evaluation.grids.0.snr_db", [10, 10.0], "'evaluation.grids.0': 'snr_db' lists 10.0 twice."),
        ("evaluation.grids.0.attacks", [], "'evaluation.grids.0.attacks': has too few items: []."),
        ("evaluation.grids.0.attacks", ["fgsm", "fgsm"], "'attacks' lists 'fgsm' twice."),
        # Names, with the closest match.
        ("compute.engine", "rayy", "'compute.engine': unknown value 'rayy'. Did you mean 'ray'? Known: local, ray."),
        ("compute.device", "CUDA", "'compute.device': unknown value 'CUDA'. Did you mean 'cuda'?"),
        ("link.symbols", True, "'link.symbols': should be 'real' or 'complex', not true."),
        ("federation", "nne", "'federation': unknown value 'nne'. Did you mean 'none'?"),
        ("attacks.fgsm.sites", ["inptu"], "'attacks.fgsm.sites.0': unknown value 'inptu'. Did you mean 'input'?"),
        ("receivers.a.tasks", ["lable"], "'receivers.a.tasks': unknown task 'lable'. Did you mean 'label'?"),
        ("receivers.a.channel", "dwn", "'receivers.a.channel': unknown channel 'dwn'. Did you mean 'down'?"),
        ("receivers.b.channel", {"label": "down"}, "'receivers.b.channel': names no channel for the task 'target'."),
        ("receivers.a.channel", {"label": "down", "x": "down"}, "'receivers.a.channel': unknown task 'x'."),
        ("tasks.extra", "classification", "'tasks.extra': no receiver has this task"),
        ("name", "x" * 101, "'name': names begin with a letter and hold at most 100 letters"),
        ("evaluation.grids.0.attacks", ["fgms"], "unknown attack 'fgms'. Did you mean 'fgsm'?"),
        ("use.attacks", ["pgd"], "'use.attacks': unknown attack 'pgd'."),
        ("use.defenses", ["x"], "'use.defenses': unknown defense 'x'."),
        ("attacks.noise", "noise", "'attacks.noise': 'noise' is built in"),
        # Plug-ins of every group.
        ("data", "digitz", "'data': unknown dataset 'digitz'. Did you mean 'digits'?"),
        ("data.partition", "dirichlt", "'data.partition': unknown partition 'dirichlt'. Did you mean 'dirichlet'?"),
        ("data.partition", "dirichlet", "'data.partition.alpha': this key is required."),
        ("link.encoder.channel_uses", 8_193, "'link.encoder.channel_uses': should be at most 8192, not 8193."),
        ("link.encoder", "CNN", "'link.encoder': unknown encoder 'CNN'. Did you mean 'cnn'?"),
        ("channels.down", "rayliegh", "'channels.down': unknown channel 'rayliegh'. Did you mean 'rayleigh'?"),
        ("tasks.label.kind", "clasification", "'tasks.label': unknown task 'clasification'. Did you mean 'classi"),
        ("attacks.fgsm", {"kind": "fgms"}, "'attacks.fgsm': unknown attack 'fgms'. Did you mean 'fgsm'?"),
        ("federation.aggregator", "fedprx", "'federation.aggregator': unknown aggregator 'fedprx'. Did you mean"),
        ("defenses.d", "nobody", "'defenses.d': unknown defense 'nobody'. Known: "),
        ("data", {}, "'data': needs a 'kind'. Known: cifar10, coco"),
        ("attacks.fgsm", {"norm": "l2"}, "'attacks.fgsm': needs a 'kind'. Known: "),
        ("data", ["digits"], "'data': should be a mapping with a 'kind', or the name of one dataset, not ['digits']."),
        ("data.kind", 3, "'data': 'kind' should be the name of one dataset, not 3."),
        ("data.partition", {"kind": "dirichlet", "alpha": "a"}, "'data.partition.alpha': should be a number, not 'a'."),
        ("federation.aggregator", {"kind": "fedprox", "mu": -1}, "aggregator.mu': should be at least 0, not -1."),
        ("channels.down.csi", "zff", "'channels.down.csi': unknown value 'zff'. Did you mean 'zf'?"),
        ("channels.radar.known_waveform", True, "'channels.radar': 'known_waveform' needs geometry: monostatic"),
        # Sweeps.
        ("sweep", [1], "'sweep': should be a mapping, not [1]."),
        ("sweep", {"link.symbols": "real"}, "'sweep.link.symbols': should be a list, not 'real'."),
        ("sweep", {"link.symbols": []}, "'sweep.link.symbols': has too few items: []."),
        ("sweep", {"link.encoder.channel_uses": [8, 8]}, "'sweep.link.encoder.channel_uses': lists 8 twice."),
        ("sweep", {"seeds": [[1]]}, "'sweep.seeds': this key cannot be swept."),
        ("sweep", {"compute.engine": ["local", "ray"]}, "'sweep.compute.engine': one engine runs the whole sweep"),
        ("sweep", {"train.snr_db": [3, 5], "train": [{}]}, "'sweep.train': would undo 'sweep.train.snr_db'; write it"),
        ("sweep", {"channels.down": ["awgn", {"kind": "awgn"}]}, "'sweep': this is the same as channels.down = 'awgn'"),
        ("sweep", {"link.encodr.x": [8]}, "With sweep.link.encodr.x = 8: In the scenario, 'link.encodr': unknown key."),
        ("sweep", {"train.snr_db": [3, NAN]}, "'sweep.train.snr_db.1': should be a finite number, not .nan."),
        ("sweep", {"train.snr_db": [3, "x"]}, "With sweep.train.snr_db = 'x': In the scenario, 'train.snr_db': should"),
        ("sweep", {"train.epochs.x": [1]}, "With sweep.train.epochs.x = 1: 'train.epochs' is 1, not a mapping"),
        ("sweep", {"shape": {}}, "'sweep.shape': has too few items: {}."),
        ("sweep", {"link.shape": {"a": {}}}, "'sweep.link.shape': settings with names need a name of their own"),
        ("sweep", {"train": {"a": {}}}, "'sweep.train': settings with names need a name of their own, without dots."),
        (
            "sweep",
            {"train.batch": [8], "size": {"small": {}, "large": {"train.batch": 32}}},
            "'sweep.size.large.train.batch': 'sweep.train.batch' sets this key too; remove one of them.",
        ),
        (
            "sweep",
            {"size": {"a": {"train.batch": 8, "train": {}}}},
            "'sweep.size.a.train': would undo 'sweep.size.a.tr",
        ),
        ("sweep", {"shape": {"a": 3}}, "'sweep.shape.a': should be a mapping, not 3."),
        ("sweep", {"shape": {"a": {"seeds": [1]}}}, "'sweep.shape.a.seeds': this key cannot be swept."),
        ("sweep", {"shape": {"a": {}, "b": {}}}, "'sweep': this is the same as shape = 'a'; remove one of them."),
        (
            "sweep",
            {"shape": {"a": {"link.encodr.x": 8}}},
            "With sweep.shape = 'a': In the scenario, 'link.encodr': unk",
        ),
        ("sweep", {"evaluation.grids.3": [{}]}, "'evaluation.grids' has no item '3'; it has 1, numbered from 0."),
    ],
)
def test_what_is_wrong_is_said_with_its_path(path: str, value: Any, said: str) -> None:
    assert said in refusal(base(**{path.replace(".", "__"): value}))


@pytest.mark.parametrize("key", ["name", "data", "channels", "tasks", "receivers"])
def test_required_keys(key: str) -> None:
    tree = base()
    del tree[key]
    assert refusal(tree) == f"In the scenario, '{key}': this key is required."


def test_an_unknown_key_is_reported_before_what_it_may_explain() -> None:
    tree = base(seeds="x", train__optimizr={})
    assert "'train.optimizr': unknown key" in refusal(tree)
    del tree["train"]["optimizr"]
    assert "'seeds'" in refusal({**tree, "tasks": 3})


def test_values_of_every_length_are_shown_short() -> None:
    for value in ("x" * 5000, ["x"] * 5000, {str(i): i for i in range(5000)}, 10**3000):
        assert len(refusal(base(link__symbols=value))) < 400


def test_shorthands() -> None:
    checked = load_scenario(base(data="digits", federation="none", channels__down="awgn"))
    assert (checked.data.kind, checked.federation.kind, checked.channels["down"].kind) == ("digits", "none", "awgn")


def test_a_mapping_given_from_python_may_hold_tuples_and_models() -> None:
    checked = load_scenario(BASE)
    again = load_scenario({**BASE, "seeds": (3, 4), "link": checked.link, "data": checked.data})
    assert (again.seeds, again.link) == ([3, 4], checked.link)


# -------------------------------------------------------------------------------------------------------- files

GOOD = (
    "name: t\ndata: digits\nchannels: {down: awgn}\ntasks: {label: classification}\n"
    "receivers: {a: {count: 1, tasks: [label], channel: down}}\n"
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; it needs a mapping of keys"),
        ("# nothing\n", "is empty; it needs a mapping of keys"),
        ("- a\n- b\n", "holds ['a', 'b']; it needs a mapping of keys"),
        ("just text", "holds 'just text'; it needs a mapping"),
        (GOOD + "train: {epochs: 1\n", "line 7, column 1 is not valid YAML: expected ',' or '}'"),
        (GOOD + "train:\n\tepochs: 1\n", "line 7, column 1 is not valid YAML: found character"),
        (GOOD + "name: b\n", 'line 6, column 1 is not valid YAML: found duplicate key "name"'),
        (GOOD + "train: {epochs: 1, epochs: 1}\n", "line 6, column 20 is not valid YAML: found duplicate key"),
        (GOOD + "---\n" + GOOD, "is not valid YAML: but found another document"),
        (GOOD + "train: *nope\n", "line 6, column 8 is not valid YAML: found undefined alias"),
        (GOOD + "train: !!python/object:os.system x\n", "is not valid YAML: could not determine a constructor"),
        (GOOD + "description: 2020-99-99\n", "is not valid YAML: month must be in 1..12."),
        (GOOD + "description: 2020-01-01\n", "'description': 2020-01-01 is neither valid text nor a number"),
        (GOOD + 'description: "\x00"\n', "is not valid YAML: unacceptable character"),
        (GOOD + "sweep: {a: &x [*x]}\n", "is nested too deeply."),
        (GOOD + "train: " + "[" * 1000, "is nested too deeply."),
        (GOOD + "train: {? {a: 1} : 1}\n", "is not valid YAML: found unhashable key"),
        (GOOD + "train: {[1, 2]: 1}\n", "'train': the key (1, 2) should be text"),
        (GOOD + "evaluation: {baselines: yes}\n", "'evaluation.baselines': should be true or false, not 'yes'."),
        (GOOD + "seeds: [" + "9" * 5000 + "]\n", "is not valid YAML"),
    ],
)
def test_unreadable_files(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    assert said in refusal(path)


def test_numbers_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD + "train: {epochs: 1_000, optimizer: {lr: 1e-3}, snr_db: 3}\n", encoding="utf-8")
    train = load_scenario(path).train
    assert (train.epochs, train.optimizer.lr, train.snr_db) == (1000, 1e-3, 3.0)


def test_what_is_no_scenario_file(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    assert "is not a text file in UTF-8." in refusal(binary)
    assert f"'{tmp_path}' is a folder, not a scenario file" in refusal(tmp_path)
    assert "There is no scenario file" in refusal(tmp_path / "nope.yaml")
    assert "Did you mean 'quickstart'?" in refusal("quikstart")
    assert "Did you mean 'quickstart'?" in refusal("scenarios/quikstart.yaml")
    assert "cannot be read" in refusal("x" * 5000)
    refusal("")
    refusal("\0")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD, encoding="utf-8")

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal(path).endswith("cannot be read (Permission denied).")


def test_a_file_in_the_way_of_a_shipped_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_scenario("quickstart").name == "quickstart"
    Path("quickstart").write_text(GOOD, encoding="utf-8")
    assert load_scenario("quickstart").name == "t"


# --------------------------------------------------------------------------------------------------- --set, sweep


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("foo", "--set needs the form a.b=value"),
        ("=3", "--set needs the form a.b=value"),
        ("", "--set needs the form a.b=value"),
        ("federation.rounds=", "'federation.rounds': should be a whole number, not null."),
        ("federation.rounds=x", "'federation.rounds': should be a whole number, not 'x'."),
        ("federation.rounds=[", "--set federation.rounds: the value '[', line 1, column 2 is not valid YAML"),
        ("federation.rounds=2020-99-01", "--set federation.rounds: the value '2020-99-01' is not valid YAML"),
        ("federation.roundz=3", "'federation.roundz': unknown key. Did you mean 'rounds'?"),
        ("federation..rounds=3", "'federation.': unknown key."),
        (".=3", "'': unknown key."),
        ("name.x=1", "--set name.x: 'name' is 't', not a mapping, so 'name.x' cannot be set."),
        ("evaluation.grids.1.snr_db=[1]", "'evaluation.grids' has no item '1'; it has 1, numbered from 0."),
        ("evaluation.grids.-1.snr_db=[1]", "'evaluation.grids' has no item '-1'"),
        ("evaluation.grids.²=1", "'evaluation.grids' has no item '²'"),
        ("evaluation.grids.0.snr_db.0=abc", "'evaluation.grids.0.snr_db.0': should be a number, not 'abc'."),
        ("sweep.link.encoder.channel_uses=10", "'sweep.link.encoder.channel_uses': should be a list, not 10."),
        ("sweep.link.encoder.channel_uses=[10, x]", "With sweep.link.encoder.channel_uses = 'x': "),
        ("sweep=3", "'sweep': should be a mapping, not 3."),
        ("name=&x [*x]", "is nested too deeply."),
        ("name=\x00", "is not valid YAML"),
    ],
)
def test_settings_that_cannot_be(setting: str, said: str) -> None:
    assert said in refusal(BASE, setting)


def test_settings() -> None:
    checked = load_scenario(
        BASE,
        [
            "evaluation.grids.0.snr_db=[1, 2]",
            "evaluation.grids.0.snr_db.1=3",
            "train.optimizer.lr = 1e-4",
            "compute.engine=local",
            "description=a=b",
            "sweep.link.encoder.channel_uses=[10,20]",
            "sweep.link.symbols=[real, complex]",
        ],
        seed=7,
    )
    assert checked.evaluation.grids[0].snr_db == [1.0, 3.0]
    assert (checked.train.optimizer.lr, checked.compute.engine, checked.description) == (1e-4, "local", "a=b")
    assert checked.seeds == [7]
    combinations = [(c["link.encoder.channel_uses"], c["link.symbols"]) for c in (x.settings for x in cells(checked))]
    assert combinations == [(10, "real"), (10, "complex"), (20, "real"), (20, "complex")]
    last = check_scenario(cells(checked)[-1].tree)
    assert (last.link.encoder.channel_uses, last.link.symbols, last.sweep) == (20, "complex", {})
    assert len(cells(load_scenario(checked, ["sweep={}"]))) == 1
    assert BASE["evaluation"]["grids"][0]["snr_db"] == [10]


def test_a_channel_that_no_receiver_uses_is_not_swept() -> None:
    spare = base(channels={**BASE["channels"], "spare": "awgn"}, sweep={"channels.spare": ["rayleigh"]})
    assert "'sweep.channels.spare': no receiver uses the channel 'spare'" in refusal(spare)


def test_a_part_of_what_is_swept_is_set_after_it() -> None:
    """In this order both act; the other one is refused."""
    fading = {"channels.down": [{"kind": "rayleigh"}, {"kind": "rician"}], "channels.down.fading": ["block", "fast"]}
    kinds = [check_scenario(cell.tree).channels["down"] for cell in cells(load_scenario(base(sweep=fading)))]
    assert [(one.kind, one.fading) for one in kinds] == [
        ("rayleigh", "block"), ("rayleigh", "fast"), ("rician", "block"), ("rician", "fast")
    ]  # fmt: skip


def test_settings_with_a_name_are_set_together() -> None:
    named = {
        "small": {"link.encoder.channel_uses": 8, "link.symbols": "complex"},
        "as_it_is": {},
        "other": {"link.encoder": {"kind": "cnn", "channel_uses": 12}},  # one of several: it undoes nothing
    }
    checked = check_scenario(base(sweep={"size": named, "train.batch": [16, 32]}))
    found = [(cell.settings, check_scenario(cell.tree)) for cell in cells(checked)]
    assert [chosen for chosen, _ in found] == [
        {"size": size, "train.batch": batch} for size in named for batch in (16, 32)
    ]
    plain = check_scenario(base())
    for chosen, cell in found:
        small = chosen["size"] == "small"
        assert cell.train.batch == chosen["train.batch"]
        uses = {"small": 8, "other": 12, "as_it_is": plain.link.encoder.channel_uses}
        assert cell.link.encoder.channel_uses == uses[chosen["size"]]
        assert cell.link.symbols == ("complex" if small else plain.link.symbols)


def test_a_setting_does_not_run_through_a_sweep_that_is_none() -> None:
    assert "'sweep'" in refusal(base(sweep=[1]), "sweep.link.symbols=[real]")


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_and_the_smoke_sizes_in_their_headers(name: str) -> None:
    header = [line for line in shipped_scenarios()[name].read_text(encoding="utf-8").splitlines() if "--set" in line]
    assert header
    words = shlex.split(header[0].partition("--set")[1] + header[0].partition("--set")[2])
    assert load_scenario(name, [word for word in words if word != "--set"]).name == name


# ------------------------------------------------------------------------------------------------- JSON Schema


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_the_schema_accepts_what_is_valid(schema: jsonschema.Draft202012Validator) -> None:
    for path in shipped_scenarios().values():
        schema.validate(read_yaml(path))
        schema.validate(dump_scenario(load_scenario(path)))
    schema.validate(BASE)
    schema.validate(base(federation="none", data="digits", channels__down="awgn"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nme", 1),
        ("link.encodr", {}),
        ("link.encoder.chanel_uses", 3),
        ("link.encoder", "cn"),
        ("channels.down", {"kind": "rayliegh"}),
        ("channels.down", {"csi": "zf"}),
        ("channels.down.csi", "zff"),
        ("channels.my chan", "awgn"),
        ("attacks.fgsm.knowledge", {"weights": "some"}),
        ("data.partition", "dirichlet"),
        ("data.partition", {"kind": "dirichlet", "alpha": "a"}),
        ("evaluation.grids.0.snr", [1]),
        ("evaluation.grids.0.snr_db", []),
        ("train.snr_db", "ten"),
        ("train.snr_db", {"uniform": [0, 1, 2]}),
        ("federation", "nne"),
        ("federation.rounds", "10"),
        ("receivers.a.count", 0),
        ("seeds", [True]),
        ("defenses.d", "nobody"),
    ],
)
def test_the_schema_refuses_typos(schema: jsonschema.Draft202012Validator, path: str, value: Any) -> None:
    tree = base(**{path.replace(".", "__"): value})
    assert not schema.is_valid(tree)
    refusal(tree)


def test_editors_can_show_what_every_key_means(schema: jsonschema.Draft202012Validator) -> None:
    top: Any = schema.schema
    assert top["title"] == "fedsem scenario"
    assert all(field.get("description") for field in top["properties"].values())
    attacks = top["properties"]["attacks"]["patternProperties"].popitem()[1]["anyOf"]
    pgd = next(variant for variant in attacks if variant.get("title") == "Pgd")
    assert pgd["properties"]["kind"] == {"const": "pgd"}
    assert "projected back into the ball" in pgd["description"]
    assert "Attributes" not in pgd["description"]
    assert pgd["properties"]["steps"]["description"] == "number of steps."
    assert pgd["properties"]["norm"]["description"].startswith("`l2`")  # From the docstring of its base.
    assert top["$defs"]["Grid"]["properties"]["psr_db"]["description"]


# --------------------------------------------------------------------------------------------------- properties

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
decibels = st.floats(-200, 200) | st.integers(-200, 200)
levels = decibels | st.lists(decibels, min_size=2, max_size=2).filter(lambda pair: pair[0] < pair[1]).map(
    lambda pair: {"uniform": pair}
)
positive = st.floats(1e-9, 1e9)
channels = st.one_of(
    st.just("awgn"),
    st.fixed_dictionaries(
        {"kind": st.just("rayleigh")},
        optional={
            "fading": st.sampled_from(["block", "fast"]),
            "csi": st.sampled_from(["none", "phase", "zf", "mmse"]),
            "estimation_error": st.floats(0, 1e3),
            "decoder_csi": st.booleans(),
        },
    ),
    st.fixed_dictionaries({"kind": st.just("rician")}, optional={"k_factor": st.floats(0, 1e300)}),
)
attacks = st.one_of(
    st.just("fgsm"),
    st.fixed_dictionaries(
        {"kind": st.just("pgd")},
        optional={
            "steps": st.integers(1, 10**9),
            "step_size": st.none() | positive,
            "objective": st.dictionaries(st.text(), st.floats(0, 1e9), max_size=2),
            "sites": st.lists(st.sampled_from(["input", "air"]), min_size=1),
        },
    ),
    st.fixed_dictionaries(
        {"kind": st.just("torchattacks"), "name": st.text()},
        optional={
            "options": st.dictionaries(
                st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
            )
        },
    ),
)


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """Valid scenarios of every shape."""
    tasks = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    kinds = st.sampled_from(["classification", "reconstruction", "sensing"])
    air = draw(names)
    own = draw(st.dictionaries(names.filter(lambda name: name not in ("none", "noise")), attacks, max_size=2))
    attacked = draw(st.lists(st.sampled_from(["none", "noise", *own]), min_size=1, unique=True))
    numbers = st.lists(decibels, min_size=1, max_size=3, unique=True)
    grid = {"attacks": attacked, "snr_db": draw(numbers), "psr_db": draw(numbers)}
    optional: dict[str, st.SearchStrategy[Any]] = {
        "schema": st.just(1),
        "description": st.text(),
        "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
        "compute": st.fixed_dictionaries({}, optional={"engine": st.sampled_from(["ray", "local"])}),
        "federation": st.sampled_from(["none", "flower", {"rounds": 3, "fraction": 0.5}, {"aggregator": "fedprox"}]),
        "train": st.fixed_dictionaries(
            {}, optional={"snr_db": levels, "sensing_snr_db": levels | st.none(), "batch": st.integers(1, 10**6)}
        ),
        "use": st.just({"attacks": list(own)}),
        "sweep": st.sampled_from([{}, {"link.encoder.channel_uses": [2, 4], "link.symbols": ["real", "complex"]}]),
    }
    return {
        "name": draw(names),
        "data": draw(st.sampled_from(["digits", {"kind": "digits", "partition": {"kind": "dirichlet", "alpha": 1}}])),
        "channels": {air: draw(channels)},
        "tasks": {task: {"kind": draw(kinds), "weight": draw(positive)} for task in tasks},
        "receivers": {
            draw(names): {
                "count": draw(st.integers(1, 1000)),
                "tasks": tasks,
                "channel": draw(st.sampled_from([air, dict.fromkeys(tasks, air)])),
                "decoder": draw(st.sampled_from(["local", "group"])),
            }
        },
        "attacks": own,
        "evaluation": {"grids": draw(st.sampled_from([[], [grid]]))},
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }


@settings(EXAMPLES, max_examples=60)
@given(tree=scenarios())
def test_writing_and_reading_changes_nothing(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    checked = load_scenario(tree)
    dumped = dump_scenario(checked)
    assert load_scenario(dumped) == checked
    assert dump_scenario(load_scenario(dumped)) == dumped
    assert check_scenario(json.loads(json.dumps(dumped))) == checked
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    write_scenario(checked, path)
    assert load_scenario(path) == checked


@pytest.mark.parametrize(
    "text", ["a\x85b", "\u2028", "Übertragung, two\nlines ", "\x7f " * 60, "1e3", "yes", "null", "~"]
)
def test_odd_texts_survive_in_the_resolved_scenario(text: str, tmp_path: Path) -> None:
    checked = load_scenario(base(description=text))
    write_scenario(checked, tmp_path / "t.yaml")
    assert load_scenario(tmp_path / "t.yaml").description == text


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from([10**400, "none", "digits", "cnn", "awgn", "kind", "\ud800", "2", [], {}, {"kind": None}])
)
keys = st.text(max_size=4) | st.sampled_from([*Scenario.model_fields, "kind", "uniform", "{0}", "a.b"])
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers() | st.none(), inner, max_size=3),
    max_leaves=8,
)


def places(tree: Any, path: str = "") -> list[str]:
    """All dotted paths into a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    below = [(f"{path}.{key}".lstrip("."), value) for key, value in items]
    return [place for name, value in below for place in (name, *places(value, name))]


def accept_or_refuse(tree: Any, *set_options: str) -> None:
    sentence = "."
    try:
        load_scenario(tree, set_options)
    except ScenarioError as error:
        sentence = str(error)
    assert sentence.isprintable()
    assert sentence.endswith(".")


@EXAMPLES
@given(tree=st.dictionaries(keys | st.integers(), junk, max_size=5))
def test_junk_is_refused_in_a_sentence(tree: dict[Any, Any]) -> None:
    accept_or_refuse(tree)
    accept_or_refuse({**BASE, **tree})


@EXAMPLES
@given(place=st.sampled_from(places(BASE)), value=junk, key=keys)
def test_junk_in_any_place_is_refused_in_a_sentence(place: str, value: Any, key: str) -> None:
    accept_or_refuse(assign(BASE, place.split("."), value))
    accept_or_refuse({**BASE, "sweep": {place: [value]}})
    accept_or_refuse({**BASE, "sweep": {f"{place}.{key}": [value]}})


@EXAMPLES
@given(place=st.sampled_from(places(BASE)), text=st.text(max_size=12), key=keys)
def test_any_setting_is_accepted_or_refused_in_a_sentence(place: str, text: str, key: str) -> None:
    accept_or_refuse(BASE, f"{place}={text}")
    accept_or_refuse(BASE, f"{place}.{key}={text}")
    accept_or_refuse(BASE, f"sweep.{place}=[{text}]")
    accept_or_refuse(BASE, text)


@EXAMPLES
@given(text=st.text("ab:-[]{}&*!|>%@'\"#?,0129.\n\t \x07\u2028é"))
def test_any_text_is_a_scenario_or_refused_in_a_sentence(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    accept_or_refuse(path)
