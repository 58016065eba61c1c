"""The command line: bad input ends in one sentence, a non-zero exit code, and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from fedsem import __version__, registry
from fedsem.cli import LISTINGS, app
from fedsem.errors import FedsemError
from fedsem.registry import GROUPS, names
from fedsem.scenario_file import load_scenario, read_yaml, shipped_scenarios

COMMAND = Path(sys.executable).parent / "fedsem"
SCENARIO: dict[str, Any] = {
    "name": "t",
    "compute": {"engine": "local"},
    "data": {"kind": "digits"},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
    "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}},
    "receivers": {
        "a": {"count": 2, "tasks": ["label"], "channel": "down"},
        "b": {"count": 1, "tasks": ["target"], "channel": "radar"},
    },
    "federation": {"rounds": 1},
    "attacks": {"fgsm": {"kind": "fgsm"}},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with `t.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSEM_DEBUG", raising=False)
    with Path("t.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(SCENARIO, file)
    return tmp_path


def call(*arguments: str) -> str:
    """Standard output of a command that succeeds and has nothing to complain about."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refusal(*arguments: str, code: int = 1) -> str:
    """The one sentence of a command that fails; it must have written nothing."""
    before = sorted(Path.cwd().rglob("*"))
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert sorted(Path.cwd().rglob("*")) == before
    return one_sentence(result.stderr)


def one_sentence(stderr: str) -> str:
    line, end, rest = stderr.partition("\n")
    assert (end, rest) == ("\n", "")
    assert line.startswith("Error: ")
    assert line.endswith(".")
    for jargon in ("Traceback", "Input should", "type=", "Something went wrong"):
        assert jargon not in line
    return line.removeprefix("Error: ")


# ------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["rnu"],
            "unknown command 'rnu'. Did you mean 'run'? Known: ablate, audit, compare, list, report, run, schema, "
            "validate.",
        ),
        (["--foo"], "No such option '--foo'."),
        (["run", "t.yaml", "--sed", "1"], "No such option '--sed'."),
        (["run", "t.yaml", "more"], "Got unexpected extra argument"),
        (["run", "t.yaml", "--set"], "Option '--set' requires an argument."),
        (["run", "t.yaml", "--seed", "x"], "Invalid value for '--seed': 'x' is not a valid integer."),
        (["run", "t.yaml", "--device", "cdua"], "unknown value 'cdua'. Did you mean 'cuda'? Known: auto, cpu, cuda."),
        (["validate"], "Missing argument 'SCENARIO'."),
        (["report"], "Missing argument 'RUN_DIR'."),
        (["list"], "Missing argument 'WHAT'."),
        (["list", "atacks"], "unknown value 'atacks'. Did you mean 'attacks'?"),
        (["schema", "x"], "Got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], said: str) -> None:
    sentence = refusal(*arguments, code=2)
    assert said in sentence
    assert "--help'." in sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give either a scenario or the folder of a run to resume."),
        (["t.yaml", "--set", "ablate.train.batch=[1, 2]"], "'ablate': its combinations are runs of their own"),
        (["t.yaml", "--resume", "x"], "Give either a scenario or the folder of a run to resume."),
        (["--resume", "x", "--seed", "1"], "A resumed run keeps its scenario: leave out --set, --seed"),
        (["--resume", "x", "--set", "a=1"], "A resumed run keeps its scenario"),
        (["--resume", "x", "--device", "cpu"], "A resumed run keeps its scenario"),
        (["--resume", "x", "--out", "y"], "A resumed run stays in its folder: leave out --out."),
        (["--resume", "x"], "'x' is not the folder of a run: it has no manifest.json and scenario.yaml."),
        (["--resume", "t.yaml"], "'t.yaml' is not the folder of a run"),
        (["nope.yaml"], "There is no scenario file 'nope.yaml'"),
        (["quikstart"], "Did you mean 'quickstart'?"),
        (["."], "'.' is a folder, not a scenario file"),
        (["t.yaml", "--seed", "-1"], "'seeds.0': should be at least 0, not -1."),
        (["t.yaml", "--set", "a"], "--set needs the form a.b=value"),
        (["t.yaml", "--set", "seedz=[1]"], "'seedz': unknown key. Did you mean 'seeds'?"),
        (["t.yaml", "--out", "t.yaml"], "Results cannot be written to 't.yaml' (Not a directory); choose another"),
        (["t.yaml", "--out", "t.yaml/x"], "Results cannot be written to 't.yaml/x' (Not a directory); choose another"),
    ],
)
def test_a_run_that_cannot_be(arguments: list[str], said: str) -> None:
    assert said in refusal("run", *arguments)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "compute.device: no CUDA device is available here; use --device cpu." in refusal(
        "run", "t.yaml", "--device", "cuda"
    )


def test_results_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = refusal("run", "t.yaml", "--out", "elsewhere")
    assert said == "Results cannot be written to 'elsewhere' (Read-only file system); choose another folder with --out."


def test_a_disk_that_fills_up_leaves_no_half_written_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsem.store.write_scenario", refuse)
    Path("elsewhere", load_scenario("t.yaml").name).mkdir(parents=True)
    assert "cannot be written to 'elsewhere' (No space left on device)" in refusal(
        "run", "t.yaml", "--out", "elsewhere"
    )


def test_a_run_folder_that_is_damaged() -> None:
    Path("run").mkdir()
    Path("run/manifest.json").write_text("{")
    Path("run/scenario.yaml").write_text("{")
    assert "The manifest of the run in 'run' cannot be read (" in refusal("run", "--resume", "run")
    for content, lacks in (("{}", "git"), ("[]", "git"), ('{"git": null, "stages": []}', "status")):
        Path("run/manifest.json").write_text(content)
        assert f"The manifest of the run in 'run' cannot be read (it has no '{lacks}')" in refusal(
            "run", "--resume", "run"
        )
    Path("run/manifest.json").write_text('{"git": null, "stages": [], "status": "failed"}')
    assert "The scenario file 'run/scenario.yaml', line 1, column 2 is not valid YAML" in refusal(
        "run", "--resume", "run"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["receivers.a.channel=radar"], "'receivers.a': the task 'label' needs a communication channel, but 'radar'"),
        (
            [
                "channels.near={kind: sensing, range_bins: 2, known_snr: false}",
                "channels.far={kind: sensing, range_bins: 1, known_snr: true}",
                "tasks.target.range=true",
                "receivers.b={count: 1, tasks: [target], channel: near, decoder: group}",
                "receivers.c={count: 1, tasks: [target], channel: far, decoder: group}",
            ],
            "'receivers.c.decoder': decoders of the task 'target' cannot be averaged with those of group 'b'",
        ),
        (["receivers.b.channel=down"], "'receivers.b': the task 'target' needs a sensing channel, but 'down'"),
        (
            ["link.symbols=complex", "link.encoder.channel_uses=7"],
            "'link.encoder.channel_uses': complex symbols carry two numbers each, so 7 must be even",
        ),
        (
            ["link.symbols=complex", "sweep.link.encoder.channel_uses=[8, 7]"],
            "With sweep.link.encoder.channel_uses = 7: In the scenario, 'link.encoder.channel_uses': complex symbols",
        ),
        (
            ["sweep.data.train_images=[100, 99999]"],
            "With sweep.data.train_images = 99999: data.train_images asks for 99999 images",
        ),
        (["receivers.a.count=5000"], "data.partition: 5001 receivers cannot share 1438 images"),
        (
            ["data.partition={kind: shards, shards_per_receiver: 1000}"],
            "data.partition.shards_per_receiver: 3 receivers with 1000 shards each need 3000 images",
        ),
        (["data.partition={kind: pathological, classes_per_receiver: 11}"], "11 classes for each receiver, but the"),
        (["federation.min_receivers=4"], "'federation.min_receivers': 4 receivers can never answer when each round"),
        (
            ["federation={kind: none, server_optimizer: {momentum: 0.5}}"],
            "'federation.server_optimizer': the centralised reference (kind: none) averages nothing",
        ),
        (
            ["federation={kind: none, aggregator: {kind: fedprox}}"],
            "'federation.aggregator': the centralised reference (kind: none) averages nothing",
        ),
        (["data.train_images=2"], "data.partition: 3 receivers cannot share 2 images"),
        (["data.test_images=99999"], "data.test_images asks for 99999 images"),
        (["data={kind: parquet, train: nope.parquet}"], "There is no file '"),
        (["attacks.fgsm.objective={labl: 1}"], "'attacks.fgsm.objective': unknown task 'labl'. Did you mean 'label'?"),
        (["attacks.fgsm={kind: torchattacks, name: PGDD}"], "'attacks.fgsm.name': unknown attack 'PGDD'"),
    ],
)
def test_a_combination_that_cannot_be(settings: list[str], said: str) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    assert said in refusal("validate", "t.yaml", *options)
    if "sweep" in settings[-1]:
        assert said in refusal("run", "t.yaml", *options)


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([], "Give either a scenario or the folder of an ablation to resume.", 1),
        (["t.yaml"], "there is nothing to vary; name an axis, such as --vary federation.aggregator=", 1),
        (["t.yaml", "--vary", "a"], "--vary needs the form a.b=value", 1),
        (["t.yaml", "--vary", "defences=[none]"], "unknown key. Did you mean 'defenses'?", 1),
        (["t.yaml", "--vary", "defenses=[nome]", "--dry-run"], "unknown defense 'nome'.", 1),
        (["--dry-run"], "--dry-run tells what a scenario would run: name one.", 1),
        (["--resume", "x"], "'x' is not the folder of a run", 1),
        (["--resume", "x", "--out", "y"], "A resumed ablation stays in its folder: leave out --out.", 1),
        (["--resume", "x", "--vary", "a=[1]"], "A resumed ablation keeps its scenario: leave out", 1),
        (["t.yaml", "--jobs", "0"], "Invalid value for '--jobs'", 2),
    ],
)
def test_a_wrong_ablation(arguments: list[str], said: str, code: int) -> None:
    assert said in refusal("ablate", *arguments, code=code)


def test_validate() -> None:
    said = call("validate", "t.yaml", "--set", "sweep.link.symbols=[real, complex]", "--set", "seeds=[0, 1, 2]")
    assert said == "The scenario 't' is valid: 6 training(s), 3 receivers, 1438 training images.\n"
    assert [path.name for path in Path.cwd().iterdir()] == ["t.yaml"]


# ----------------------------------------------------------------------------------------------------- list, schema


@pytest.mark.parametrize("what", LISTINGS)
def test_list(what: str) -> None:
    known = shipped_scenarios() if what == "scenarios" else names(what.removesuffix("s"))
    said = call("list", what)
    assert [line.split()[0] for line in said.splitlines() if line[0] not in " N"] == list(known)
    assert "[required" not in said


def test_every_group_can_be_listed() -> None:
    assert {what.removesuffix("s") for what in LISTINGS} == {*GROUPS, "scenario"}


def test_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    names("defense")
    monkeypatch.setitem(registry._registry, "defense", {})
    assert call("list", "defenses") == "No defenses are installed.\n"


def test_a_listed_docstring_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(registry.Options):
        """Uniform in [low, high], see [/x]."""

    names("defense")
    monkeypatch.setitem(registry._registry, "defense", {"odd": Odd})
    assert "Uniform in [low, high], see [/x]." in call("list", "defenses")


def test_schema() -> None:
    schema = json.loads(call("schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in shipped_scenarios().values():
        jsonschema.validate(read_yaml(path), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SCENARIO, "trian": {}}, schema)


def test_version_and_help() -> None:
    assert call("--version") == f"fedsem {__version__}\n"
    assert call() == call("--help")
    for command in ("run", "validate", "list", "report", "schema"):
        assert command in call("--help")
        assert call(command, "--help")


# --------------------------------------------------------------------------------------------- as a person runs it


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['fedsem', '--help']\n"
        "from fedsem.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'ray', 'pandas', 'numpy', 'pydantic', 'matplotlib', 'pyarrow', 'ruamel'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.splitlines()[-1] == "LOADED []"
    times = []
    for _ in range(5):  # The fastest: other work may share the machine.
        start = time.perf_counter()
        subprocess.run([COMMAND, "--help"], capture_output=True, check=True, timeout=60)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_the_installed_command_refuses_in_one_sentence(here: Path) -> None:
    arguments = ["run", "t.yaml", "--set", "link.symbols=complex", "--set", "link.encoder.channel_uses=7"]
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'link.encoder.channel_uses': complex symbols" in one_sentence(done.stderr)
    assert [path.name for path in here.iterdir()] == ["t.yaml"]


def test_without_a_terminal_a_line_now_and_then_says_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(scenario: str, settings: list[str], *, progress: Any, **_: Any) -> None:
        for done in range(3):
            progress("federate", "cell0-seed0", done, 2)
        raise FedsemError("Enough.")

    monkeypatch.setattr("fedsem.runner.run", work)
    assert CliRunner().invoke(app, ["run", "t.yaml"]).stderr == "Error: Enough.\n"
    monkeypatch.setattr("fedsem.cli.LINE_EVERY_S", 0)
    said = CliRunner().invoke(app, ["run", "t.yaml"]).stderr.splitlines()
    assert said == [f"training cell0-seed0: {done} of 2" for done in range(3)] + ["Error: Enough."]


def test_a_reader_that_stops_early_is_no_error() -> None:
    done = subprocess.run(f"'{COMMAND}' schema | true", shell=True, capture_output=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_our_own_mistakes_are_one_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr("fedsem.checks.resolve", fail)
    result = CliRunner().invoke(app, ["validate", "t.yaml"])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Something went wrong inside fedsem (RuntimeError: a b); "
        "set FEDSEM_DEBUG=1 to see where, and please report it.\n"
    )
    monkeypatch.setenv("FEDSEM_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["validate", "t.yaml"]).exception, RuntimeError)


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsem.checks.resolve", interrupt)
    result = CliRunner().invoke(app, ["validate", "t.yaml"])
    assert (result.exit_code, result.stderr) == (130, "Interrupted\n")


def test_an_interruption_that_a_library_takes_for_its_own_error_is_one(tmp_path: Path) -> None:
    """As numpy does: interrupted while it imports numpy.linalg, it ends in a RecursionError (once in 60 trials)."""
    code = """
import os, signal
import fedsem.cli, fedsem.stages

def library(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except BaseException:
        raise ImportError("half an import") from None

fedsem.stages.run_stages = library
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
fedsem.cli.main()
"""
    command = [sys.executable, "-c", code, "run", "quickstart", "--set", "compute.engine=local", "--out", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (130, "")
    (manifest,) = tmp_path.glob("out/quickstart/*/manifest.json")
    folder = manifest.parent.relative_to(tmp_path)
    assert ended.stderr == f"Interrupted; finish the run with: fedsem run --resume {folder}\n"
    assert json.loads(manifest.read_text())["status"] == "interrupted"
