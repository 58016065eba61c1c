"""Repairs of a trained link: what pruning silences, what trigger inversion recovers, and what the table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import changed, fresh_link
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

from fedsem import run
from fedsem.checks import resolve
from fedsem.defenses.fine_pruning import activation, last_layer, silence
from fedsem.defenses.neural_cleanse import anomaly
from fedsem.errors import ScenarioError
from fedsem.evaluation.repaired import findings, repaired
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.repair import Trigger
from fedsem.registry import find
from fedsem.repairing import LinkCopy
from fedsem.scenario import check_scenario
from fedsem.streams import Stream

DATA = {"kind": "digits", "train_images": 60, "test_images": 40, "reserve": 300}
DENSE = {"encoder": {"kind": "dense", "channel_uses": 16, "hidden": [96, 48]}}


def defense(name: str, **options: Any) -> Any:
    return find("defense", name).model_validate(options)


def small_link(**changes: Any) -> TrainedLink:
    return fresh_link({"kind": "awgn"}, **{"link": DENSE, "data": DATA, **changes})


def patched(images: Tensor) -> Tensor:
    """A white square of 4 pixels in the lower right corner."""
    images = images.clone()
    images[..., -4:, -4:] = 1
    return images


def assembled(link: TrainedLink, made: LinkCopy) -> TrainedLink:
    listeners = tuple(replace(one, decoder=made.decoders[one.name]) for one in link.listeners)
    return replace(link, transmitter=made.transmitter, listeners=listeners)


def said(link: TrainedLink, images: Tensor) -> Tensor:
    """Decisions without noise."""
    with torch.no_grad():
        found: Tensor = link.listeners[0].decoder(link.transmitter(images)).argmax(-1)
    return found


def accuracy(link: TrainedLink) -> float:
    return float((said(link, link.images) == link.labels).float().mean())


def success(link: TrainedLink) -> float:
    others = link.labels != 0
    return float((said(link, patched(link.images[others])) == 0).float().mean())


@pytest.fixture(scope="module")
def backdoored() -> TrainedLink:
    """A link that has learnt to call digits with a white corner zeros."""
    link = small_link()
    made = LinkCopy(link)
    clean = made.examples
    some = clean.at(slice(0, len(clean) // 3))
    bad = replace(some, images=patched(some.images), labels=torch.zeros_like(some.labels))
    both = replace(clean, images=torch.cat([clean.images, bad.images]), labels=torch.cat([clean.labels, bad.labels]))
    made.learn(both, 25, 2e-3, Stream(0))
    poisoned = assembled(link, made)
    assert accuracy(poisoned) > 0.8
    assert success(poisoned) > 0.9
    return poisoned


def parameters(link: TrainedLink) -> list[Tensor]:
    networks = [link.transmitter, *(one.decoder for one in link.listeners)]
    return [value.clone() for network in networks for value in network.state_dict().values()]


def unchanged(link: TrainedLink, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parameters(link), before, strict=True))


# ------------------------------------------------------------------------------------------------ fine-pruning


def test_the_layer_is_the_last_convolution_or_the_last_hidden_one() -> None:
    convolutional = fresh_link({"kind": "awgn"}).transmitter.encoder
    layer = last_layer(convolutional)
    assert isinstance(layer, nn.Conv2d)
    assert layer.out_channels == 128
    dense = last_layer(small_link().transmitter.encoder)
    assert isinstance(dense, nn.Linear)
    assert dense.out_features == 48
    assert last_layer(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) is None


def test_activation_is_the_mean_after_the_relu() -> None:
    """Of the convolutional encoder by its own layers: pooling comes before the ReLU there, and is not part of it."""
    link = fresh_link({"kind": "awgn"})
    encoder: Any = link.transmitter.encoder
    layer = last_layer(encoder)
    assert layer is not None
    found = activation(layer, link.transmitter, link.images)
    standard = (link.images - encoder.mean) / encoder.std
    with torch.no_grad():
        inputs = encoder.features[:8](standard)
        expected = layer(inputs).relu().mean((0, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_dormant_neurons_go_first_and_stay_away(backdoored: TrainedLink) -> None:
    """Neurons that clean images never activate are planted, with weights that only a white corner wakes."""
    made = LinkCopy(backdoored)
    layer = last_layer(made.transmitter.encoder)
    assert layer is not None
    with torch.no_grad():
        for neuron in (5, 17):
            layer.weight[neuron], layer.bias[neuron] = -1e-3, -1.0
    link = assembled(backdoored, made)
    before = parameters(link)
    mended = defense("fine_pruning", limit=0.0, epochs=2).repair(link, Stream(1))
    pruned = last_layer(mended.transmitter.encoder)
    assert pruned is not None
    dead = (pruned.weight == 0).all(1) & (pruned.bias == 0)
    told = {found.metric: found.value for found in mended.findings}
    assert dead[[5, 17]].all()
    assert int(dead.sum()) == told["pruned_channels"] >= 2
    assert told["channels"] == 48
    assert told["held_out_pruned"] >= told["held_out_before"]
    assert unchanged(link, before)
    assert not mended.transmitter.training


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_pruning_ends_before_the_limit_is_passed(backdoored: TrainedLink, limit: float) -> None:
    made = defense("fine_pruning", limit=limit, epochs=0).repair(backdoored, Stream(0))
    told = {found.metric: found.value for found in made.findings}
    assert told["held_out_before"] - told["held_out_pruned"] <= limit + 1e-9
    assert told["held_out_after"] == told["held_out_pruned"]
    copy = LinkCopy(backdoored)
    layer, left = last_layer(copy.transmitter.encoder), last_layer(made.transmitter.encoder)
    assert layer is not None
    assert left is not None
    dead = (left.weight == 0).all(1)
    # Those that were pruned are the quietest ones.
    order = torch.randperm(300, generator=Stream(0).child("held_out").torch())
    quiet = activation(layer, copy.transmitter, copy.examples.images[order[90:]])
    assert 0 < int(dead.sum()) < 48
    assert float(quiet[dead].max()) <= float(quiet[~dead].min())
    silence(layer, dead.nonzero().flatten().tolist())
    torch.testing.assert_close(layer.weight, left.weight)


# ------------------------------------------------------------------------------------------------ fine-tuning


def test_fine_tuning_is_fine_pruning_without_pruning(backdoored: TrainedLink) -> None:
    """The control: the same steps on the same images, but for those that pruning holds out."""
    before = parameters(backdoored)
    same = defense("fine_tuning", epochs=0).repair(backdoored, Stream(0))
    assert all(map(torch.equal, same.transmitter.parameters(), backdoored.transmitter.parameters()))
    tuned = defense("fine_tuning", epochs=2, lr=1e-4).repair(backdoored, Stream(0))
    link, made = backdoored, LinkCopy(backdoored)
    made.learn(made.examples, 2, 1e-4, Stream(0).child("learn"))
    assert all(map(torch.equal, tuned.transmitter.parameters(), made.transmitter.parameters()))
    assert not tuned.findings
    mended = replace(
        link,
        transmitter=tuned.transmitter,
        listeners=tuple(replace(one, decoder=tuned.decoders[one.name]) for one in link.listeners),
    )
    assert accuracy(mended) > accuracy(link) - 0.05
    assert unchanged(link, before)


# ------------------------------------------------------------------------------------------------ Neural Cleanse


@given(st.lists(st.floats(0.1, 1000), min_size=2, max_size=30))
@settings(deadline=None, max_examples=50)
def test_the_anomaly_index_is_scipys(values: list[float]) -> None:
    norms = np.array(values)
    scale = median_abs_deviation(norms, scale="normal")
    if scale > 1e-9:
        np.testing.assert_allclose(anomaly(norms), np.abs(norms - np.median(norms)) / scale, rtol=1e-4)
    assert np.isfinite(anomaly(np.full(5, 2.0))).all()


def test_a_trigger_replaces_what_its_mask_covers() -> None:
    mask, pattern = torch.zeros(4, 4), torch.full((3, 4, 4), 0.5)
    mask[0, 0], mask[1, 1] = 1.0, 0.25
    made = Trigger("label", 0, mask, pattern).on(torch.ones(2, 3, 4, 4))
    assert made[:, :, 0, 0].eq(0.5).all()
    assert made[:, :, 1, 1].eq(0.875).all()
    assert made[:, :, 2:].eq(1).all()


def test_a_backdoor_is_found_told_and_unlearnt(backdoored: TrainedLink) -> None:
    before = parameters(backdoored)
    cure = {"kind": "neural_cleanse", "steps": 300, "epochs": 10}
    link = changed(backdoored, defenses={"other": {"kind": "fine_pruning"}, "cure": cure})
    cleanse = link.plan.scenario.defenses["cure"]
    mended = repaired(link, cleanse)
    made = link.repairs["cure"]
    norms = {found.goal: found.value for found in made.findings if found.metric == "trigger_norm"}
    index = {found.goal: found.value for found in made.findings if found.metric == "anomaly_index"}
    assert set(norms) == set(range(10))
    assert min(norms, key=lambda goal: norms[goal]) == 0
    assert index[0] > 2
    assert [trigger.goal for trigger in made.triggers][:1] == [0]
    # Most of the mask lies on the square of 16 of 1,024 pixels.
    mask = made.triggers[0].mask
    assert float(mask[-4:, -4:].sum() / mask.sum()) > 0.3
    assert success(mended) < 0.2 < 0.9 < success(link)
    assert accuracy(mended) > accuracy(link) - 0.05
    assert unchanged(link, before)
    # In another mode it is the same repair, and what it found stands in the table once.
    assert repaired(link.in_mode(link.mode), cleanse).transmitter is mended.transmitter
    points, pictures = findings(link)
    assert len(points) == 11
    assert {point.columns["stage"] for point in points} == {"repair"}
    assert {point.columns["objective"] for point in points} == {None, *(f'{{"job": {goal}}}' for goal in range(10))}
    assert [pictures[0][key] for key in ("kind", "label", "shape")] == ["trigger", "0", [3, 32, 32]]


def test_where_nothing_is_suspicious_nothing_is_changed() -> None:
    link = small_link()
    made = defense("neural_cleanse", steps=2, flag=1e9).repair(link, Stream(0))
    assert not made.triggers
    assert all(
        torch.equal(value, link.transmitter.state_dict()[n]) for n, value in made.transmitter.state_dict().items()
    )
    assert [found.value for found in made.findings if found.metric == "flagged_classes"] == [0.0]


# ------------------------------------------------------------------------------------------------ the path

LINK: dict[str, Any] = {
    "schema": 1,
    "name": "repaired",
    "seeds": [3, 4],
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits", "train_images": 100, "test_images": 20, "reserve": 40, "partition": {"kind": "iid"}},
    "link": DENSE,
    "channels": {"down": {"kind": "rayleigh"}, "radar": {"kind": "sensing"}},
    "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}, "watch": {"kind": "reconstruction"}},
    "receivers": {
        "a": {"count": 2, "tasks": ["label", "watch"], "channel": "down", "decoder": "local"},
        "b": {"count": 2, "tasks": ["target"], "channel": "radar", "decoder": "group"},
    },
    "train": {"batch": 16, "snr_db": {"uniform": [5, 15]}},
    "federation": {"rounds": 1},
    "defenses": {
        "prune": {"kind": "fine_pruning", "epochs": 1},
        "tune": {"kind": "fine_tuning", "epochs": 1},
        "cleanse": {"kind": "neural_cleanse", "epochs": 1, "steps": 3},
    },
    "evaluation": {
        "draws": {"attack": 1, "score": 2},
        "samples": 0,
        "baselines": False,
        "grids": [{"snr_db": [10], "defenses": ["none", "prune", "tune", "cleanse"]}],
    },
}


def test_repairs_stand_beside_the_link_they_repaired(tmp_path: Path) -> None:
    """Several tasks, local decoders, fading, a radar; two seeds."""
    table = run(LINK, out=tmp_path).table
    evaluated = table[(table["stage"] == "evaluate") & (table["metric"] == "accuracy")]
    assert set(evaluated["defense"]) == {"none", "prune", "tune", "cleanse"}
    assert (table["metric"] == "accuracy_vs_undefended").any()
    found = table[table["stage"] == "repair"]
    assert set(found["defense"]) == {"prune", "cleanse"}
    # One row for each of ten classes, for each seed and for both together.
    assert (found["metric"] == "anomaly_index").sum() == 30
    assert set(found["seed"].dropna()) == {3, 4}
    alike = [run(LINK, out=tmp_path / "again").table, table]
    for one in alike:
        one.drop(columns=["run_id"], inplace=True)
    assert alike[0].equals(alike[1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"kind": "digits", "train_images": 50}}, r"'defenses\.prune': 'fine_pruning' repairs the link with"),
        ({"use": {"defenses": ["prune"]}}, r"'use\.defenses': 'prune' acts on a trained link; name it in"),
        (
            {"link": {"encoder": {"kind": "dense", "hidden": [4]}}, "data": {"kind": "digits", "reserve": 1}},
            r"'data\.reserve': 'fine_pruning' \(at 'defenses\.prune'\) learns on some images",
        ),
        (
            {"receivers": {"b": LINK["receivers"]["b"]}, "tasks": {"target": {"kind": "sensing"}}},
            r"'defenses\.prune': 'fine_pruning' judges a link by the classes",
        ),
    ],
)
def test_what_cannot_be_repaired_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario({**LINK, **changes}))
