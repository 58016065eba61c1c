"""Table, figures and report, on a made-up run whose numbers look like real ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedsem.errors import FedsemError, OutputError
from fedsem.files import replace_file
from fedsem.reporting import figures, summary, words
from fedsem.reporting.panels import Curve
from fedsem.reporting.results import Results
from fedsem.reporting.sample_table import SAMPLE_COLUMNS, read_samples, write_samples
from fedsem.reporting.style import Stroke, encode
from fedsem.reporting.table import COLUMNS, frame, read, write

SNRS = [-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0]
PSRS = [-40.0, -30.0, -20.0, -15.0, -10.0, -5.0, 0.0]
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"norm": "l2", "sites": "input", "targeted": False, "strength": 0.0},
    "pgd": {"norm": "l2", "sites": "input", "targeted": False, "strength": 6.0},
}
CLASSES = 10
SEEDS = [0, 2**53 + 1, 1795320000123456789, 2**63 - 1, None]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class MadeUp:
    """Rows of a run with three groups of receivers: `a` classifies (task `label`), `b` reconstructs (`picture`), `c`
    senses (`target`)."""

    def __init__(
        self,
        seeds: tuple[int, ...] = (0, 1, 2),
        sweep: dict[str, list[Any]] | None = None,
        snrs: list[float] = SNRS,
        psrs: list[float] = PSRS,
        attack_snrs: tuple[float, ...] = (10.0,),
        attacks: dict[str, dict[str, Any]] = ATTACKS,
        rounds: int = 12,
        intervals: bool = True,
    ) -> None:
        self.seeds, self.sweep, self.snrs, self.psrs = seeds, sweep or {}, snrs, psrs
        self.attack_snrs, self.attacks, self.rounds, self.intervals = attack_snrs, attacks, rounds, intervals
        self.generator = np.random.default_rng(7)

    def rows(self) -> list[dict[str, Any]]:
        return [row for cell in self.cells() for row in self.cell_rows(cell)]

    def cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = [{}]
        for key, values in self.sweep.items():
            cells = [{**cell, key: value} for cell in cells for value in values]
        return cells

    def cell_rows(self, cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
        nc = cell.get("link.encoder.channel_uses", 20)
        down = cell.get("channels.down", "rayleigh")
        name = "; ".join(f"{key}={value}" for key, value in cell.items())
        base = {"scenario": "made_up", "run_id": "r1", "cell": name, "encoder": "cnn", "channel_uses": nc}
        base |= {"symbols": "real", "aggregator": "fedavg", "train_snr_db": "0 to 20", "defense": "none"}
        air = {"channel": down, "fading": "none", "csi": "none"}
        air = air | {"fading": "block", "csi": "zf"} if down == "rayleigh" else air
        radar = {"channel": "sensing", "fading": "rayleigh", "csi": "none"}
        yield from self.federate(base)
        for task, receiver, air_of in (("label", "a", air), ("picture", "b", air), ("target", "c", radar)):
            own = "sensing_snr_db" if task == "target" else "snr_db"
            here = base | air_of | {"stage": "evaluate", "receiver": receiver, "task": task, "draws": 32}
            here |= {"decoder": "local"}
            for snr in self.snrs:
                clean = self.metrics(task, snr, nc, down, None, 0.0)
                yield from self.measured(here | {own: snr, "attack": "none"}, clean)
                yield from self.references(base | air_of | {"task": task, own: snr}, task, snr, nc)
            for snr in self.attack_snrs:
                clean = self.metrics(task, snr, nc, down, None, 0.0)
                for psr in self.psrs:
                    power = {own: snr, "psr_db": psr, "pnr_db": psr + snr}
                    for attack, options in self.attacks.items():
                        shown = {key: value for key, value in options.items() if key != "strength"}
                        power["psr_achieved_db"] = psr - 2.1 * (psr > -10)
                        noise = self.metrics(task, snr, nc, down, psr, -25.0)
                        hurt = self.metrics(task, snr, nc, down, psr, options["strength"])
                        hurt |= {f"{key}_change": hurt[key] - clean[key] for key in clean}
                        hurt |= {f"{key}_vs_noise": hurt[key] - noise[key] for key in clean}
                        if options["targeted"]:
                            hurt["reached"] = 0.9 * sigmoid((psr + 15) / 4)
                        beside = {"attack": "noise", "attack_params": {"beside": attack}, "sites": options["sites"]}
                        yield from self.measured(here | power | beside, noise)
                        yield from self.measured(here | power | shown | {"attack": attack}, hurt)

    def metrics(
        self, task: str, snr: float, nc: int, down: str, psr: float | None, strength: float
    ) -> dict[str, float]:
        """What a link of that length achieves at that SNR, under an attack of that strength."""
        width = 3.0 if down == "awgn" else 7.0
        good = sigmoid((snr + 0.5 * nc - 4) / width)
        harm = 0.0 if psr is None else sigmoid((psr + 12 + strength) / 4)
        if task == "label":
            return {"accuracy": (0.1 + 0.88 * good) * (1 - harm) + 0.06 * harm}
        if task == "picture":
            mse = 0.07 - 0.05 * good * (1 - harm) + 0.03 * harm
            return {"mse": mse, "psnr_db": -10 * math.log10(mse)}
        sees = 0.5 + 0.48 * sigmoid((snr + 0.3 * nc - 6) / 5) * (1 - harm)
        return {
            "accuracy": sees,
            "misses": min(1, 1.2 * (1 - sees)),
            "ghosts": 0.8 * (1 - sees),
            "detection_at_pfa_0.1": min(1, sees * 1.01),
        }

    def measured(self, row: dict[str, Any], metrics: dict[str, float]) -> Iterator[dict[str, Any]]:
        for metric, value in metrics.items():
            half = 0.02 if metric in ("accuracy", "misses", "ghosts") or "accuracy" in metric else 0.03 * abs(value)
            noisy = value + 0.2 * half * self.generator.standard_normal()
            for seed in (*self.seeds, None):
                interval = {"ci_low": noisy - half, "ci_high": noisy + half} if self.intervals else {}
                examples = 359 * (len(self.seeds) if seed is None else 1)
                yield row | interval | {"seed": seed, "metric": metric, "value": noisy, "n": examples}

    def references(self, row: dict[str, Any], task: str, snr: float, nc: int) -> Iterator[dict[str, Any]]:
        row = row | {"stage": "reference", "attack": "none", "encoder": None}
        sure = lambda value: {"value": value, "ci_low": value, "ci_high": value}  # noqa: E731
        if task == "target":
            for decoder, shift in (("energy_detector", -1.0), ("matched_filter", 1.2)):
                sees = 0.5 + 0.49 * sigmoid((snr + 0.3 * nc - 6 + shift) / 5)
                yield row | {"decoder": decoder, "metric": "accuracy"} | sure(sees)
        if task == "picture":
            for decoder, mse in (("pca", 0.072 - 0.04 * sigmoid((snr + 0.4 * nc - 6) / 6)), ("mean_image", 0.068)):
                for metric, value in (("mse", mse), ("psnr_db", -10 * math.log10(mse))):
                    yield row | {"decoder": decoder, "metric": metric, "value": value, "n": 359}
        if task == "label":
            yield row | {"decoder": "chance", "metric": "accuracy"} | sure(1 / CLASSES)

    def federate(self, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
        base = base | {"stage": "federate"}
        for seed in self.seeds:
            for number in range(1, self.rounds + 1):
                row = base | {"seed": seed, "round": number, "bytes_up": 48_500_000, "bytes_down": 48_500_000}
                for task, start in (("label", 2.3), ("picture", 0.07), ("target", 0.69)):
                    loss = start * (0.2 + 0.8 * math.exp(-number / 4)) * (1 + 0.04 * self.generator.standard_normal())
                    yield row | {"task": task, "metric": "train_loss", "value": loss, "n": 1437}
                failed, rejected = int(number == 4), int(number in (6, 7) and seed == 0)
                yield row | {"metric": "failed_receivers", "value": failed, "n": 10}
                yield row | {"metric": "rejected_updates", "value": rejected, "n": 10}


def samples(complex_symbols: bool = False, images: int = 4, label: str = "") -> list[dict[str, Any]]:
    """Pictures and symbols of a made-up run; `label` replaces the names of the classes."""
    generator = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    columns, lines = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32))
    for image in range(images):
        ring = np.exp(-8 * np.abs(np.hypot(columns, lines) - 0.25 - 0.13 * image))
        original = np.stack([ring, ring * (0.5 + 0.5 * lines), ring * (0.5 - 0.5 * columns)]).clip(0, 1)
        common = {"seed": 0, "cell": "", "image": image, "label": label or str(image)}
        rows.append(common | {"kind": "original", "attack": "none", "values": original})
        heard = common | {"snr_db": 10.0, "symbols": "complex" if complex_symbols else "real"}
        blurred = 0.8 * original + 0.1
        for attack, psr in (("none", None), ("fgsm", -10.0), ("pgd", -10.0)):
            power = {"attack": attack, "psr_db": psr}
            harm = 0.0 if psr is None else 0.12
            noise = harm * generator.standard_normal(original.shape)
            if psr is not None:
                rows.append(common | power | {"kind": "perturbed", "values": (original + noise).clip(0, 1)})
            rebuilt = (blurred + 1.5 * noise).clip(0, 1)
            rows.append(
                heard | power | {"kind": "reconstruction", "receiver": "b", "task": "picture", "values": rebuilt}
            )
            sent = np.random.default_rng(image).choice([-1.0, 1.0], 20) * 0.98 + harm * generator.standard_normal(20)
            rows.append(common | power | {"kind": "sent", "values": sent, "symbols": heard["symbols"]})
            said = label or (str(image) if psr is None else str(9 - image))
            arrived = sent + 0.32 * generator.standard_normal(20)
            rows.append(
                heard
                | power
                | {"kind": "received", "receiver": "a", "task": "label", "decision": said, "values": arrived}
            )
    return rows


SCENARIO = """\
schema: 1
name: made_up
description: A made-up run, to see what the report looks like; <script>alert("no")</script> & more.
seeds: [0, 1, 2]
compute: {engine: local, device: auto, precision: float32, execution: sequential}
data: {kind: digits, partition: {kind: dirichlet, alpha: 0.5}}
link: {encoder: {kind: cnn, channel_uses: 20}, symbols: real, power: per_example}
channels:
  down: {kind: rayleigh, fading: block, csi: zf}
  radar: {kind: sensing, geometry: bistatic, fading: rayleigh}
tasks:
  label: {kind: classification, weight: 1.0}
  picture: {kind: reconstruction, weight: 1.0}
  target: {kind: sensing, weight: 1.0}
receivers:
  a: {count: 4, tasks: [label], channel: down, decoder: local}
  b: {count: 4, tasks: [picture], channel: down, decoder: local}
  c: {count: 2, tasks: [target], channel: radar, decoder: group}
train: {epochs: 1, batch: 64, optimizer: {kind: adam, lr: 0.001}, snr_db: {uniform: [0, 20]}}
federation: {kind: flower, rounds: 12, fraction: 1.0, min_receivers: 8, aggregator: {kind: fedavg}}
attacks:
  fgsm: {kind: fgsm, sites: [input], norm: l2, objective: {label: 1.0}}
  pgd: {kind: pgd, sites: [input], norm: l2, steps: 20, objective: {label: 1.0}}
defenses: {}
sweep: {}
evaluation:
  draws: {attack: 8, score: 32}
  grids:
    - {attacks: [none], snr_db: [-10, -5, 0, 5, 10, 15, 20]}
    - {attacks: [none, noise, fgsm, pgd], snr_db: [10], psr_db: [-40, -30, -20, -15, -10, -5, 0]}
"""

MANIFEST: dict[str, Any] = {
    "fedsem": "0.1.0",
    "python": "3.11.9",
    "packages": {"torch": "2.15.0", "flwr": "1.41.0", "ray": "2.55.1", "numpy": "2.4.6"},
    "seeds": [0, 1, 2],
    "engine": "local",
    "device": "cpu",
    "hardware": {"cpu": "Intel(R) Xeon(R) <fast>", "cores": 2, "memory_gib": 15.6, "gpu": None},
    "git": "0123456789abcdef",
    "started": "2026-11-20T10:00:00+00:00",
    "finished": "2026-11-20T10:02:41+00:00",
    "status": "complete",
    "stages": [
        {"stage": stage, "cell": "", "seed": seed, "seconds": seconds}
        for seed in (0, 1, 2)
        for stage, seconds in (("federate", 31.5), ("evaluate", 18.25))
    ],
    "command": "fedsem run scenarios/made_up.yaml --set compute.engine=local",
}


# ------------------------------------------------------------------------------------------------------- fixtures

TOKEN = {"stage": "evaluate", "task": "label", "metric": "accuracy", "value": 0.5, "n": 10}
DESIGN = (
    "scenario, run_id, seed, stage, round, receiver, task, encoder, decoder, channel, fading, csi, symbols, "
    "train_snr_db, snr_db, sensing_snr_db, channel_uses, mask_ratio, kept, bits, latency_s, attack, "
    "attack_params, objective, sites, knowledge, targeted, norm, psr_db, psr_achieved_db, pnr_db, draws, "
    "adversary_fraction, f_assumed, defense, aggregator, bytes_up, bytes_down, metric, value, ci_low, ci_high, n"
)


@pytest.fixture(scope="module")
def made_up() -> pd.DataFrame:
    return frame(MadeUp().rows())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("samples")
    write_samples(samples(), folder)
    return read_samples(folder)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return read_samples(tmp_path_factory.mktemp("empty"))


def small_run(folder: Path) -> Path:
    """A run folder that is quick to draw: one figure and little else."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in MadeUp(seeds=(0,)).rows() if row.get("task") in ("label", None) and "value" in row]
    write(frame(row for row in rows if row["stage"] != "federate" or row["metric"] != "train_loss"), folder)
    (folder / "scenario.yaml").write_text(SCENARIO, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_run(tmp_path_factory.mktemp("runs") / "r1")
    Results(folder).report()
    return folder


def pooled(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Pooled rows with those values, by rising SNR and PSR."""
    rows = table[table["seed"].isna()]
    for column, value in wanted.items():
        rows = rows[(rows[column] == value).fillna(False)]
    return rows.sort_values(["snr_db", "sensing_snr_db", "psr_db"])


def legend(figure: Figure) -> dict[str, Any]:
    """Legend label -> line."""
    (box,) = figure.legends
    return {text.get_text(): line for text, line in zip(box.get_texts(), box.get_lines(), strict=True)}


def curve(figure: Figure, panel: int, colour: str) -> np.ndarray:
    """The y values of the line with markers of that colour."""
    lines = [line for line in figure.axes[panel].get_lines() if to_hex(line.get_color()) == to_hex(colour)]
    (line,) = [line for line in lines if line.get_marker() not in ("", "None", None)]
    return data(line)[1]


def data(line: Line2D) -> np.ndarray:
    """x and y of a line, (2, points)."""
    return np.asarray(line.get_data(), dtype=float)


def levels(figure: Figure, panel: int) -> list[float]:
    """Heights of the horizontal lines through a whole panel."""
    lines = [data(line) for line in figure.axes[panel].get_lines()]
    return [float(y[0]) for x, y in lines if list(x) == [0, 1]]


def text_of(figure: Figure) -> str:
    """Everything that is written beside the axes, with plain spaces."""
    return " ".join(text.get_text() for text in figure.texts).replace("\u00a0", " ").replace("\n", " ")


# ---------------------------------------------------------------------------------------------------------- table


def test_columns_are_those_of_the_design_and_the_cell_after_the_seed() -> None:
    expected = DESIGN.split(", ")
    expected.insert(expected.index("seed") + 1, "cell")
    # What a transmitter of patches adds: how it chooses and sends, and the paper's own latency beside the actual one.
    expected[expected.index("mask_ratio") : expected.index("mask_ratio")] = ["selection", "transport"]
    expected[expected.index("latency_s") + 1 : expected.index("latency_s") + 1] = ["nominal_latency_s", "outage"]
    # How many rounds' links a row is the mean of, and what it says of a defense.
    expected.insert(expected.index("round") + 1, "rounds")
    expected.insert(expected.index("aggregator") + 1, "verdict")
    assert list(COLUMNS) == expected


def test_frame_fills_absent_columns_with_na_and_keeps_types() -> None:
    table = frame(
        [TOKEN, TOKEN | {"seed": 3, "targeted": True, "attack_params": {"b": 1, "a": 2}, "train_snr_db": 10.0}]
    )
    assert {column: str(dtype) for column, dtype in table.dtypes.items()} == COLUMNS
    assert table["seed"].isna().tolist() == [True, False]
    assert table.loc[1, "attack_params"] == '{"a": 2, "b": 1}'
    assert table.loc[1, "train_snr_db"] == "10"
    assert frame([]).columns.tolist() == list(COLUMNS)


def test_frame_refuses_what_the_table_must_not_hold() -> None:
    with pytest.raises(FedsemError, match=r"no column 'metrik'.*Did you mean 'metric'"):
        frame([TOKEN | {"metrik": 1}])
    with pytest.raises(FedsemError, match="column 'n' holds something that is no Int64"):
        frame([TOKEN | {"n": "many"}])
    bare = {key: value for key, value in TOKEN.items() if key != "n"}
    for interval in ({}, {"ci_low": 0.4}, {"ci_low": 0.4, "ci_high": float("nan")}):
        with pytest.raises(FedsemError, match=r"without interval or n is not reported: .*task label"):
            frame([bare | interval])
    assert len(frame([bare | {"ci_low": 0.4, "ci_high": 0.6}])) == 1


def test_table_round_trip_is_exact_and_equal_tables_are_equal_bytes(tmp_path: Path, made_up: pd.DataFrame) -> None:
    write(made_up, tmp_path / "a")
    write(frame(MadeUp().rows()).set_index(np.arange(len(made_up))[::-1]), tmp_path / "b")
    again = read(tmp_path / "a")
    pd.testing.assert_frame_equal(again, made_up)
    for name in ("table.parquet", "table.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    printed = pd.read_csv(tmp_path / "a" / "table.csv")
    assert list(printed.columns) == list(COLUMNS)
    np.testing.assert_array_equal(printed["value"], made_up["value"].to_numpy(dtype=float))


def test_seeds_that_no_float_can_hold_survive(tmp_path: Path) -> None:
    rows = [{"stage": "evaluate", "seed": seed, "metric": "accuracy", "value": 0.5, "n": 9} for seed in SEEDS]
    write(frame(rows), tmp_path)
    assert read(tmp_path)["seed"].dropna().tolist() == [seed for seed in SEEDS if seed is not None]


def test_table_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no table yet; finish the run with 'fedsem run --resume"):
        read(tmp_path)
    (tmp_path / "table.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(OutputError, match="cannot be read"):
        read(tmp_path)
    pd.DataFrame({"scenario": ["x"], "colour": ["red"]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(OutputError, match="column 'colour' that this version"):
        read(tmp_path)
    pd.DataFrame({"metric": ["accuracy"], "value": [0.5]}).to_parquet(tmp_path / "table.parquet")
    assert read(tmp_path)["n"].isna().all()


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(frame([TOKEN]), tmp_path)
    before = (tmp_path / "table.parquet").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(frame([TOKEN, TOKEN]), tmp_path)
    assert (tmp_path / "table.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.parquet"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot be written \(.+\)") as error:
        replace_file(tmp_path / "results" / "table.csv", b"x")
    assert "\n" not in str(error.value)


def test_samples_round_trip(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    row = {"seed": 0, "cell": "", "image": 5, "label": "cat", "kind": "original", "attack": "none"}
    write_samples([row | {"values": picture}, row | {"kind": "sent", "values": [1, 2], "shape": [2]}], tmp_path)
    found = read_samples(tmp_path)
    assert list(found.columns) == list(SAMPLE_COLUMNS)
    np.testing.assert_array_equal(found["values"][0], picture)
    assert found["values"][1].tolist() == [1, 2]
    assert found["decision"].isna().all()
    with pytest.raises(FedsemError, match=r"no column 'imge'.*'image'"):
        write_samples([{"imge": 1, "values": []}], tmp_path)


# -------------------------------------------------------------------------------------------------------- figures


def test_accuracy_over_psr_has_a_line_for_each_attack_with_the_table_s_numbers(
    made_up: pd.DataFrame, nothing: pd.DataFrame
) -> None:
    figure = figures.draw("accuracy_vs_psr", made_up, nothing)
    lines = legend(figure)
    assert list(lines) == ["Without attack", "FGSM", "PGD", "Gaussian noise (same achieved PSR)", "Chance"]
    for attack, label in (("fgsm", "FGSM"), ("pgd", "PGD")):
        rows = pooled(made_up, task="label", metric="accuracy", attack=attack)
        expected = 100 * rows["value"].to_numpy(dtype=float)
        np.testing.assert_allclose(curve(figure, 0, lines[label].get_color()), expected)
        beyond = pooled(made_up, task="label", metric="accuracy_vs_noise", attack=attack)
        expected = 100 * beyond["value"].to_numpy(dtype=float)
        np.testing.assert_allclose(curve(figure, 1, lines[label].get_color()), expected)
    clean = pooled(made_up, task="label", metric="accuracy", attack="none", snr_db=10.0)
    np.testing.assert_allclose(levels(figure, 0), [100 * clean["value"].iloc[0], 10])
    noise = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--" and data(line).shape[1] > 2]
    assert len(noise) == 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["Accuracy (%)", "Accuracy beyond noise (points)"]
    said = text_of(figure)
    for expected_words in ("L2, at the input, untargeted", "SNR 10 dB", "nc = 20", "3 seeds", "n = 1\u202f077", "95 %"):
        assert expected_words in said


def test_an_attack_has_one_colour_everywhere(made_up: pd.DataFrame, nothing: pd.DataFrame) -> None:
    drawn = [figures.draw(name, made_up, nothing) for name in ("accuracy_vs_psr", "sensing_vs_psr")]
    colours = [{label: line.get_color() for label, line in legend(figure).items()} for figure in drawn]
    assert colours[0]["PGD"] == colours[1]["PGD"] != colours[0]["FGSM"] == colours[1]["FGSM"]
    assert colours[0]["Without attack"] not in (colours[0]["PGD"], colours[0]["FGSM"])


def test_sensing_over_snr_lies_beside_both_theories(made_up: pd.DataFrame, nothing: pd.DataFrame) -> None:
    figure = figures.draw("sensing_vs_snr", made_up, nothing)
    lines = legend(figure)
    assert set(lines) == {"Learned link", "Energy detector (theory)", "Matched filter (theory)", "Chance"}
    assert figure.axes[0].get_xlabel() == "Sensing SNR (dB)"
    drawn = [data(line)[1] for line in figure.axes[0].get_lines()]
    for decoder in ("energy_detector", "matched_filter"):
        theory = made_up[(made_up["decoder"] == decoder).fillna(False)].sort_values("sensing_snr_db")
        expected = 100 * theory["value"].to_numpy(dtype=float)
        assert any(len(values) == len(expected) and np.allclose(values, expected) for values in drawn)
    assert levels(figure, 0) == [50]


def test_reconstruction_over_snr_has_its_baselines(made_up: pd.DataFrame, nothing: pd.DataFrame) -> None:
    figure = figures.draw("reconstruction_vs_snr", made_up, nothing)
    assert list(legend(figure)) == ["Learned link", "Linear PCA coding, same channel", "Mean image"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["MSE (pixels in [0, 1])", "PSNR (dB)"]
    rows = pooled(made_up, task="picture", stage="evaluate", metric="psnr_db", attack="none")
    line = curve(figure, 1, legend(figure)["Learned link"].get_color())
    np.testing.assert_allclose(line, rows["value"].to_numpy(dtype=float))


def test_a_sweep_tells_its_links_apart_in_words(nothing: pd.DataFrame) -> None:
    sweep: dict[str, list[Any]] = {"link.encoder.channel_uses": [10, 20, 40], "channels.down": ["awgn", "rayleigh"]}
    table = frame(MadeUp(sweep=sweep, attacks={}, seeds=(0,)).rows())
    figure = figures.draw("accuracy_vs_snr", table, nothing)
    labels = [label.replace("\u00a0", " ") for label in legend(figure)]
    assert labels[:6] == [f"{name}, nc = {nc}" for nc in (10, 20, 40) for name in ("AWGN", "Rayleigh")]
    assert "Channels: AWGN and Rayleigh (block fading, ZF)." in text_of(figure)
    lines = list(legend(figure).values())
    assert len({(line.get_color(), line.get_marker()) for line in lines[:6]}) == 6
    # The radar is the same in all cells: only what was swept tells them apart.
    sensing = figures.draw("sensing_vs_snr", table, nothing)
    assert "nc = 10, down: Rayleigh" in [label.replace("\u00a0", " ") for label in legend(sensing)]


def test_links_trained_for_one_task_stand_in_a_matrix_of_all_tasks(nothing: pd.DataFrame) -> None:
    """Every value of the table at the middle SNR, the best of each task in bold; and the fronts between two tasks."""
    links = ["label", "picture", "all_of_them"]
    table = frame(MadeUp(sweep={"trained_for": links}, attacks={}).rows())
    clean = table[(table["stage"] == "evaluate") & table["seed"].isna()]
    middle = clean[(clean["snr_db"].fillna(clean["sensing_snr_db"]) == 5)]
    headline = {"label": "accuracy", "picture": "psnr_db", "target": "accuracy"}
    values: dict[str, dict[str, float]] = {}
    for task, metric in headline.items():
        mine = middle[(middle["task"] == task) & (middle["metric"] == metric)].set_index("cell")["value"]
        values[task] = {link: float(mine[f"trained_for={link}"]) for link in links}
    (axes,) = figures.draw("task_matrix", table, nothing).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["label", "picture", "all of them"]
    shown = [
        text
        for text in axes.texts
        if text.get_horizontalalignment() == "center" and text.get_verticalalignment() == "center"
    ]
    for text in shown:
        j, i = (round(x) for x in text.get_position())
        task, link = list(headline)[j], links[i]
        value = values[task][link]
        assert text.get_text() == (f"{value:.2f}" if task == "picture" else f"{100 * value:.1f}")
        assert (text.get_fontweight() == "bold") == (value == max(values[task].values()))
    assert len(shown) == 9
    fronts = figures.draw("task_fronts", table, nothing)
    for panel, (one, other) in zip(
        fronts.axes, [("label", "picture"), ("label", "target"), ("picture", "target")], strict=True
    ):
        scale = {"label": 100, "picture": 1, "target": 100}
        points = [(scale[one] * values[one][link], scale[other] * values[other][link]) for link in links]
        best = [p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)]
        front = panel.get_lines()[0]
        drawn = np.stack([np.asarray(front.get_xdata()), np.asarray(front.get_ydata())], 1)
        np.testing.assert_allclose(drawn[drawn[:, 0].argsort()], sorted(best))


@pytest.mark.parametrize(
    ("sweep", "why"),
    [
        ({"trained_for": ["label", "picture"], "train.batch": [16, 32]}, "differ in more than the names"),
        ({"federation": ["none", "flower"]}, "sweeps no settings with names"),
        ({}, "sweeps no settings with names"),
    ],
)
def test_links_that_differ_in_more_than_names_have_no_matrix(
    sweep: dict[str, list[Any]], why: str, nothing: pd.DataFrame
) -> None:
    table = frame(MadeUp(sweep=sweep, attacks={}, seeds=(0,)).rows())
    assert not {"task_matrix", "task_fronts"} & set(figures.available(table, nothing))
    with pytest.raises(FedsemError, match=why):
        figures.draw("task_matrix", table, nothing)


def test_attacks_over_snr_are_drawn_where_they_were_measured_there(nothing: pd.DataFrame) -> None:
    table = frame(MadeUp(attack_snrs=(0.0, 10.0, 20.0), psrs=[-20.0], seeds=(0,)).rows())
    figure = figures.draw("accuracy_vs_snr", table, nothing)
    assert [axes.get_title("left").replace("\u00a0", " ") for axes in figure.axes][1] == "label · PSR −20 dB"
    rows = pooled(table, task="label", metric="accuracy", attack="pgd")
    line = curve(figure, 1, legend(figure)["PGD"].get_color())
    np.testing.assert_allclose(line, 100 * rows["value"].to_numpy(dtype=float))


@pytest.fixture(scope="module")
def crossed() -> pd.DataFrame:
    """Attacks on label: FGSM, whose perturbations depend on the SNR alone; PGD aims at target too, and was made at
    sensing SNRs of -10 and 10 dB, the accuracy under it being 0.01 and 0.02 times the SNR + 1."""
    rows = []
    for row in MadeUp(attack_snrs=(0.0, 10.0, 20.0), psrs=[-30.0, -20.0], seeds=(0,)).rows():
        of_pgd = row.get("attack") == "pgd" or row.get("attack_params") == {"beside": "pgd"}
        if row.get("task") != "label" or not of_pgd:
            rows.append(row | ({"objective": '{"label": 1.0}'} if row.get("attack") == "fgsm" else {}))
            continue
        for sensing_snr, factor in ((-10.0, 0.01), (10.0, 0.02)):
            value = {"value": factor * (row["snr_db"] + 1)} if row["attack"] == "pgd" else {}
            aim = {"objective": '{"label": 1.0, "picture": 0.0, "target": 1.0}'} if row["attack"] == "pgd" else {}
            rows.append(row | value | aim | {"sensing_snr_db": sensing_snr})
    return frame(rows)


def test_attacks_made_at_several_snrs_of_another_task_get_panels_of_their_own(
    crossed: pd.DataFrame, nothing: pd.DataFrame
) -> None:
    figure = figures.draw("accuracy_vs_psr", crossed, nothing)
    titles = [axes.get_title("left").replace("\u00a0", " ").replace("\n", " ") for axes in figure.axes]
    # Four of six points: the shown ones keep both attacks, the noise beside them, and what is true of them.
    assert [title for title in titles if title] == [
        f"label · SNR {snr} dB · sensing SNR {made} dB"
        for snr, made in ((0, "−10"), (10, "−10"), (10, "10"), (20, "10"))
    ]
    lines = legend(figure)
    assert {"FGSM (on label)", "PGD (on label and target)"} <= set(lines)
    for panel, value in ((0, 0.01), (2, 0.11), (4, 0.22), (6, 0.42)):
        np.testing.assert_allclose(
            curve(figure, panel, lines["PGD (on label and target)"].get_color()), [100 * value] * 2
        )
        assert len(curve(figure, panel, lines["FGSM (on label)"].get_color())) == 2
    assert "4 of 6 SNRs are shown" in text_of(figure)


def test_curves_over_snr_do_not_mix_attacks_made_for_different_sensing_snrs(
    crossed: pd.DataFrame, nothing: pd.DataFrame
) -> None:
    figure = figures.draw("accuracy_vs_snr", crossed, nothing)
    titles = [axes.get_title("left").replace("\u00a0", " ").replace("\n", " ") for axes in figure.axes]
    assert titles[1] == "label · PSR −30 dB · sensing SNR −10 dB"
    assert titles[-1] == "label · PSR −20 dB · sensing SNR 10 dB"
    colour = legend(figure)["PGD (on label and target)"].get_color()
    np.testing.assert_allclose(curve(figure, 1, colour), [1, 11, 21])
    np.testing.assert_allclose(curve(figure, len(titles) - 1, colour), [2, 22, 42])


def test_the_report_s_tables_name_both_snrs(crossed: pd.DataFrame) -> None:
    grids = [grid for grid in summary.under_attack(crossed) if grid.title.startswith("label")]
    assert len({grid.title for grid in grids}) == len(grids) == 4
    assert grids[0].title.replace("\u00a0", " ") == "label · SNR 0 dB · sensing SNR −10 dB: Accuracy (%)"
    assert dict(grids[0].rows)["PGD (on label and target)"][0].value == "1.0"
    assert dict(grids[-1].rows)["PGD (on label and target)"][0].value == "42.0"


def test_a_curve_of_rows_that_contradict_each_other_is_refused() -> None:
    rows = pd.DataFrame({"snr_db": [0.0, 0.0], "value": [0.1, 0.2], "ci_low": [0, 0], "ci_high": [1, 1]})
    with pytest.raises(ValueError, match="several values at one snr_db"):
        Curve.of(rows, "snr_db", 1.0, Stroke("#000000"))


def test_targeted_attacks_show_how_often_they_reach_their_goal(nothing: pd.DataFrame) -> None:
    aim = {"norm": "linf", "sites": "air", "targeted": True, "strength": 0.0}
    table = frame(MadeUp(attacks=ATTACKS | {"aim": aim}, seeds=(0,)).rows())
    figure = figures.draw("accuracy_vs_psr", table, nothing)
    assert "aim (L∞, air, targeted)" in legend(figure)
    assert "PGD (L2, input)" in legend(figure)
    assert figure.axes[2].get_ylabel() == "Goal reached (%)"


@pytest.mark.parametrize(("lowest", "apart"), [(-60.0, True), (-25.0, False)])
def test_a_psr_far_below_all_others_does_not_squeeze_them(
    made_up: pd.DataFrame, nothing: pd.DataFrame, lowest: float, apart: bool
) -> None:
    """A check that nothing happens at -60 dB is in the table, and the caption says so."""
    table = made_up.copy()
    table.loc[table["psr_db"] == table["psr_db"].min(), "psr_db"] = lowest
    figure = figures.draw("accuracy_vs_psr", table, nothing)
    assert ("−60 dB is in the table alone" in text_of(figure)) == apart
    assert (figure.axes[0].get_xlim()[0] < -55) == (not apart and lowest < -55)


@pytest.mark.parametrize("sites", ["air", "input", "input+air"])
def test_over_the_air_psr_is_shown_beside_pnr(nothing: pd.DataFrame, sites: str) -> None:
    """PNR = PSR + SNR, at 10 dB; it means something only for what comes on air alone."""
    made = {"jam": {"norm": "l2", "sites": sites, "targeted": False, "strength": 0.0}}
    figure = figures.draw("accuracy_vs_psr", frame(MadeUp(attacks=made, seeds=(0,)).rows()), nothing)
    above = [child for child in figure.axes[0].child_axes if child.get_xlabel() == "PNR (dB)"]
    assert len(above) == (sites == "air")
    assert ("after clipping" in text_of(figure)) == (sites != "air")
    for axis in above:
        figure.canvas.draw()
        np.testing.assert_allclose(axis.get_xlim(), np.add(figure.axes[0].get_xlim(), 10))
        np.testing.assert_allclose(axis.get_xticks(), figure.axes[0].get_xticks() + 10)


def test_training_shows_losses_and_lost_updates(made_up: pd.DataFrame, nothing: pd.DataFrame) -> None:
    figure = figures.draw("training", made_up, nothing)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["label", "picture", "target", "Updates lost, all seeds"]
    rows = made_up[(made_up["metric"] == "train_loss") & (made_up["task"] == "label")]
    mean = rows.groupby("round")["value"].mean().to_numpy(dtype=float)
    thick = max(figure.axes[0].get_lines(), key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(data(thick)[1], mean)
    assert "Of 360 receivers asked, 3 failed; 2 updates rejected." in text_of(figure)


def test_samples_show_pictures_and_wrong_decisions(made_up: pd.DataFrame, kept: pd.DataFrame) -> None:
    figure = figures.draw("samples", made_up, kept)
    assert sum(len(axes.images) for axes in figure.axes) == 4 * 6
    said = [(text.get_text(), to_hex(text.get_color())) for axes in figure.axes for text in axes.texts]
    right, wrong = dict(said)["read as 0"], dict(said)["read as 9"]
    assert right != wrong
    titles = [axes.get_title().replace("\u00a0", " ") for axes in figure.axes[:6]]
    assert titles[:3] == ["Original", "Reconstructed", "Perturbed\nFGSM, −10 dB"]


@pytest.mark.parametrize("complex_symbols", [False, True])
def test_constellation_shows_every_symbol(tmp_path: Path, made_up: pd.DataFrame, complex_symbols: bool) -> None:
    write_samples(samples(complex_symbols), tmp_path)
    figure = figures.draw("constellation", made_up, read_samples(tmp_path))
    assert len(figure.axes) == 3
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert len(points) == (40 if complex_symbols else 80)
    assert figure.axes[0].get_ylabel() == ("Quadrature" if complex_symbols else "Received amplitude")


def test_figures_that_cannot_be_drawn_say_why(nothing: pd.DataFrame) -> None:
    table = frame(row for row in MadeUp(attacks={}, seeds=(0,)).rows() if row.get("task") != "target")
    assert figures.available(table, nothing) == ["accuracy_vs_snr", "reconstruction_vs_snr", "training"]
    with pytest.raises(FedsemError, match=r"no figure 'acuracy_vs_psr'\. Did you mean 'accuracy_vs_psr'"):
        figures.draw("acuracy_vs_psr", table, nothing)
    for name, why in (
        ("accuracy_vs_psr", "no classification task was evaluated under attack"),
        ("sensing_vs_snr", "no sensing task was evaluated"),
        ("samples", "kept no pictures"),
        ("constellation", "kept no symbols"),
    ):
        with pytest.raises(FedsemError, match=f"no figure '{name}': .*{why}.*It has: accuracy_vs_snr"):
            figures.draw(name, table, nothing)
    assert figures.available(frame([]), nothing) == []


HARD_CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "one point": (
        ["accuracy_vs_psr", "reconstruction_vs_snr", "training"],
        {"snrs": [10.0], "psrs": [-20.0], "seeds": (0,), "intervals": False, "rounds": 1},
    ),
    "twenty attacks": (
        ["accuracy_vs_psr"],
        {
            "seeds": (0,),
            "psrs": [-20.0, 0.0],
            "attacks": {
                f"attack_{i}": {"norm": ("l2", "linf")[i % 2], "sites": "air", "targeted": i == 3, "strength": float(i)}
                for i in range(20)
            },
        },
    ),
    "six cells": (
        ["accuracy_vs_psr"],
        {
            "seeds": (0,),
            "psrs": [-20.0, 0.0],
            "sweep": {"link.encoder.channel_uses": [10, 20, 40], "channels.down": ["awgn", "rayleigh"]},
            "snrs": [0.0, 10.0],
        },
    ),
}


@pytest.mark.parametrize("case", HARD_CASES)
def test_hard_cases_are_drawn_without_anything_clipped_or_empty(case: str, nothing: pd.DataFrame) -> None:
    names, options = HARD_CASES[case]
    table = frame(MadeUp(**options).rows())
    for name in names:
        figure = figures.draw(name, table, nothing)
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0) > -0.01, name
        assert max(box.x1 - width, box.y1 - height) < 0.01, name
        for axes in figure.axes:
            assert any(data(line).size for line in axes.get_lines()), name


def test_names_from_users_are_text_and_nothing_else(tmp_path: Path, made_up: pd.DataFrame) -> None:
    write_samples(samples(label="$5_{x$ <b>猫"), tmp_path)
    assert encode(figures.draw("samples", made_up, read_samples(tmp_path)), "png").startswith(b"\x89PNG")


def test_figures_are_the_same_bytes_each_time_and_leave_matplotlib_alone(
    made_up: pd.DataFrame, nothing: pd.DataFrame
) -> None:
    matplotlib.rcParams["font.size"] = 13
    try:
        before = dict(matplotlib.rcParams)
        one, two = (figures.draw("accuracy_vs_snr", made_up, nothing) for _ in range(2))
        page = encode(one, "pdf")
        assert page == encode(two, "pdf")
        assert dict(matplotlib.rcParams) == before
    finally:
        matplotlib.rcdefaults()
    assert b"CreationDate" not in page
    assert b"FontFile2" in page  # embedded TrueType
    assert b"/Type3" not in page


# --------------------------------------------------------------------------------------------------------- report


class Balance(HTMLParser):
    """Checks that every element that was opened is closed, and collects addresses."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_whole_page_that_fetches_nothing(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    page = Balance()
    page.feed(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not page.seen & {"script", "link", "iframe"}
    for heading in ("What was run", "Results without attack", "Results under attack", "Figures", "Federation"):
        assert f"<h2>{heading}</h2>" in text
    for said in (
        "Accuracy (%)",
        "noise beside PGD",
        "rayleigh (fading block, CSI zf)",
        "fedsem run scenarios/made_up.yaml",
    ):
        assert said in text
    assert "prefers-color-scheme: dark" in text
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == [
        f"{name}.{kind}" for name in ("accuracy_vs_psr", "accuracy_vs_snr") for kind in ("pdf", "png")
    ]


def test_report_escapes_what_users_wrote(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(&quot;no&quot;)&lt;/script&gt; &amp; more" in text
    assert "Intel(R) Xeon(R) &lt;fast&gt;" in text


def test_report_is_made_again_from_the_files_alone(run_folder: Path) -> None:
    paths = [run_folder / "report.html", run_folder / "figures" / "accuracy_vs_psr.png"]
    before = [path.read_bytes() for path in paths]
    outdated = run_folder / "figures" / "sensing_vs_snr.pdf"
    outdated.write_bytes(b"of an older table")
    assert Results(run_folder).report() == paths[0]
    assert [path.read_bytes() for path in paths] == before
    assert not outdated.exists()


def test_report_prints_the_table_s_numbers(made_up: pd.DataFrame) -> None:
    grids = {grid.title: grid for grid in summary.clean(made_up)}
    row = pooled(made_up, task="label", metric="accuracy", attack="none", snr_db=10.0).iloc[0]
    cells = dict(zip(grids["label: Accuracy (%)"].columns, grids["label: Accuracy (%)"].rows[0][1], strict=True))
    assert cells["10\u00a0dB"].value == f"{100 * row['value']:.1f}"
    assert cells["10\u00a0dB"].interval == f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    (attacked,) = [grid for grid in summary.under_attack(made_up) if grid.title.startswith("label")]
    assert [label for label, _ in attacked.rows] == ["FGSM", "noise beside FGSM", "PGD", "noise beside PGD"]
    row = pooled(made_up, task="label", metric="accuracy", attack="pgd", psr_db=0.0).iloc[0]
    assert dict(attacked.rows)["PGD"][-1].value == f"{100 * row['value']:.1f}"
    assert dict(attacked.rows)["PGD"][-1].note == "−2.1\u00a0dB"
    assert dict(attacked.rows)["PGD"][0].note == ""
    theory = dict(grids["target: Accuracy (%)"].rows)["Energy detector (theory)"]
    assert all(cell.interval == "" for cell in theory)
    assert dict(grids["picture: PSNR (dB)"].rows)["Mean image"][0].interval == "n\u00a0=\u00a0359"


def test_federation_counts_the_bytes_of_a_round_once(made_up: pd.DataFrame) -> None:
    (training,) = summary.federation(made_up)
    assert (training.rounds, training.asked, training.failed, training.rejected) == (12, 360, 3, 2)
    assert training.bytes_up == 3 * 12 * 48_500_000


def test_report_of_an_unfinished_or_bare_run_is_still_a_report(tmp_path: Path) -> None:
    write(frame([TOKEN]), tmp_path)
    (tmp_path / "manifest.json").write_text(
        '{"status": "running <now>", "stages": null, "packages": []}', encoding="utf-8"
    )
    text = Results(tmp_path).report().read_text(encoding="utf-8")
    assert "not complete (status: running &lt;now&gt;)" in text
    Balance().feed(text)


# -------------------------------------------------------------------------------------------------------- results


def test_results_give_access_to_everything(run_folder: Path) -> None:
    results = Results(run_folder)
    assert results.scenario["train"]["optimizer"]["lr"] == 1e-3
    assert results.manifest["engine"] == "local"
    assert results.samples.empty
    assert results.figures == ["accuracy_vs_snr", "accuracy_vs_psr"]
    figure = results.plot("accuracy_vs_psr")
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    shown = results._repr_html_()
    assert "accuracy_vs_psr" in shown
    assert "label: Accuracy at SNR 20\u00a0dB" in shown
    assert "made_up" in shown


def test_results_of_no_run_say_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="There is no run folder"):
        Results(tmp_path / "missing")
    with pytest.raises(OutputError, match="is no run folder"):
        Results(tmp_path)
    (tmp_path / "scenario.yaml").write_text("name: x\n", encoding="utf-8")
    assert "No table yet" in Results(tmp_path)._repr_html_()
    with pytest.raises(OutputError, match="no table yet; finish the run with 'fedsem run --resume"):
        Results(tmp_path).report()
    (tmp_path / "scenario.yaml").write_text("name: [x\n", encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    for name in ("scenario", "manifest"):
        with pytest.raises(OutputError, match=f"The {name} .* cannot be read"):
            getattr(Results(tmp_path), name)


def test_a_results_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    folder = small_run(tmp_path / "r1")
    (folder / "figures").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        Results(folder).save_figures()


def test_importing_results_is_quick() -> None:
    code = "import sys, fedsem.reporting.results; print({'pandas', 'matplotlib', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("metric", "kind", "label"),
    [
        ("accuracy", None, "Accuracy (%)"),
        ("accuracy_vs_noise", None, "Accuracy beyond noise (points)"),
        ("psnr_db_vs_noise", "reconstruction", "PSNR beyond noise (dB)"),
        ("misses_change", "sensing", "Change of missed targets (points)"),
        ("detection_at_pfa_0.1", "sensing", "Detection at PFA = 0.1 (%)"),
        ("reached", "reconstruction", "MSE to the target picture"),
        ("reached", "classification", "Goal reached (%)"),
        ("something_new", None, "something new"),
    ],
)
def test_metrics_have_labels_with_units(metric: str, kind: words.Kind | None, label: str) -> None:
    assert words.quantity(metric, kind).label == label


def test_words_of_the_field() -> None:
    assert words.air("rayleigh", "block", "zf") == "Rayleigh (block fading, ZF)"
    assert words.air("awgn", "none", "none") == "AWGN"
    assert words.air("sensing", "rayleigh", "none") == "sensing channel (Rayleigh hops)"
    assert words.cell("channels.radar.fading=none; train.batch=32") == "radar fading = none, batch = 32"
    assert words.cell("link.encoder.channel_uses=20; channels.down.kind=rayleigh; data.partition.alpha=0.1") == (
        "nc\u00a0=\u00a020, down: Rayleigh, alpha = 0.1"
    )
    assert words.number(-0.0001, 2) == "0.00"
    assert words.duration(161) == "2 min 41 s"
    assert words.data_volume(4_850_000) == "4.85 MB"
