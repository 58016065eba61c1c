"""A link that sends patches, from training to the table: airtime, outage, modes, attacks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tally
from safetensors.torch import load_file
from torch import Tensor

from fedsem import run
from fedsem.channels.channel import air_gain
from fedsem.checks import resolve
from fedsem.errors import OutputError, ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.airtime import airtime, most_patches
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import Mode, TrainedLink
from fedsem.federation.job import Job
from fedsem.federation.state import owner
from fedsem.link import Transmission, Transmitter
from fedsem.models.mae_encoder import Choice, MaeEncoder, MaeOptions
from fedsem.plan import Plan, scenario_text
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.stages import plans_of, prepare
from fedsem.store import Store
from fedsem.streams import Stream
from fedsem.training import ReceiverTask, initial_parameters, train_receiver
from fedsem.wanted import weights_of

BASE: dict[str, Any] = {
    "schema": 1,
    "name": "patches",
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digit_scenes", "train_scenes": 24, "test_scenes": 10},
    "link": {"encoder": {"kind": "mae", "scorer": "small"}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {
        "picture": {"kind": "reconstruction", "error": "l1", "ssim": True, "weight": 10},
        "mask": {"kind": "segmentation"},
        "points": {"kind": "keypoints"},
        "label": {"kind": "classification"},
        "objects": {"kind": "detection"},
    },
    "receivers": {
        "users": {
            "count": 2,
            "tasks": ["picture", "mask", "points", "label", "objects"],
            "channel": "down",
            "decoder": "group",
        }
    },
    "train": {"batch": 6},
    "federation": {"rounds": 1},
    "evaluation": {
        "draws": {"attack": 1, "score": 1},
        "baselines": False,
        "samples": 1,
        "grids": [
            {"snr_db": [10], "mask_ratio": [0.4, 0.8], "selection": ["score", "random", "variance"]},
            {"snr_db": [10], "selection": ["original"]},
        ],
    },
}


def scenario(**changes: Any) -> dict[str, Any]:
    return {**BASE, **changes}


def encoder(**options: Any) -> dict[str, Any]:
    return {"link": {"encoder": {"kind": "mae", "scorer": "small", **options}}}


ONE = {"picture": {"kind": "reconstruction"}}
USER = {"user": {"count": 1, "tasks": ["picture"], "channel": "down"}}


def plan_of(**changes: Any) -> Plan:
    return resolve(check_scenario(scenario(**changes)))


def link_of(**changes: Any) -> TrainedLink:
    """An untrained link of one reconstruction, with changes."""
    bare = {"draws": {"attack": 1, "score": 1}, "baselines": False}
    plan = plan_of(**{"tasks": ONE, "receivers": USER, "evaluation": bare, **changes})
    shared, decoders = initial_parameters(plan, 0)
    owned = {(r.id, b): (owner(plan, r, b), decoders[b.key]) for r in plan.receivers for b in r.branches}
    return TrainedLink.build(plan, 0, shared, owned)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(BASE, out=tmp_path_factory.mktemp("results"))


def test_every_task_trains_and_is_measured(results: Any) -> None:
    table: pd.DataFrame = results.table
    losses = table[(table.stage == "federate") & (table.metric == "train_loss")]
    assert set(losses.task) == {"picture", "mask", "points", "label"}
    measured = table[(table.stage == "evaluate") & (table.selection == "score")]
    told = {task: set(rows.metric) for task, rows in measured.groupby("task")}
    assert {"mse", "psnr_db", "ssim", "masked_mse", "mean_colour_masked_mse", "mse_vs_random"} <= told["picture"]
    assert {"f1", "iou", "detection_accuracy", "ap", "ap50", "ap75", "ap50_vs_random"} <= told["objects"]
    assert {"dice", "iou"} <= told["mask"]
    assert {"pck", "keypoint_precision", "heat_mse"} <= told["points"]
    assert "accuracy" in told["label"]
    assert (measured.transport == "digital").all()
    assert set(measured.mask_ratio) == {0.4, 0.8}
    assert set(measured.kept) == {118.0, 39.0}
    assert (measured.outage == 0).all()


def test_ray_gives_the_same_table_as_the_local_engine(results: Any, tmp_path: Path) -> None:
    """Patches through the federation's own engine: a scorer that is averaged, decoders of a group, frozen networks."""
    on_ray = run(BASE, ["compute.engine=ray"], out=tmp_path)
    same = [column for column in results.table if column != "run_id"]
    pd.testing.assert_frame_equal(on_ray.table[same], results.table[same], check_exact=True)


def test_bits_are_those_of_what_is_sent(results: Any) -> None:
    """Features of the kept patches and the class token at 8 bits, the mask's number, and the quantiser's range."""
    rows = results.table[(results.table.stage == "evaluate") & (results.table.mask_ratio == 0.8)]
    mask = (math.comb(196, 39) - 1).bit_length()
    assert set(rows.bits.dropna()) == {40 * 128 * 8 + mask + 64}
    rate = math.log2(1 + 10)
    np.testing.assert_allclose(rows.latency_s.dropna().astype(float), rows.bits.dropna().astype(float) / (1e6 * rate))
    nominal = 224 * 224 * 3 * 8 * 0.2 / (1e6 * rate)
    np.testing.assert_allclose(rows.nominal_latency_s.dropna().astype(float), nominal)


def test_the_original_has_no_error(results: Any) -> None:
    rows = results.table[(results.table.selection == "original") & (results.table.task == "picture")]
    assert float(rows[rows.metric == "mse"].value.iloc[0]) == 0
    assert float(rows[rows.metric == "ssim"].value.iloc[0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("other", ["random", "variance"])
def test_differences_to_other_choices_are_those_of_the_rows(results: Any, other: str) -> None:
    rows = results.table[(results.table.stage == "evaluate") & (results.table.mask_ratio == 0.4)]

    def value(selection: str, metric: str) -> float:
        return float(
            rows[(rows.selection == selection) & (rows.metric == metric) & (rows.task == "objects")].value.iloc[0]
        )

    for metric in ("f1", "ap50"):
        assert value("score", f"{metric}_vs_{other}") == pytest.approx(
            value("score", metric) - value(other, metric), abs=1e-9
        )
    assert not (rows[rows.selection == "random"].metric.str.contains("_vs_")).any()


def test_the_report_shows_patches_and_curves(results: Any) -> None:
    drawn = {path.stem for path in (results.folder / "figures").glob("*.png")}
    assert {"patches", "detection_vs_mask_ratio", "reconstruction_vs_mask_ratio", "segmentation_vs_mask_ratio"} <= drawn


def test_a_metric_that_cannot_be_measured_is_explained(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS needs weights that cannot be shipped: its column is empty, and the report says why."""
    assert results.unmeasured() == []
    tree = {**results.scenario, "tasks": {"picture": {"kind": "reconstruction", "lpips": True}}}
    monkeypatch.setitem(results.__dict__, "scenario", tree)  # a cached property
    assert "AlexNet" in results.warnings()[-1]


def test_frozen_networks_are_no_parameters_that_travel(results: Any) -> None:
    rows = results.table[(results.table.stage == "federate") & results.table.bytes_up.notna()]
    plan = plan_of()
    shared, decoders = initial_parameters(plan, 0)
    assert decoders["objects@down"] == {}
    assert decoders["picture@down"] == {}
    size = sum(v.numel() * 4 for part in (shared, *decoders.values()) for v in part.values())
    assert set(rows.bytes_up) == {2 * size}
    assert size < 2e6  # without the MAE's 5.6 MB and the detector's 4.1 MB


def test_a_latency_budget_decides_how_many_patches_are_sent() -> None:
    """[S0] III-B at 0.15 s and 1 MHz with pixels, over AWGN: k(SNR) by the formula."""
    link = link_of(**encoder(payload="pixels", latency_budget_s=0.15))
    air, listener = Air(link), link.listeners[0]
    counts = []
    for snr_db in (-20.0, 0.0, 10.0, 25.0):
        time = airtime(link, air, listener, snr_db)
        bits = 0.15e6 * np.log2(1 + 10 ** (snr_db / 10))
        assert float(time.bits.max()) <= bits
        counts.append(int(time.received[0, 0]))
        assert int(time.sent[0, 0]) == counts[-1]
        if counts[-1]:
            assert bool(time.arrived.all())
            assert float(time.latency_s.max()) <= 0.15 + 1e-9
    # 6,144 bits a patch: 2, 24 and 84 patches and the mask's bits; nothing at -20 dB would be 0.3 of a patch.
    assert counts == [0, 24, 84, 196]


def test_an_outage_shows_nothing_of_the_image() -> None:
    link = link_of(**encoder(payload="pixels", latency_budget_s=0.15))
    scores = Scorer(link, Air(link)).score(list(link.listeners), [-20.0], {})[0]
    mse = tally(next(iter(scores.values())), "mse")
    encoding = link.transmitter.encoder
    assert isinstance(encoding, MaeEncoder)
    blank = (link.images - encoding.blank).square().mean((1, 2, 3))
    np.testing.assert_allclose(mse.numerator / mse.denominator, blank.double(), rtol=1e-5)
    assert airtime(link, Air(link), link.listeners[0], -20.0).arrived.float().mean() == 0


@pytest.mark.parametrize("transport", ["analog", "digital"])
def test_where_not_even_one_patch_is_sent_nothing_is_seen(transport: str) -> None:
    link = link_of(**encoder(transport=transport, mask_ratio=0.999))
    air, listener = Air(link), link.listeners[0]
    time = airtime(link, air, listener, 10.0)
    assert not bool(time.arrived.any())
    mse = tally(next(iter(Scorer(link, air).score([listener], [10.0], {})[0].values())), "mse")
    encoding = link.transmitter.encoder
    assert isinstance(encoding, MaeEncoder)
    blank = (link.images - encoding.blank).square().mean((1, 2, 3))
    np.testing.assert_allclose(mse.numerator / mse.denominator, blank.double(), rtol=1e-5)


def test_other_weights_under_the_same_name_are_another_training(tmp_path: Path) -> None:
    """A file, a folder of Hugging Face's format, and both shipped networks count, each for itself."""
    embedded = weights_of(plan_of().scenario)
    assert set(embedded) == {"mae embedded", "detector embedded"}
    folder = tmp_path / "mae"
    folder.mkdir()
    (folder / "config.json").write_text("1")
    named = check_scenario(scenario(**encoder(pretrained=str(folder))))
    before = weights_of(named)
    (folder / "config.json").write_text("2")
    assert weights_of(named)[f"mae {folder}"] != before[f"mae {folder}"]


FADES = {"down": {"kind": "rayleigh", "csi": "zf"}}


def test_over_fading_each_draw_has_its_own_number_of_patches() -> None:
    link = link_of(
        **encoder(latency_budget_s=0.02), channels=FADES, evaluation={"baselines": False, "draws": {"score": 16}}
    )
    air, listener = Air(link), link.listeners[0]
    time = airtime(link, air, listener, 5.0)
    gain = air_gain(air.score(listener).h, "complex").abs().square()[..., 0].double()
    allowed = 0.02e6 * torch.log2(1 + gain * 10**0.5)
    assert len(time.sent.unique()) > 5
    assert bool((time.bits <= allowed + 1e-6).all())
    assert torch.equal(time.arrived, time.sent > 0)  # perfect knowledge: what is sent arrives


@pytest.mark.parametrize("options", [{"csi_error_db": 3.0}, {"csi_correlation": 0.7}])
def test_a_transmitter_that_is_wrong_about_the_channel_loses_whole_images(options: dict[str, float]) -> None:
    """It sends what it believes to fit; where less does, nothing arrives. Better knowledge, fewer outages."""
    evaluation = {"baselines": False, "draws": {"score": 64}}
    shares = []
    for wrong in ({}, options):
        link = link_of(**encoder(latency_budget_s=0.02, **wrong), channels=FADES, evaluation=evaluation)
        air, listener = Air(link), link.listeners[0]
        time = airtime(link, air, listener, 10.0)
        gain = air.score(listener).h.abs().square()[..., 0].double()
        fits = time.bits <= 0.02e6 * torch.log2(1 + 10 * gain)
        assert torch.equal(time.arrived, fits & (time.sent > 0))
        shares.append(float((~time.arrived).double().mean()))
    assert shares[0] < 0.1 < shares[1] < 0.9


def test_analogue_patches_do_not_depend_on_the_channel() -> None:
    link = link_of(**encoder(transport="analog", latency_budget_s=0.005))
    assert most_patches(link, -20.0) == most_patches(link, 30.0)
    # 10,000 real uses: (1 + k) 128 + side information.
    assert most_patches(link) == 75


def test_the_table_counts_the_uses_of_an_analogue_transmission() -> None:
    link = link_of(**encoder(transport="analog"))
    points = evaluate(
        link_with(link, {"grids": [{"snr_db": [10], "mask_ratio": [0.4, 0.8]}]}), lambda done, total: None
    )
    assert [point.columns["channel_uses"] for point in points.points] == [119 * 128, 40 * 128]
    assert {point.columns["transport"] for point in points.points} == {"analog"}


def link_with(link: TrainedLink, evaluation: dict[str, Any]) -> TrainedLink:
    tree = scenario(
        **encoder(transport="analog"), tasks=ONE, receivers=USER, evaluation={"baselines": False, **evaluation}
    )
    return replace(link, plan=replace(link.plan, scenario=check_scenario(tree)))


def test_noise_hurts_analogue_features_and_leaves_digital_ones_alone() -> None:
    for transport, falls in (("analog", True), ("digital", False)):
        link = link_of(**encoder(transport=transport))
        scorer = Scorer(link, Air(link))
        found = []
        for snr_db in (20.0, -5.0):
            mse = tally(next(iter(scorer.score(list(link.listeners), [snr_db], {})[0].values())), "mse")
            found.append(mse.numerator.sum() / mse.denominator.sum())
        assert found[1] > 1.5 * found[0] if falls else found[1] == found[0]


@pytest.mark.parametrize("site", ["input", "air"])
def test_an_attack_hurts_beyond_noise(site: str) -> None:
    """PGD on the picture, through the same encoder and scorer; against Gaussian noise of the same energy."""
    link = link_of(**encoder(transport="analog"))
    air = Air(link)
    attack = find("attack", "pgd").model_validate({"steps": 4, "sites": [site], "objective": {"picture": 1}})
    problem = LinkProblem(link, air, attack, 10.0, 10.0)  # type: ignore[arg-type]
    problem.psr = 10 ** (-2.0)
    delta = attack.perturb(problem, Stream(0))  # type: ignore[attr-defined]
    noise = {name: torch.randn(value.shape, generator=Stream(1).torch()) for name, value in delta.items()}
    noise = {
        name: value
        * (delta[name].flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1)).view(-1, *[1] * (value.dim() - 1))
        for name, value in noise.items()
    }
    scorer = Scorer(link, air)
    mse = []
    for perturbation in ({}, noise, delta):
        found = tally(next(iter(scorer.score(list(link.listeners), [10.0], perturbation)[0].values())), "mse")
        mse.append(found.numerator.sum() / found.denominator.sum())
    assert mse[0] <= mse[1] * 1.05
    assert mse[2] > 1.15 * mse[1]


def test_gradients_of_an_attack_are_finite_differences() -> None:
    """At the antenna, through power, noise and the MAE's decoder."""
    link = link_of(**encoder(transport="analog"))
    attack = find("attack", "fgsm").model_validate({"sites": ["air"], "objective": {"picture": 1}})
    problem = LinkProblem(link, Air(link), attack, 10.0, 10.0)  # type: ignore[arg-type]
    start = {"air": torch.zeros_like(problem.sites["air"].clean)}
    gradient = problem.gradient(start, 0)["air"]
    along = torch.nn.functional.normalize(gradient, dim=1)
    step = 0.3
    with torch.no_grad():
        ahead = problem.objective({"air": step * along}, 0)
        behind = problem.objective({"air": -step * along}, 0)
    np.testing.assert_allclose((ahead - behind) / (2 * step), (gradient * along).sum(1), rtol=0.1)


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_through_a_quantiser_are_finite_differences_over_many_of_its_steps(bits: int) -> None:
    """Pixels that arrive are pasted back: the error is that of rounded pixels, whose slope rounding has not."""
    keys = encoder(transport="digital", payload="pixels", mask_ratio=0.0, selection="uniform", quantiser_bits=bits)
    link = link_of(**keys)
    attack = find("attack", "fgsm").model_validate({"objective": {"picture": 1}})
    problem = LinkProblem(link, Air(link), attack, 10.0, 10.0)  # type: ignore[arg-type]
    images = link.images
    generator = torch.Generator().manual_seed(0)
    delta = 0.25 * (0.5 - images).sign() * torch.rand(images.shape, generator=generator)
    gradient = problem.gradient({"input": delta}, 0)["input"]
    way = delta.sign()
    step = 0.1
    with torch.no_grad():
        ahead = problem.objective({"input": delta + step * way}, 0)
        behind = problem.objective({"input": delta - step * way}, 0)
    slope = (ahead - behind) / (2 * step)
    np.testing.assert_allclose((gradient * way).flatten(1).sum(1), slope, rtol=0.03)
    np.testing.assert_allclose((2 * delta * way).flatten(1).mean(1), slope, rtol=0.03)


def test_a_radar_senses_with_the_features_that_are_sent() -> None:
    """Silence where nothing is sent, the same in training and evaluation; a target is found where the SNR is high."""
    plan = plan_of(
        **encoder(transport="analog", mask_ratio=0.8),
        tasks={"target": {"kind": "sensing"}},
        channels={"radar": {"kind": "sensing", "fading": "none", "geometry": "monostatic"}},
        receivers={"radars": {"count": 1, "tasks": ["target"], "channel": "radar"}},
        train={"batch": 6, "snr_db": 0},
        federation={"kind": "none", "rounds": 3},
        evaluation={"draws": {"score": 8}, "baselines": False},
    )
    job = Job(scenario_text(plan.scenario), 0, Path())
    reply = train_receiver(plan, task_of(plan, job))
    decoders = {(0, plan.branches[0]): ("0", reply.decoders["target@radar"])}
    shared = {name: value + reply.delta[name] for name, value in job.state().shared.items()}
    link = TrainedLink.build(plan, 0, shared, decoders)
    right = tally(next(iter(Scorer(link, Air(link)).score(list(link.listeners), [0.0], {})[0].values())), "accuracy")
    assert right.numerator.sum() / right.denominator.sum() > 0.9
    with torch.no_grad():
        sent = link.transmitter.send(link.images, link.choice(torch.arange(len(link.images)), 39))
        frame, gated = (
            link.transmitter.waveform(sent),
            link.transmitter.send(link.images, link.choice(torch.arange(len(link.images)), 39), gates=True),
        )
    torch.testing.assert_close(frame, gated.x, atol=1e-3, rtol=1e-3)


def task_of(plan: Plan, job: Job) -> ReceiverTask:
    """What the only receiver is asked to do in the first round."""
    state = job.state()
    return ReceiverTask(
        receiver=0,
        seed=0,
        round=1,
        branches=dict.fromkeys(plan.branches, 1.0),
        indices=np.tile(np.arange(24), 6),
        shared=state.shared,
        decoders={branch.key: state.decoders[f"central/{branch.key}"] for branch in plan.branches},
    )


def test_modes_share_everything_but_the_choice() -> None:
    link = link_of()
    one, other = (link.in_mode(Mode(ratio, "random")) for ratio in (0.6, 0.8))
    index = torch.arange(4)
    first, second = one.choice(index, 78), other.choice(index, 39)
    assert first is not None
    assert second is not None
    assert first.order is not None
    assert second.order is not None
    # The best k of one order are nested.
    assert torch.equal(first.order, second.order)


def test_snrs_scored_together_are_those_scored_alone_and_paint_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over fading most numbers of patches occur at several SNRs and for several tasks: each is painted once."""
    tasks = {"picture": {"kind": "reconstruction"}, "objects": {"kind": "detection"}}
    link = link_of(
        **encoder(latency_budget_s=0.02, selection="variance"),
        channels=FADES,
        tasks=tasks,
        receivers={"user": {"count": 1, "tasks": list(tasks), "channel": "down"}},
        evaluation={"baselines": False, "draws": {"score": 16}},
    )
    painted: list[int] = []
    hear = Transmitter.hear

    def counted(self: Transmitter, received: Tensor, sent: Transmission) -> Tensor:
        painted.append(received.shape[-2])
        return hear(self, received, sent)

    monkeypatch.setattr(Transmitter, "hear", counted)
    snrs, everyone = [5.0, 8.0, 11.0], list(link.listeners)
    together = Scorer(link, Air(link)).score(everyone, snrs, {})
    at_once = sum(painted)
    for snr_db, scores in zip(snrs, together, strict=True):
        (alone,) = Scorer(link, Air(link)).score(everyone, [snr_db], {})
        assert {key: set(metrics) for key, metrics in scores.items()} == {k: set(m) for k, m in alone.items()}
        for key, metrics in scores.items():
            for name in ("mse", "f1"):
                if name in metrics:
                    one, other = tally(metrics, name), tally(alone[key], name)
                    np.testing.assert_allclose(one.numerator, other.numerator, rtol=1e-4, atol=1e-6)
                    np.testing.assert_allclose(one.denominator, other.denominator)
                    assert one.receptions == other.receptions
    assert at_once < 0.8 * (sum(painted) - at_once)


def test_a_link_ranks_the_pictures_that_it_sees() -> None:
    """By score and by variance perturbed pictures are ranked anew; chance and an oracle keep their order, which a clean
    link has too. The oracle's is that of the tasks' own losses."""
    link = link_of(**encoder(payload="pixels"))
    index = torch.arange(len(link.images))
    for name in ("score", "variance", "uniform", "random", "oracle"):
        one = link.in_mode(Mode(0.6, name))
        clean, perturbed = one.choice(index, 78), one.choice(index, 78, changed=True)
        assert clean is not None
        assert perturbed is not None
        assert clean.order is not None
        assert torch.equal(clean.order, link.orders[name])
        assert (perturbed.order is None) == (name in ("score", "variance"))
    # Of dark pictures with one bright patch that one is sent, although the clean pictures' variance is elsewhere.
    spot = torch.zeros_like(link.images)
    spot[:, :, 32:40, 48:56] = 1
    scorer = Scorer(link.in_mode(Mode(0.99, "variance")), Air(link))
    (listener,) = link.listeners
    for _, heard in scorer.receptions.heard([listener], [10.0], {"input": spot - link.images}):
        assert heard.kept is not None
        assert bool(heard.kept[:, 2 * 14 + 3].all())
    clean_order = link.orders["variance"]
    assert not bool((clean_order[:, 0] == 2 * 14 + 3).any())
    mse = {}
    for name in ("oracle", "random"):
        (scores,) = Scorer(link.in_mode(Mode(0.6, name)), Air(link)).score([listener], [10.0], {})
        found = tally(next(iter(scores.values())), "mse")
        mse[name] = found.numerator.sum() / found.denominator.sum()
    assert mse["oracle"] < 0.5 * mse["random"]


def test_receptions_over_fading_are_those_of_a_plain_loop() -> None:
    """The mean error over draws, each painted on its own from as many patches as its gain allows."""
    link = link_of(
        **encoder(latency_budget_s=0.02, selection="variance"),
        channels=FADES,
        evaluation={"baselines": False, "draws": {"score": 4}},
    )
    air, (listener,), snrs = Air(link), link.listeners, [4.0, 9.0]
    transmitter, coder = link.transmitter, link.transmitter.encoder
    assert isinstance(coder, MaeEncoder)
    gains = air_gain(air.score(listener).h, "complex").abs().square()[..., 0].double()
    for snr_db, scores in zip(snrs, Scorer(link, air).score([listener], snrs, {}), strict=True):
        found = tally(next(iter(scores.values())), "mse")
        for number, image in enumerate(link.images[:3]):
            errors = []
            for gain in gains[:, number]:
                bits = 0.02e6 * math.log2(1 + 10 ** (snr_db / 10) * float(gain))
                count = max((k for k in range(197) if k == 0 or coder.payload.digital(k) <= bits), default=0)
                picture = coder.blank.expand_as(image)
                if count:
                    with torch.no_grad():
                        sent = transmitter.send(image[None], Choice("variance", count))
                        picture = transmitter.hear(sent.x.unsqueeze(0), sent)[0, 0]
                errors.append(float((picture - image).square().mean()))
            assert found.numerator[number] / found.denominator[number] == pytest.approx(np.mean(errors), rel=1e-3)


def test_a_task_of_weight_0_trains_its_decoder_and_nothing_else() -> None:
    """The scorer of a digital link moves exactly as it does without the task, while the task's decoder learns. (Over
    the air it would meet other draws of a training SNR that is random, since all tasks draw from one stream.)"""
    after = []
    for mask in (None, {"kind": "segmentation", "weight": 0}):
        tasks = {"picture": {"kind": "reconstruction"}} | ({"mask": mask} if mask else {})
        receivers = {"user": {"count": 1, "tasks": list(tasks), "channel": "down"}}
        plan = plan_of(tasks=tasks, receivers=receivers, federation={"kind": "none", "rounds": 1})
        job = Job(scenario_text(plan.scenario), 0, Path())
        task = task_of(plan, job)
        weights = {branch: plan.task(branch).weight for branch in plan.trained_branches(plan.receivers[0])}
        after.append((job.state(), train_receiver(plan, replace(task, branches=weights))))
    (_, without), (before, beside) = after
    assert without.delta.keys() == beside.delta.keys()
    for name, moved in without.delta.items():
        assert torch.equal(moved, beside.delta[name]), name
    learnt = beside.decoders["mask@down"]
    assert any(not torch.equal(value, before.decoders["central/mask@down"][name]) for name, value in learnt.items())


OTHERWISE: dict[str, Any] = {
    "mask_ratio": 0.3,
    "selection": "random",
    "bandwidth_hz": 2e6,
    "latency_budget_s": 0.05,
    "csi_error_db": 2.0,
    "csi_correlation": 0.9,
    "image_bits": 1e6,
}
"""Another value for each option of the encoder that training is said not to read."""


@pytest.mark.parametrize("transport", ["digital", "analog"])
def test_training_does_not_read_what_it_is_said_not_to(transport: str) -> None:
    assert set(OTHERWISE) == MaeOptions.evaluation_only
    budget = {"latency_budget_s": 0.05}  # without one there is nothing that channel knowledge is for
    options: list[dict[str, Any]] = [budget, {name: value for name, value in OTHERWISE.items() if name != "mask_ratio"}]
    options += [{}, {"mask_ratio": OTHERWISE["mask_ratio"]}]
    deltas = []
    for option in options:
        plan = plan_of(
            **encoder(transport=transport, **option),
            channels={"down": {"kind": "rayleigh"}},
            tasks=ONE,
            receivers=USER,
            federation={"kind": "none", "rounds": 1},
            evaluation={},
        )
        task = task_of(plan, Job(scenario_text(plan.scenario), 0, Path()))
        deltas.append(train_receiver(plan, replace(task, indices=np.arange(6))).delta)
    for other in deltas[1:]:
        for name, value in deltas[0].items():
            assert torch.equal(value, other[name]), name


def test_what_training_does_not_read_does_not_train_again(tmp_path: Path) -> None:
    """A sweep over the latency budget is one training, one over the quantiser's bits is several."""
    for key, values, trainings in (("latency_budget_s", [0.05, 0.1], 1), ("quantiser_bits", [4, 8], 2)):
        swept = {f"link.encoder.{key}": values, "tasks.picture.ssim": [True]}
        checked = check_scenario(scenario(seeds=[0, 1], sweep=swept, evaluation={}))
        store = Store.create(checked, tmp_path / key, "cpu")
        units = prepare(checked, plans_of(checked), store, [])
        assert len({unit.job.folder for unit in units}) == 2 * trainings
        assert len({unit.evaluation for unit in units}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"link": {"encoder": {"kind": "cnn"}}}, "'tasks.mask'.*use the encoder 'mae'"),
        ({"data": {"kind": "digits"}}, "reads pictures of 224x224"),
        (
            {"tasks": {**BASE["tasks"], "objects": {"kind": "detection", "weight": 0}},
             "receivers": {"a": {"count": 1, "tasks": ["objects"], "channel": "down"},
                           "b": {"count": 1, "tasks": ["picture", "mask", "points", "label"], "channel": "down"}}},
            "all of them have weight 0, so that the shared encoder learns nothing",
        ),
        ({"train": {"augment": ["flip"]}}, "would not move with the pictures"),
        (
            encoder(pretrained={"architecture": {"patch": 15}, "training": {"steps": 5}}),
            "patches of 15 pixels do not divide",
        ),
        (encoder(pretrained="no/such/mae"), "cannot be loaded"),
        ({"link": {"encoder": {"kind": "mae"}, "power": "batch_average"}}, "patches are sent with power: per_example"),
        ({"channels": {"down": {"kind": "rayleigh", "decoder_csi": True}}}, "takes no channel estimate"),
        ({"channels": {"down": {"kind": "rayleigh", "fading": "fast"}}}, "one gain for a whole picture"),
        (
            {**encoder(latency_budget_s=0.1, csi_correlation=0.5),
             "channels": {"down": {"kind": "rician", "k_factor": 3.0}}, "evaluation": {}},
            "delay of a Rayleigh gain",
        ),
        (encoder(latency_budget_s=0.1), "remove one of the two"),
        (
            {"attacks": {"jam": {"kind": "pgd", "sites": ["air"]}},
             "evaluation": {"grids": [{"attacks": ["jam"], "snr_db": [0], "psr_db": [-10]}]}},
            "no waveform that could be disturbed",
        ),
        (
            {"attacks": {"pgd": {"kind": "pgd"}},
             "evaluation": {"grids": [{"attacks": ["pgd"], "snr_db": [0], "psr_db": [-9], "selection": ["original"]}]}},
            "a grid of its own",
        ),
        (
            {"link": {"encoder": {"kind": "cnn"}}, "data": {"kind": "digits"},
             "tasks": {"label": {"kind": "classification"}},
             "receivers": {"a": {"count": 1, "tasks": ["label"], "channel": "down"}}},
            "'cnn' sends no patches",
        ),
        (
            {"tasks": {"target": {"kind": "sensing"}}, "channels": {"radar": {"kind": "sensing"}},
             "receivers": {"radars": {"count": 1, "tasks": ["target"], "channel": "radar"}}},
            "no waveform that a target could reflect",
        ),
        (
            {"tasks": {"objects": {"kind": "detection"}, "target": {"kind": "sensing"}},
             "channels": {"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
             "receivers": {"users": {"count": 1, "tasks": ["objects", "target"],
                                     "channel": {"objects": "down", "target": "radar"}}},
             "evaluation": {"grids": [{"snr_db": [0], "selection": ["oracle"]}]},
             **encoder(transport="analog")},
            "none of those has a weight",
        ),
    ],
)  # fmt: skip
def test_impossible_scenarios_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        plan_of(**changes)
    assert isinstance(caught.value, ScenarioError) or "cannot be loaded" in str(caught.value)


def test_networks_are_trained_in_a_stage_of_their_own_and_kept(tmp_path: Path) -> None:
    """A tiny MAE and a tiny detector on the scenario's own pictures; the second run takes the same files."""
    tree = scenario(
        data={"kind": "digit_scenes", "train_scenes": 16, "test_scenes": 4, "image_size": 64},
        tasks={
            "picture": {"kind": "reconstruction"},
            "objects": {"kind": "detection", "pretrained": {"training": {"steps": 3, "batch": 4}}},
        },
        receivers={"user": {"count": 1, "tasks": ["picture", "objects"], "channel": "down"}},
        evaluation={**BASE["evaluation"], "grids": [{"snr_db": [10]}]},
        **encoder(
            pretrained={
                "architecture": {"width": 32, "layers": 1, "decoder_width": 32, "decoder_layers": 1},
                "training": {"steps": 3, "batch": 4, "passes": 1},
            }
        ),
    )
    told: list[tuple[str, str, int, int]] = []
    first = run(tree, out=tmp_path, progress=lambda *what: told.append(what))
    assert {(stage, label) for stage, label, _, _ in told if stage == "pretrain"} == {
        ("pretrain", "mae"),
        ("pretrain", "detector"),
    }
    kept = sorted(path.name for path in (first.folder / "pretrained").iterdir())
    assert [name.partition("-")[0] for name in kept] == ["detector", "mae"]
    told.clear()
    second = run(tree, out=tmp_path, progress=lambda *what: told.append(what))
    assert not any(stage == "pretrain" for stage, *_ in told)
    assert sorted(path.name for path in (second.folder / "pretrained").iterdir()) == kept
    columns = ["stage", "task", "metric", "value"]
    pd.testing.assert_frame_equal(first.table[columns], second.table[columns])
    assert json.loads((first.folder / "manifest.json").read_text())["stages"][0]["stage"] == "pretrain"


def test_a_pretraining_that_was_interrupted_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first checkpoint; the next run goes on there. While one trains, no other does."""
    monkeypatch.setattr("fedsem.pretraining.SAVED_EVERY", 2)
    tree = scenario(
        data={"kind": "digit_scenes", "train_scenes": 8, "test_scenes": 4, "image_size": 64},
        tasks=ONE,
        receivers=USER,
        **encoder(
            pretrained={
                "architecture": {"width": 32, "layers": 1, "decoder_width": 32, "decoder_layers": 1},
                "training": {"steps": 5, "batch": 4, "passes": 1},
            }
        ),
    )
    weights, stops = [], []

    def progress(done: int, total: int) -> None:
        stops.append(done)
        if interrupted and done == 2:
            with pytest.raises(OutputError, match="being trained by another run"):
                one.train(plan.scenario.data, plan.dataset, plan.device, progress)
            raise KeyboardInterrupt

    for interrupted in (False, True):
        monkeypatch.setenv("FEDSEM_DATA", str(tmp_path / str(interrupted)))
        plan = resolve(check_scenario(tree))
        (one,) = plan.wanted
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                one.train(plan.scenario.data, plan.dataset, plan.device, progress)
            assert not one.path.exists()
            interrupted = False
        stops.clear()
        one.train(plan.scenario.data, plan.dataset, plan.device, progress)
        weights.append((load_file(one.path), list(stops)))
    (whole, all_stops), (resumed, later_stops) = weights
    assert (all_stops, later_stops) == ([2, 4, 5], [4, 5])
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_scorer_learns_from_a_detector_that_does_not() -> None:
    """Detection as the only task: its own loss reaches the scorer through the painted picture."""
    tasks = {"objects": {"kind": "detection", "weight": 1}}
    plan = plan_of(
        tasks=tasks,
        receivers={"user": {"count": 1, "tasks": ["objects"], "channel": "down"}},
        federation={"kind": "none", "rounds": 1},
    )
    job = Job(scenario_text(plan.scenario), 0, Path())
    reply = train_receiver(plan, task_of(plan, job))
    assert all(bool(value.any()) for name, value in reply.delta.items() if name != "scorer.key.bias")
    assert reply.decoders == {"objects@down": {}}
    assert np.isfinite(reply.losses["objects@down"])
