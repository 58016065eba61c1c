"""What leaks: eavesdroppers, and gradients that are turned back into images."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_LINK, changed, fresh_link, head, small_plan, tally
from torch import Tensor, nn

from fedsem import registry
from fedsem.attacks.eavesdropper import Eavesdropper
from fedsem.attacks.gradient_inversion import (
    GradientInversion,
    Step,
    cosine_distance,
    matched,
    single_step,
    total_variation,
)
from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.leakage import ExposedLink, leaking, measure_leakage, steps
from fedsem.evaluation.point import Point, load_points, save_points
from fedsem.evaluation.tabulate import rows
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.leakage import Leak
from fedsem.models.encoder import FixedLength, ImageFormat
from fedsem.plan import Plan
from fedsem.registry import register
from fedsem.reporting import figures, summary, table, words
from fedsem.reporting.sample_table import read_samples, write_samples
from fedsem.scenario import check_scenario
from fedsem.streams import Stream
from fedsem.tasks.task import Share
from fedsem.training import initial_parameters

GROUP = {"all": {"count": 2, "tasks": ["label"], "channel": "down", "decoder": "group"}}
FEDERATED: dict[str, Any] = {
    **SHARED_LINK,
    "data": {"kind": "digits", "train_images": 60, "test_images": 12},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": GROUP,
    "federation": {"kind": "flower", "rounds": 3},
}
EVE = {"kind": "eavesdropper", "channel": "down", "task": "label"}
INVERSION = {"kind": "gradient_inversion"}


class OneLayer(FixedLength):
    """A dense layer and nothing else: what it leaks is known in closed form."""

    def build(self, images: ImageFormat) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(images.shape)), self.channel_uses))


@pytest.fixture(autouse=True, scope="module")
def _one_layer_is_known() -> Iterator[None]:
    """Only here: other tests count what is registered."""
    register("encoder", "one_layer")(OneLayer)
    yield
    del registry._registry["encoder"]["one_layer"]


def value(share: Share) -> float:
    return float(share.numerator.sum() / share.denominator.sum())


def with_reserve(link: TrainedLink, images: int) -> TrainedLink:
    """The link with some of its training images in an eavesdropper's hands too."""
    data = link.plan.dataset
    own = data.train.take(np.arange(images))
    return replace(link, plan=replace(link.plan, dataset=replace(data, reserve=own)))


def eavesdrop(link: TrainedLink, snrs: list[float], **options: Any) -> dict[tuple[str, float | None], Leak]:
    attack = Eavesdropper.model_validate({"channel": "down", **options})
    leaks = attack.measure(ExposedLink(link, snrs), Stream(link.seed).child("eve"))
    return {(leak.columns["decoder"], leak.columns.get("snr_db")): leak for leak in leaks}


def the_step(plan: Plan, batch: int, number: int = 1, receiver: int = 0) -> Step:
    shared, decoders = initial_parameters(plan, 0)
    held = plan.receivers[receiver]
    own = {branch.key: decoders[branch.key] for branch in plan.trained_branches(held)}
    return Step(single_step(plan, batch), held, 0, number, shared, own)


def images_of(plan: Plan, indices: Tensor) -> tuple[Tensor, Tensor]:
    held = plan.train_examples.at(indices)
    return held.images.float() / 255, held.labels


# ------------------------------------------------------------------------------------------------- eavesdropper


@pytest.fixture(scope="module")
def exposed(trained_link: TrainedLink) -> TrainedLink:
    return with_reserve(trained_link, 600)


def test_an_eavesdropper_hears_nothing_below_the_noise_and_as_much_as_receivers_above_it(
    exposed: TrainedLink,
) -> None:
    """At -60 dB its decoder was trained on noise: chance, and the mean image. At the receivers' own SNR over their own
    channel it does what their decoder does."""
    grid = {"draws": {"score": 8}, "baselines": False, "samples": 0, "grids": [{"snr_db": [10]}]}
    clean = evaluate(changed(exposed, evaluation=grid), lambda done, total: None).points
    meant = {str(point.columns["task"]): point.metrics for point in clean}
    read = eavesdrop(exposed, [-60.0, 10.0], task="label", epochs=20, batch=64)
    chance = value(read["majority_class", None].metrics["accuracy"])
    assert value(read["eavesdropper", -60.0].metrics["accuracy"]) == pytest.approx(0.1, abs=0.04)
    assert chance == pytest.approx(0.1, abs=0.02)
    legitimate = tally(meant["label"], "accuracy")
    assert value(read["eavesdropper", 10.0].metrics["accuracy"]) == pytest.approx(
        legitimate.numerator.sum() / legitimate.denominator.sum(), abs=0.03
    )
    seen = eavesdrop(exposed, [-60.0, 10.0], task="picture", epochs=20, batch=64)
    mean = value(seen["mean_image", None].metrics["psnr_db"])
    assert value(seen["eavesdropper", -60.0].metrics["psnr_db"]) == pytest.approx(mean, abs=0.2)
    legitimate = tally(meant["picture"], "psnr_db")
    there = legitimate.numerator.sum() / legitimate.denominator.sum()
    assert abs(there - value(seen["eavesdropper", 10.0].metrics["psnr_db"])) < 0.8
    assert there > mean + 3


def test_the_guess_is_the_mean_of_its_images_and_their_most_common_class(exposed: TrainedLink) -> None:
    own, test = exposed.plan.dataset.reserve, exposed.plan.dataset.test
    assert own is not None
    seen = eavesdrop(exposed, [], task={"kind": "reconstruction"})["mean_image", None].metrics["mse"]
    mean = own.images.mean(0) / 255
    assert value(seen) == pytest.approx(np.square(test.images / 255 - mean).mean(), rel=1e-5)
    read = eavesdrop(exposed, [], task={"kind": "classification"})["majority_class", None].metrics["accuracy"]
    assert value(read) == pytest.approx(np.mean(test.labels == np.bincount(own.labels).argmax()))


def test_what_an_eavesdropper_learns_does_not_depend_on_the_test_images(
    exposed: TrainedLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Mapping[str, Tensor]] = []
    original = Eavesdropper.learn

    def learn(self: Eavesdropper, *args: Any) -> nn.Module:
        decoder = original(self, *args)
        learnt.append({name: value.clone() for name, value in decoder.state_dict().items()})
        return decoder

    monkeypatch.setattr(Eavesdropper, "learn", learn)
    for link in (head(exposed, 20), head(exposed, 11)):
        eavesdrop(link, [5.0], task="label", epochs=1)
    one, other = learnt
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_reserve_holds_no_test_image_and_none_that_a_receiver_has() -> None:
    plan = small_plan(data={"kind": "digits", "reserve": 100})
    own = plan.dataset.reserve
    assert own is not None
    assert len(own) + len(plan.dataset.train) == 1438
    held = {image.tobytes() for image in own.images}
    assert not held & {image.tobytes() for image in plan.dataset.test.images}
    assert not held & {image.tobytes() for image in plan.dataset.train.images}


def test_an_eavesdropper_meets_the_same_air_at_every_snr_and_in_every_run(exposed: TrainedLink) -> None:
    few = head(exposed, 30)
    alone = eavesdrop(few, [5.0], task="label", epochs=2)["eavesdropper", 5.0]
    among = eavesdrop(few, [0.0, 5.0, 10.0], task="label", epochs=2)["eavesdropper", 5.0]
    assert torch.equal(alone.metrics["accuracy"].numerator, among.metrics["accuracy"].numerator)
    # One decoder for all SNRs: at a hundred times the noise the same draws are received worse.
    one = eavesdrop(few, [-10.0, 10.0], task="label", epochs=5, train_snr_db={"uniform": [-10, 10]})
    assert one["eavesdropper", -10.0].columns["train_snr_db"] == "-10..10"
    worse, better = (value(one["eavesdropper", snr].metrics["accuracy"]) for snr in (-10.0, 10.0))
    assert worse < better


def test_an_eavesdropper_has_a_channel_of_its_own(exposed: TrainedLink) -> None:
    few = head(exposed, 40)
    own = {"kind": "rayleigh", "csi": "mmse", "decoder_csi": True}
    faded = eavesdrop(few, [5.0], task="label", epochs=5, channel=own)["eavesdropper", 5.0]
    assert (faded.columns["channel"], faded.columns["fading"], faded.columns["csi"]) == ("rayleigh", "block", "mmse")
    still = eavesdrop(few, [5.0], task="label", epochs=5)["eavesdropper", 5.0]
    assert value(faded.metrics["accuracy"]) < value(still.metrics["accuracy"])


# ------------------------------------------------------------------------------------------ gradient inversion


@pytest.mark.parametrize(
    ("channel", "tasks"),
    [({"kind": "awgn"}, ["label"]), ({"kind": "rayleigh", "csi": "mmse"}, ["label", "picture"])],
    ids=["awgn", "rayleigh"],
)
def test_the_gradient_that_the_server_computes_is_the_update_that_the_receiver_sends(
    channel: dict[str, Any], tasks: list[str]
) -> None:
    """The receiver's own training, with its channel draws, random SNRs, dropout and order, is the peer."""
    plan = small_plan(
        **{key: FEDERATED[key] for key in ("data", "federation")},
        channels={"down": channel},
        tasks={"label": {"kind": "classification", "weight": 2}, "picture": {"kind": "reconstruction"}},
        receivers={
            "all": {"count": 2, "tasks": tasks, "channel": "down", "decoder": "group"},
            "rest": {"count": 1, "tasks": ["label", "picture"], "channel": "down", "decoder": "group"},
        },
        train={"draws": 3, "snr_db": {"uniform": [0, 20]}},
    )
    step, indices = the_step(plan, 4), torch.tensor([3, 1, 20, 8])
    update, order = step.update(indices)
    images, labels = images_of(plan, indices[order])
    knows_all = GradientInversion(batch=4, knows_channel=True, knows_dropout=True)
    gradient = [part.detach() for part in step.model(knows_all, 4, Stream(0))(images, labels)]
    for seen, computed in zip(update, gradient, strict=True):
        torch.testing.assert_close(seen, computed, atol=2e-6, rtol=1e-3)
    assert float(cosine_distance(gradient, update)) < 1e-5
    # Other images, and a server that knows less, are further away.
    swapped = step.model(knows_all, 4, Stream(0))(images.flip(0), labels)
    assert cosine_distance(swapped, update).item() > 0.01
    for known in ({"knows_channel": True}, {"knows_dropout": True}):
        less = step.model(GradientInversion(batch=4, **known), 4, Stream(0))(images, labels)
        assert cosine_distance(less, update).item() > 0.01


def one_layer() -> Plan:
    return resolve(
        check_scenario(
            {
                **FEDERATED,
                "link": {"encoder": {"kind": "one_layer", "channel_uses": 64}},
                "train": {"snr_db": 10, "draws": 4},
            }
        )
    )


def test_a_dense_first_layer_leaks_its_input_exactly() -> None:
    """dL/dW = sum of dL/db times the input: their quotient is the image, whatever the loss and the air."""
    plan = one_layer()
    indices = torch.tensor([17])
    weights, bias, *_ = the_step(plan, 1).update(indices)[0]
    row = int(bias.abs().argmax())
    image, _ = images_of(plan, indices)
    torch.testing.assert_close((weights[row] / bias[row]).view_as(image[0]), image[0], atol=2e-3, rtol=0)


def test_inversion_finds_what_a_dense_first_layer_leaks() -> None:
    """Nearly up to its scale: the power constraint hides how bright an image is from a layer whose bias is small."""
    plan = one_layer()
    step, indices = the_step(plan, 1), torch.tensor([5])
    update, _ = step.update(indices)
    image, label = images_of(plan, indices)
    options = GradientInversion(iterations=300, lr=0.03, tv=0.0, knows_channel=True)
    found, distance = options.invert(step, update, label, Stream(3))
    assert distance < 0.05
    assert float(torch.cosine_similarity(found.flatten(1), image.flatten(1))) > 0.97
    # Of all training images it is this one's.
    everything = plan.train_examples.images.flatten(1).float()
    assert int(torch.cosine_similarity(found.flatten(1), everything).argmax()) == 5
    again, _ = options.invert(step, update, label, Stream(3))
    assert torch.equal(found, again)
    assert not torch.equal(found, options.invert(step, update, label, Stream(4))[0])


def test_more_starts_never_raise_the_cost() -> None:
    plan = one_layer()
    step, indices = the_step(plan, 1), torch.tensor([5])
    update, _ = step.update(indices)
    _, label = images_of(plan, indices)
    costs = []
    for restarts in (1, 4):
        options = GradientInversion(iterations=8, restarts=restarts, tv=0.0, knows_channel=True)
        costs.append(options.invert(step, update, label, Stream(1))[1])
    assert costs[1] <= costs[0]


def test_the_class_of_a_single_image_is_read_off_the_last_bias() -> None:
    plan = resolve(check_scenario(FEDERATED))
    for number, index in enumerate((0, 7, 19, 33, 42), start=1):
        step = the_step(plan, 1, number)
        update, _ = step.update(torch.tensor([index]))
        assert int(step.inferred_label(update)) == int(plan.dataset.train.labels[index])


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        found, private = torch.rand(2, 4, 3, 8, 8, generator=generator)
        best = min(
            itertools.permutations(range(4)),
            key=lambda order: float((found[list(order)] - private).square().sum()),
        )
        assert matched(found, private).tolist() == list(best)
    shuffled = torch.tensor([2, 0, 3, 1])
    assert torch.equal(private[shuffled][matched(private[shuffled], private)], private)


def test_cosine_distance_and_total_variation_by_hand() -> None:
    one, other = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 5.0]), torch.tensor([0.0])]
    assert float(cosine_distance(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(one, [7 * part for part in one])) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(one, other)) == pytest.approx(1)
    assert float(cosine_distance(one, [-part for part in one])) == pytest.approx(2)
    # Rows 0, 1, 3: neighbours differ by 1 and by 2 down the columns and not along the rows.
    steps_down = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 3, 1).expand(1, 3, 3, 5)
    assert float(total_variation(steps_down)) == pytest.approx(1.5)


def test_inversion_measures_every_image_beside_guesses() -> None:
    link = fresh_link(
        {"kind": "awgn"},
        data=FEDERATED["data"],
        receivers={"all": {"count": 2, "tasks": ["job"], "channel": "air", "decoder": "group"}},
        federation=FEDERATED["federation"],
        evaluation={"samples": 3},
    )
    attack = GradientInversion(batch=2, updates=3, iterations=8, moment=["initial"])
    leaks = list(attack.measure(ExposedLink(link, []), Stream(0)))
    assert [leak.columns["decoder"] for leak in leaks] == ["gradient_inversion", "mean_image", "other_image"]
    assert [leak.guess for leak in leaks] == [False, True, True]
    for leak in leaks:
        assert {len(share.numerator) for share in leak.metrics.values()} == {6}
    assert set(leaks[0].metrics) == {"mse", "psnr_db", "ssim", "gradient_distance"}
    assert [len(leak.pictures) for leak in leaks] == [3, 0, 0]
    # No image twice, each from a partition of one of the two receivers in turn.
    batches = attack._batches(link.plan, 0, Stream(0).child("images"))
    held = [set(part.tolist()) for part in link.plan.partition(0)]
    numbers = [set(indices.tolist()) for _, indices in batches]
    assert len(set().union(*numbers)) == 6
    assert all(mine <= held[receiver.id] for (receiver, _), mine in zip(batches, numbers, strict=True))
    for leak, again in zip(leaks, attack.measure(ExposedLink(link, []), Stream(0)), strict=True):
        for metric, share in leak.metrics.items():
            assert torch.equal(share.numerator, again.metrics[metric].numerator)


# ------------------------------------------------------------------------------------------------ the whole path


@pytest.fixture(scope="module")
def measured() -> tuple[TrainedLink, list[Point], list[dict[str, Any]], list[tuple[int, int]]]:
    """An untrained link with three adversaries, evaluated as a run does."""
    link = fresh_link(
        {"kind": "awgn"},
        data={"kind": "digits", "train_images": 60, "test_images": 12, "reserve": 40},
        tasks={"job": {"kind": "classification"}},
        receivers={"all": {"count": 2, "tasks": ["job"], "channel": "air", "decoder": "group"}},
        federation={"kind": "flower", "rounds": 3},
        attacks={
            "reader": {"kind": "eavesdropper", "channel": "air", "task": "job", "epochs": 2},
            "viewer": {
                "kind": "eavesdropper",
                "channel": {"kind": "rayleigh"},
                "task": {"kind": "reconstruction"},
                "epochs": 2,
            },
            "server": {"kind": "gradient_inversion", "updates": 2, "iterations": 8, "moment": ["initial"]},
            "fgsm": {"kind": "fgsm"},
        },
        evaluation={
            "draws": {"attack": 1, "score": 2},
            "samples": 2,
            "grids": [
                {"attacks": ["none", "reader", "viewer"], "snr_db": [10, 0]},
                {"attacks": ["reader", "server", "fgsm", "noise"], "snr_db": [5], "psr_db": [-20]},
            ],
        },
    )
    progress: list[tuple[int, int]] = []
    found = evaluate(link, lambda done, total: progress.append((done, total)))
    return link, found.points, found.samples, progress


def test_leaks_stand_in_the_table_beside_guesses_and_receivers(measured: Any, tmp_path: Any) -> None:
    link, points, samples, progress = measured
    assert progress[-1] == (len(progress), len(progress))
    assert leaking(link.plan) == {"reader": [0.0, 5.0, 10.0], "viewer": [0.0, 10.0], "server": [5.0]}
    assert steps(link.plan) == 6
    save_points(points, tmp_path)
    whole: Any = table.frame(rows([load_points(tmp_path)], [0]))
    whole = whole[whole["seed"].isna()]
    leaks = whole[whole["stage"] == "leakage"].set_index(["attack", "decoder", "metric"]).sort_index()
    reader = leaks.loc[("reader", "eavesdropper")]
    assert sorted(set(reader["snr_db"])) == [0, 5, 10]
    assert {"accuracy", "accuracy_vs_guess", "accuracy_vs_receiver"} <= set(reader.index)
    clean = whole[(whole["stage"] == "evaluate") & (whole["attack"] == "none")].set_index(["metric", "snr_db"])
    for _, row in reader.loc[["accuracy_vs_receiver"]].iterrows():
        there = reader[reader["snr_db"] == row["snr_db"]]
        difference = float(there.loc["accuracy", "value"]) - float(clean.loc[("accuracy", row["snr_db"]), "value"])
        assert float(row["value"]) == pytest.approx(difference)
    viewer = leaks.loc[("viewer", "eavesdropper")]
    assert "psnr_db_vs_guess" in viewer.index
    assert not [metric for metric in viewer.index if metric.endswith("_vs_receiver")]
    assert set(viewer["channel"]) == {"rayleigh"}
    server = leaks.loc[("server", "gradient_inversion")]
    assert set(server["round"]) == {0}
    assert server["snr_db"].isna().all()
    assert int(server.loc["psnr_db", "n"]) == 2
    guess = float(leaks.loc[("server", "mean_image", "psnr_db"), "value"])
    assert float(server.loc["psnr_db_vs_guess", "value"]) == pytest.approx(
        float(server.loc["psnr_db", "value"]) - guess
    )
    assert leaks[["ci_low", "ci_high", "n"]].notna().all(axis=None)
    assert json.loads(server["attack_params"].iloc[0])["kind"] == "gradient_inversion"
    # Attacks that disturb, and figures of those, are as they were.
    assert set(whole.loc[whole["psr_db"].notna(), "attack"]) == {"fgsm", "noise"}
    write_samples(samples, tmp_path)
    kept = read_samples(tmp_path)
    assert set(kept.loc[kept["kind"] == "leaked", "attack"]) == {"viewer", "server"}
    for name in figures.available(whole, kept):
        figures.draw(name, whole, kept)
    printed = {grid.title: grid for grid in summary.leaks(whole)}
    shown = printed["job: Accuracy (%)"]
    assert shown.columns == ["0\u00a0dB", "5\u00a0dB", "10\u00a0dB"]
    (line,) = (cells for label, cells in shown.rows if label == "reader")
    at_10 = reader[reader["snr_db"] == 10]
    assert line[2].value == words.number(100 * float(at_10.loc["accuracy", "value"]), 1)
    assert next(label for label, _ in printed["Pictures out of updates"].rows) == "server, untrained model"
    assert {"leakage_vs_snr", "leaks", "accuracy_vs_psr"} <= set(figures.available(whole, kept))


def test_leaks_are_the_same_in_two_runs_and_without_the_other_attacks(measured: Any) -> None:
    link, points, _, _ = measured
    alone = changed(link, evaluation={**SHARED_LINK["evaluation"], "draws": {"score": 2}, "grids": [
        {"attacks": ["server", "reader"], "snr_db": [0, 5, 10]}]})  # fmt: skip
    for point in measure_leakage(alone, [], lambda: None)[0]:
        (before,) = [
            one for one in points
            if all(one.columns.get(key) == point.columns.get(key) for key in ("attack", "decoder", "snr_db", "round"))
        ]  # fmt: skip
        for metric in point.metrics:
            np.testing.assert_array_equal(
                tally(point.metrics, metric).numerator, tally(before.metrics, metric).numerator
            )


# ----------------------------------------------------------------------------------------------- what is refused

KEPT = {"data": {"kind": "digits", "train_images": 60, "reserve": 40}}
RADAR = {"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}}
LOCAL = {"all": {**GROUP["all"], "decoder": "local"}}


@pytest.mark.parametrize(
    ("attack", "changes", "sentence"),
    [
        (EVE, {}, "'attacks.spy': an eavesdropper learns its decoder from images of its own, and data.reserve keeps"),
        ({**EVE, "channel": "up"}, KEPT, "'attacks.spy.channel': unknown channel 'up'. Known: down."),
        ({**EVE, "task": "labl"}, KEPT, "'attacks.spy.task': unknown task 'labl'. Did you mean 'label'?"),
        ({**EVE, "channel": {"kind": "sensing"}}, KEPT, "'attacks.spy.channel': an eavesdropper hears what is sent"),
        ({**EVE, "task": {"kind": "sensing"}}, KEPT, "'attacks.spy.task': an eavesdropper hears what is sent"),
        ({**EVE, "task": {"kind": "segmentation"}}, KEPT, "'attacks.spy.task': 'segmentation' decodes a painted"),
        ({**EVE, "channel": 3}, KEPT, "'attacks.spy.channel': should be the name of a channel of the scenario, or a"),
        ({**EVE, "task": {"kind": "clasification"}}, KEPT, "Did you mean 'classification'?"),
        ({**INVERSION, "batch": 5}, {}, "'attacks.spy.batch': of one step on 5 images too little is left of each"),
        ({**INVERSION, "batch": 2, "labels": "inferred"}, {}, "'attacks.spy': 'labels: inferred' tells the class of a"),
        ({**INVERSION, "moment": ["trained", "trained"]}, {}, "'attacks.spy': 'moment' lists one twice"),
        (INVERSION, {"federation": "none"}, "'attacks.spy': the centralised reference sends no update"),
        (INVERSION, {"receivers": LOCAL}, "'attacks.spy.receivers': the server does not know decoders of policy"),
        ({**INVERSION, "receivers": "al"}, {}, "'attacks.spy.receivers': unknown group 'al'. Did you mean 'all'?"),
        ({**INVERSION, "updates": 100, "batch": 4}, {}, "'attacks.spy.updates': 50 batches of 4 from each of 2"),
        (
            {**INVERSION, "labels": "inferred"},
            {"tasks": {"label": {"kind": "reconstruction"}}},
            "'attacks.spy.labels': only an update of a classifier shows the class",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    attack: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    grids = {"grids": [{"attacks": ["spy"], "snr_db": [10]}]}
    tree = {**FEDERATED, **changes, "attacks": {"spy": attack}, "evaluation": grids}
    with pytest.raises(ScenarioError) as caught:
        resolve(check_scenario(tree))
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_server_has_nothing_to_learn_from_accomplices() -> None:
    """Their decoders are left out of the link that is measured."""
    attacks = {"spy": INVERSION, "flip": {"kind": "label_flip", "fraction": 0.9}}
    grids = {"grids": [{"attacks": ["spy"], "snr_db": [10]}]}
    tree = {**FEDERATED, "attacks": attacks, "use": {"attacks": ["flip"]}, "evaluation": grids}
    with pytest.raises(ScenarioError, match=r"'attacks.spy.receivers': with seed 0 all receivers of 'all' work for"):
        resolve(check_scenario(tree))


@pytest.mark.parametrize("attack", [EVE, INVERSION], ids=["eavesdropper", "gradient_inversion"])
def test_a_link_that_sends_patches_is_refused(attack: dict[str, Any]) -> None:
    tree = {
        "schema": 1,
        "name": "patches",
        "data": {"kind": "digit_scenes", "train_scenes": 8, "test_scenes": 4, "reserve": 2},
        "link": {"encoder": {"kind": "mae"}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "reconstruction"}, "mask": {"kind": "segmentation"}},
        "receivers": {"all": {"count": 2, "tasks": ["label", "mask"], "channel": "down", "decoder": "group"}},
        "attacks": {"spy": attack},
        "evaluation": {"grids": [{"attacks": ["spy"], "snr_db": [10]}]},
    }
    with pytest.raises(ScenarioError, match="sends a fixed number of symbols"):
        resolve(check_scenario(tree))


def test_grids_need_a_psr_for_attacks_that_disturb_alone() -> None:
    tree = {**FEDERATED, **KEPT, "attacks": {"spy": EVE, "fgsm": {"kind": "fgsm"}}}

    def grid(**keys: Any) -> None:
        resolve(check_scenario({**tree, "evaluation": {"grids": [{"snr_db": [10], **keys}]}}))

    grid(attacks=["none", "spy"])
    grid(attacks=["spy", "fgsm"], psr_db=[-20])
    for attacks in (["spy", "fgsm"], ["spy", "noise"]):
        with pytest.raises(ScenarioError, match="attacks need 'psr_db'"):
            grid(attacks=attacks)
    with pytest.raises(ScenarioError, match=r"'evaluation.grids.0.psr_db': 'spy' has no power that could be chosen"):
        grid(attacks=["none", "spy"], psr_db=[-20])
    with pytest.raises(ScenarioError, match=r"'use.attacks': 'spy' does not act in training"):
        resolve(check_scenario({**tree, "use": {"attacks": ["spy"]}}))
