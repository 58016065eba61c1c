"""Backdoors: triggers against their papers' formulas, and their success beside an unpoisoned twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fresh_link
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsem import run
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.backdoor import Side, trigger
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.tabulate import rows
from fedsem.federation import engine
from fedsem.federation.job import Job
from fedsem.hooks.poison import rotation_psr
from fedsem.registry import find
from fedsem.reporting.figures import FIGURES
from fedsem.scenario import check_scenario
from fedsem.streams import Stream


def attack(name: str, **options: Any) -> Any:
    return find("attack", name).model_validate(options)


def pictures(count: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ triggers


@pytest.mark.parametrize(
    ("corner", "lines", "columns"),
    [
        ("top_left", slice(1, 4), slice(1, 4)),
        ("top_right", slice(1, 4), slice(20, 23)),
        ("bottom_left", slice(12, 15), slice(1, 4)),
        ("bottom_right", slice(12, 15), slice(20, 23)),
    ],
)
def test_a_patch_is_a_square_in_a_corner(corner: str, lines: slice, columns: slice) -> None:
    images = pictures()
    got = attack("patch", size=3, margin=1, corner=corner, value=0.75).triggered(images, Stream(0))
    expected = images.numpy().copy()
    expected[:, :, lines, columns] = 0.75
    np.testing.assert_array_equal(got.numpy(), expected)
    assert not torch.equal(got, images)


@given(st.floats(0.01, 1), st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_a_blend_is_a_convex_combination_with_one_key(alpha: float, seed: int) -> None:
    """Chen et al.: (1 - alpha) u + alpha k; black and white images give alpha k and the rest."""
    made = attack("blend", alpha=alpha)
    dark = made.triggered(torch.zeros(2, 3, 8, 8), Stream(seed))
    light = made.triggered(torch.ones(2, 3, 8, 8), Stream(seed))
    torch.testing.assert_close(light - dark, torch.full_like(dark, 1 - alpha), rtol=1e-5, atol=1e-6)
    assert torch.equal(dark[0], dark[1])
    assert 0 <= float(dark.min()) <= float(dark.max()) <= alpha
    assert float(dark.std()) == pytest.approx(alpha / math.sqrt(12), rel=0.25)


def test_sig_is_the_papers_sinusoid() -> None:
    """Barni et al., section 3: v(i, j) = Delta sin(2 pi j f / m), 1 <= j <= m."""
    grey = torch.full((1, 3, 16, 24), 0.5)
    added = (attack("sig").poisoned(grey, torch.zeros(1), 0, 1, Stream(0)) - grey)[0].numpy()
    for column in range(24):
        expected = 20 / 255 * math.sin(2 * math.pi * (column + 1) * 6 / 24)
        np.testing.assert_allclose(added[:, :, column], expected, atol=1e-6)
    stronger = attack("sig", test_amplitude=0.3)
    np.testing.assert_allclose(stronger.poisoned(grey, torch.zeros(1), 0, 1, Stream(0)).numpy()[0] - 0.5, added)
    assert float((stronger.triggered(grey, Stream(0)) - grey).max()) == pytest.approx(0.3, rel=1e-5)


def test_wanet_warps_by_a_smooth_field_of_unit_mean() -> None:
    """Nguyen and Tran, section 3.2: P is normalised before it is enlarged; a ramp shows where pixels come from."""
    made = attack("wanet", strength=1.5)
    side = 32
    field = made.field(side, side, Stream(3)).numpy()
    ramp = torch.linspace(-1, 1, side).expand(1, 3, side, side)
    ramp = (torch.cat([ramp[:, :1], ramp[:, 1:2].transpose(2, 3), ramp[:, 2:]], 1) + 1) / 2
    got = made.triggered(ramp, Stream(3))[0].numpy() * 2 - 1
    places = np.linspace(-1, 1, side)
    expected_x = np.clip(places[None] + 1.5 * field[..., 0] / side, -1, 1)
    expected_y = np.clip(places[:, None] + 1.5 * field[..., 1] / side, -1, 1)
    np.testing.assert_allclose(got[0], expected_x, atol=2e-6)
    np.testing.assert_allclose(got[1], expected_y, atol=2e-6)
    # Bicubic through the control points, corners aligned: those are in the field as they were drawn.
    control = made.field(4, 4, Stream(3)).numpy()
    np.testing.assert_allclose(np.abs(control).mean(), 1.0, rtol=1e-5)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    np.testing.assert_allclose(field[corners], control[corners], atol=1e-5)


def test_wanets_noise_mode_warps_elsewhere_and_by_a_pixel_at_most() -> None:
    made = attack("wanet", strength=0.001)
    ramp = ((torch.linspace(-1, 1, 32) + 1) / 2).expand(2, 3, 32, 32)
    got = made.covered(ramp, torch.tensor([4, 5]), Stream(0)) * 2 - 1
    shift = (got - (ramp * 2 - 1))[:, 0, :, 1:-1] * 32
    assert shift.abs().max() <= 1.05
    assert float(shift.std()) == pytest.approx(1 / math.sqrt(3), rel=0.1)  # uniform in [-1, 1]
    assert not torch.equal(got[0], got[1])


@given(st.integers(1, 9))
def test_the_parts_of_a_distributed_trigger_join_to_the_whole(parts: int) -> None:
    made = attack("dba")
    dark = torch.zeros(1, 3, 32, 32)
    whole = made.triggered(dark, Stream(0))
    pieces = [made.poisoned(dark, torch.zeros(1), part, parts, Stream(0)) for part in range(parts)]
    # Disjoint: their sum is the whole; a fifth holds what the first does.
    assert torch.equal(torch.stack(pieces[:4]).sum(0), whole)
    for number, piece in enumerate(pieces[4:]):
        assert torch.equal(piece, pieces[number % 4])
    # Xie et al., CIFAR-10: bars of 6 with gaps of 3.
    expected = np.zeros((32, 32))
    for row, column in ((0, 0), (0, 9), (4, 0), (4, 9)):
        expected[row, column : column + 6] = 1
    np.testing.assert_array_equal(whole[0, 1].numpy(), expected)


@pytest.mark.parametrize("name", ["patch", "blend", "sig", "wanet", "dba"])
def test_triggered_images_stay_images_and_nothing_is_changed_in_place(name: str) -> None:
    images = torch.cat([pictures(4, 32, 32), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    before = images.clone()
    made = attack(name)
    for got in (made.triggered(images, Stream(1)), made.poisoned(images, torch.arange(6), 0, 2, Stream(1))):
        assert got.shape == images.shape
        assert 0 <= float(got.min()) <= float(got.max()) <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("waveform", {"psr_db": -13.0}, lambda link: 10**-1.3),
        ("phase_shift", {"degrees": 60.0}, lambda link: 1.0),  # |e^{j pi / 3} - 1| = 1
        (
            "patch",
            {"size": 5},
            lambda link: psr_of_a_white_square(link.images, 5),
        ),
    ],
)
def test_the_psr_of_a_trigger_is_its_energy_over_the_signals(name: str, options: dict[str, Any], expected: Any) -> None:
    link = fresh_link({"kind": "awgn"}, symbols="complex")
    scorer = scorer_of(link)
    delta, psr = trigger(attack(name, **options), Side(link, scorer))
    assert psr == pytest.approx(expected(link), rel=1e-4)
    assert set(delta) == {{"waveform": "air", "phase_shift": "phase", "patch": "input"}[name]}


def test_a_half_turn_is_four_times_the_signal() -> None:
    assert rotation_psr(math.pi) == pytest.approx(4)
    assert rotation_psr(math.radians(90)) == pytest.approx(2)


# ------------------------------------------------------------------------------------------------ success


BACKDOOR: dict[str, Any] = {
    "schema": 1,
    "name": "backdoor",
    "seeds": [3],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 150, "test_images": 40, "partition": {"kind": "iid"}},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"users": {"count": 5, "tasks": ["label"], "channel": "down", "decoder": "group"}},
    "train": {"batch": 16, "snr_db": 10},
    "federation": {"rounds": 1},
    "attacks": {"patch": {"kind": "patch", "fraction": 0.4}, "flip": {"kind": "label_flip"}},
    "use": {"attacks": ["patch"]},
    "evaluation": {
        "draws": {"attack": 1, "score": 3},
        "samples": 2,
        "baselines": False,
        "grids": [{"attacks": ["none", "patch"], "snr_db": [0, 10]}],
    },
}


def rows_of(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    table = table[table["seed"] == 3]
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def test_success_is_the_difference_to_a_twin_that_cells_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cells, three of them poisoned, and the fourth is their twin: four trainings, none twice."""
    trained: list[str] = []

    def federated(jobs: Sequence[Job], *rest: Any) -> Any:
        trained.extend(job.folder.name for job in jobs)
        return engine.federated(jobs, *rest)

    monkeypatch.setattr("fedsem.stages.federated", federated)
    sweep = {"use.attacks": [["patch"], ["flip"], ["patch", "flip"], []]}
    results = run({**BACKDOOR, "sweep": sweep}, out=tmp_path)
    assert len(trained) == len(set(trained)) == 4
    table = results.table
    measured = rows_of(table, stage="evaluate")
    triggered = measured[measured["attack"] == "patch"]
    cells = set(triggered["cell"])
    assert cells == {'use.attacks=["patch"]', 'use.attacks=["patch", "flip"]', "use.attacks=[]"}
    for (cell, snr), found in triggered.groupby(["cell", "snr_db"]):
        value = found.set_index("metric")["value"]
        twin = rows_of(table, stage="twin", cell=cell, attack="patch", snr_db=snr).set_index("metric")["value"]
        if cell == "use.attacks=[]":
            assert twin.empty
            assert value["reached_vs_twin"] == value["accuracy_vs_twin"] == 0
            continue
        assert value["reached_vs_twin"] == pytest.approx(value["reached"] - twin["reached"])
        # The twin is the unpoisoned cell: the same number, over the same draws.
        plain = rows_of(measured, cell="use.attacks=[]", attack="patch", snr_db=snr).set_index("metric")["value"]
        assert twin["reached"] == plain["reached"]
        assert twin["accuracy"] == plain["accuracy"]
    clean = rows_of(measured, attack="none", cell='use.attacks=["flip"]', snr_db=10).set_index("metric")["value"]
    plain = rows_of(measured, attack="none", cell="use.attacks=[]", snr_db=10).set_index("metric")["value"]
    assert clean["accuracy_vs_twin"] == pytest.approx(clean["accuracy"] - plain["accuracy"])
    assert triggered["psr_db"].isna().all()
    assert triggered["psr_achieved_db"].nunique() == 1
    assert set(table[table["stage"] == "twin"]["adversary_fraction"]) == {0.0}
    figure = FIGURES["attacked_training"]
    assert not figure.lacks(table, pd.DataFrame())
    drawn = figure.draw(table, pd.DataFrame())
    labels = {label.get_text() for axes in drawn.axes for label in axes.get_yticklabels()}
    assert any("patch" in label and "dB" in label for label in labels)
    dots = [float(np.asarray(line.get_xdata())[0]) for line in drawn.axes[0].lines]
    for value in triggered[triggered["metric"] == "reached"].query("snr_db == 10")["value"]:
        assert any(dot == pytest.approx(100 * value) for dot in dots)
    # One SNR, which the title names; what there is no room for is told.
    assert all("SNR 10 dB" in axes.get_title(loc="left").replace("\u00a0", " ") for axes in drawn.axes)
    monkeypatch.setattr("fedsem.reporting.attacked_training.MOST_LINES", 1)
    words = " ".join(text.get_text() for text in figure.draw(table, pd.DataFrame()).texts).replace("\n", " ")
    assert "5 more lines are in the table" in words.replace("\u00a0", " ")
    # Resumed, it is all there; in another run, it is taken.
    again = run({**BACKDOOR, "sweep": sweep}, out=tmp_path / "again", reuse=[results.folder])
    pd.testing.assert_frame_equal(again.table.drop(columns="run_id"), table.drop(columns="run_id"))
    assert len(trained) == 8


def test_a_run_without_poison_has_no_twin(tmp_path: Path) -> None:
    tree = {**BACKDOOR, "use": {"attacks": []}}
    tree["evaluation"] = {**BACKDOOR["evaluation"], "grids": [{"snr_db": [10]}]}
    results = run(tree, out=tmp_path)
    assert not results.table["metric"].str.endswith("_vs_twin").any()
    assert len(list((results.folder / "checkpoints").iterdir())) == 1


def test_success_of_a_link_that_was_not_poisoned_is_nothing() -> None:
    """Even of a trigger that does all by itself: white images are all the same class."""
    grids = [{"attacks": ["none", "flood"], "snr_db": [10]}]
    link = fresh_link(
        {"kind": "awgn"},
        images=20,
        receivers={"all": {"count": 2, "tasks": ["job"], "channel": "air"}},
        attacks={"flood": {"kind": "patch", "size": 32, "targets": {"job": 4}}},
        evaluation={"draws": {"attack": 1, "score": 4}, "samples": 0, "baselines": False, "grids": grids},
    )
    points = evaluate(link, lambda done, total: None, link).points
    assert [point.twin for point in points] == list(range(len(points)))
    assert {point.columns["attack"] for point in points} == {"none", "flood"}
    for row in rows([points], [0]):
        assert not row["metric"].endswith("_vs_twin") or row["value"] == row["ci_low"] == row["ci_high"] == 0


def test_every_kind_of_goal_is_learnt_and_measured(tmp_path: Path) -> None:
    """A class, a chosen picture, and 'no target', turned symbols, over a fading channel that knows its phase."""
    tree = {
        **BACKDOOR,
        "link": {"encoder": {"kind": "cnn", "channel_uses": 8}, "symbols": "complex"},
        "channels": {"down": {"kind": "rayleigh", "csi": "mmse"}, "radar": {"kind": "sensing", "fading": "none"}},
        "tasks": {
            "label": {"kind": "classification"},
            "picture": {"kind": "reconstruction"},
            "target": {"kind": "sensing"},
        },
        "receivers": {
            "users": {
                "count": 3,
                "tasks": ["label", "picture", "target"],
                "channel": {"label": "down", "picture": "down", "target": "radar"},
            }
        },
        "attacks": {
            "turn": {"kind": "phase_shift", "degrees": 90, "targets": {"label": 2, "picture": 7, "target": 0}},
            "hum": {"kind": "waveform", "targets": {"label": 2, "target": 0}},
        },
        "use": {"attacks": ["turn", "hum"]},
        "evaluation": {
            **BACKDOOR["evaluation"],
            "grids": [{"attacks": ["none", "turn", "hum"], "snr_db": [10], "sensing_snr_db": [5]}],
        },
    }
    table = rows_of(run(tree, out=tmp_path).table, stage="evaluate")
    for name, tasks in (("turn", {"label", "picture", "target"}), ("hum", {"label", "target"})):
        reached = rows_of(table, attack=name, metric="reached_vs_twin")
        assert set(reached["task"]) == tasks
        assert reached["ci_low"].notna().all()
    turned = rows_of(table, attack="turn")
    np.testing.assert_allclose(turned["psr_achieved_db"].astype(float), 10 * math.log10(2), rtol=1e-6)
    np.testing.assert_allclose(rows_of(table, attack="hum")["psr_achieved_db"].astype(float), -10, atol=1e-5)
    assert set(turned["sensing_snr_db"].dropna()) == {5.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"grids": [{"attacks": ["flip"], "snr_db": [10]}]}},
            r"'evaluation\.grids\.0\.attacks': 'flip' acts in training; name it in 'use\.attacks'",
        ),
        (
            {"evaluation": {"grids": [{"attacks": ["patch", "noise"], "snr_db": [10]}]}},
            r"'evaluation\.grids\.0': attacks need 'psr_db'",
        ),
    ],
)
def test_grids_that_name_poisons_in_vain_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        resolve(check_scenario({**BACKDOOR, **changes}))


def test_a_small_backdoor_works_through_the_whole_path(tmp_path: Path) -> None:
    """Few images, one of two receivers malicious: most of what bears the patch goes to its class."""
    tree = {
        **BACKDOOR,
        "data": {"kind": "digits", "train_images": 400, "test_images": 100, "partition": {"kind": "iid"}},
        "receivers": {"users": {"count": 2, "tasks": ["label"], "channel": "down", "decoder": "group"}},
        "link": {"encoder": {"kind": "cnn", "channel_uses": 20, "dropout": 0.0}},
        "attacks": {"patch": {"kind": "patch", "size": 8, "fraction": 0.5, "targets": {"label": 3}}},
        "train": {"batch": 16, "epochs": 3, "optimizer": {"kind": "adam", "lr": 2e-3}, "snr_db": 15},
        "federation": {"rounds": 3},
    }
    table = rows_of(run(tree, out=tmp_path).table, stage="evaluate", snr_db=10)
    value = table.set_index(["attack", "metric"])["value"]
    assert value["patch", "reached_vs_twin"] > 0.5
    assert value["none", "accuracy"] > 0.5


def psr_of_a_white_square(images: Tensor, size: int) -> float:
    """Mean over images of sum (1 - u)^2 over the square, over ||u||^2."""
    u = images.double().numpy()
    return float(np.mean(((1 - u[..., -size:, -size:]) ** 2).sum((1, 2, 3)) / (u**2).sum((1, 2, 3))))


def scorer_of(link: Any) -> Scorer:
    return Scorer(link, Air(link))
