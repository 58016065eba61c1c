"""Local training and its average against plain PyTorch: what is learnt, from what, and with which randomness.

Where losses are compared the air is silent (200 dB) and dropout is off, so that everything is a function of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_plan
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.awgn import Awgn
from fedsem.channels.channel import Realisation
from fedsem.channels.sensing import Sensing
from fedsem.federation import rounds
from fedsem.federation.state import FederationState
from fedsem.plan import Branch, Plan
from fedsem.scenario import Optimizer
from fedsem.tasks.classification import Classification
from fedsem.tasks.task import Examples
from fedsem.training import Parameters, ReceiverTask, Reply, initial_parameters, learning_rate, train

QUIET: dict[str, Any] = {
    "data": {"kind": "digits", "train_images": 160},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 8, "dropout": 0.0}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"label": {"kind": "classification"}},
    "receivers": {"all": {"count": 1, "tasks": ["label"], "channel": "down"}},
    "federation": {"kind": "flower", "rounds": 1},
}
LABEL, PICTURE = Branch("label", "down"), Branch("picture", "down")


def quiet_plan(optimizer: dict[str, Any], train: dict[str, Any] | None = None, **keys: Any) -> Plan:
    training = {"batch": 1000, "snr_db": 200, "optimizer": optimizer, **(train or {})}
    return small_plan(**{**QUIET, "train": training, **keys})


def task_of(plan: Plan, indices: np.ndarray, seed: int = 0, **keys: Any) -> ReceiverTask:
    shared, decoders = initial_parameters(plan, seed)
    values: dict[str, Any] = {
        "receiver": 0,
        "seed": seed,
        "round": 1,
        "branches": dict.fromkeys(plan.branches, 1.0),
        "indices": indices,
        "shared": shared,
        "decoders": decoders,
    }
    return ReceiverTask(**{**values, **keys})


def only(plan: Plan, task: ReceiverTask) -> Reply:
    (reply,) = train(plan, [task])
    assert reply.error is None
    return reply


class Plain:
    """A transmitter and decoders in plain PyTorch, started from the same parameters."""

    def __init__(self, plan: Plan, shared: Parameters, decoders: dict[str, Parameters]) -> None:
        self.images, self.labels = plan.train_examples.images.float() / 255, plan.train_examples.labels
        self.encoder = plan.new_transmitter().encoder
        self.encoder.load_state_dict(shared)
        self.decoders = {branch: plan.new_decoder(branch) for branch in plan.branches}
        for branch, decoder in self.decoders.items():
            decoder.load_state_dict(decoders[branch.key])

    def losses(self, indices: np.ndarray, branch: Branch) -> Tensor:
        """Loss of each image over a silent channel, (n,)."""
        images = self.images[torch.from_numpy(indices)]
        x = self.encoder(images)
        output = self.decoders[branch](x * math.sqrt(x.shape[1]) / x.norm(dim=1, keepdim=True))
        if branch.task == "picture":
            return (output - images.flatten(1)).square().mean(1)
        return F.cross_entropy(output, self.labels[torch.from_numpy(indices)], reduction="none")

    def parameters(self) -> list[nn.Parameter]:
        decoders = [p for decoder in self.decoders.values() for p in decoder.parameters()]
        return [*self.encoder.parameters(), *decoders]


def apart(found: Parameters, expected: dict[str, Tensor], start: Parameters) -> float:
    """Distance of two results, relative to how far the expected one has moved."""
    moved = math.sqrt(sum(float((expected[k].double() - start[k].double()).square().sum()) for k in start))
    wrong = math.sqrt(sum(float((found[k].double() - expected[k].double()).square().sum()) for k in start))
    assert moved > 1e-4
    return wrong / moved


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def after(reply: Reply, shared: Parameters) -> Parameters:
    return {name: value + reply.delta[name] for name, value in shared.items()}


# ------------------------------------------------------------------------------------------- federated averaging


SIZES = [3, 5, 8, 9, 12, 15, 20, 24, 28, 36]


def unequal(plan: Plan) -> list[np.ndarray]:
    """Ten receivers of 3 to 36 images, sorted by class: as far from identically distributed as it goes."""
    order = np.argsort(plan.dataset.train.labels, kind="stable")
    assert sum(SIZES) == len(order)
    return np.split(order, np.cumsum(SIZES)[:-1])


def one_round(plan: Plan, partition: Sequence[np.ndarray]) -> tuple[FederationState, list[Reply], FederationState]:
    before = FederationState.initial(plan, 0)
    everyone = list(range(len(plan.receivers)))
    replies = train(plan, rounds.tasks(plan, before, partition, 0, everyone))
    # Replies arrive in any order.
    return before, replies, rounds.combine(plan, 3, before, everyone, replies[::-1])


def test_one_sgd_step_of_ten_unequal_receivers_is_one_pooled_step() -> None:
    """Encoder and group decoder both move as if all images lay in one place."""
    receivers = {"all": {"count": 10, "tasks": ["label"], "channel": "down", "decoder": "group"}}
    plan = quiet_plan({"kind": "sgd", "lr": 0.5}, receivers=receivers)
    before, replies, combined = one_round(plan, unequal(plan))
    plain = Plain(plan, before.shared, {"label@down": before.decoders["group/label"]})
    optimizer = torch.optim.SGD(plain.parameters(), 0.5)
    plain.losses(np.arange(160), LABEL).mean().backward()
    optimizer.step()
    assert apart(combined.shared, weights_of(plain.encoder), before.shared) < 2e-5
    start = before.decoders["group/label"]
    assert apart(combined.decoders["group/label"], weights_of(plain.decoders[LABEL]), start) < 2e-5
    # An unweighted average would be visibly elsewhere: the test can tell.
    flat = {k: v + torch.stack([reply.delta[k] for reply in replies]).mean(0) for k, v in before.shared.items()}
    assert apart(flat, weights_of(plain.encoder), before.shared) > 0.5


def test_task_weights_count_in_the_shared_average() -> None:
    """The encoder takes one step on sum_i n_i sum_t lambda_t L_t / sum_i n_i Lambda_i; local losses are normalised, so
    that no optimiser can cancel lambda. A group decoder follows its holders, weighted by their images."""
    weight = {"label": 0.5, "picture": 3.0}
    plan = quiet_plan(
        {"kind": "sgd", "lr": 0.5},
        tasks={
            "label": {"kind": "classification", "weight": weight["label"]},
            "picture": {"kind": "reconstruction", "weight": weight["picture"]},
        },
        receivers={
            "readers": {"count": 4, "tasks": ["label"], "channel": "down", "decoder": "group"},
            "viewers": {"count": 3, "tasks": ["picture", "label"], "channel": "down", "decoder": "group"},
            "locals": {"count": 3, "tasks": ["picture"], "channel": "down", "decoder": "local"},
        },
    )
    partition = unequal(plan)
    before, _, combined = one_round(plan, partition)
    heads = {branch.key: initial_parameters(plan, 0)[1][branch.key] for branch in plan.branches}
    plain = Plain(plan, before.shared, heads)
    total = torch.zeros(())
    counted = 0.0
    for receiver, indices in zip(plan.receivers, partition, strict=True):
        for branch in receiver.branches:
            total = total + weight[branch.task] * plain.losses(indices, branch).sum()
            counted += weight[branch.task] * len(indices)
    (total / counted).backward()
    stepped = {name: p.detach() - 0.5 * p.grad for name, p in plain.encoder.named_parameters() if p.grad is not None}
    assert apart(combined.shared, stepped, before.shared) < 1e-4
    for task, branch in (("label", LABEL), ("picture", PICTURE)):
        decoder = plain.decoders[branch]
        holders = [r for r in plan.receivers if branch in r.branches and r.decoder == "group"]
        images = sum(len(partition[r.id]) for r in holders)
        expected = {name: p.detach().clone() for name, p in decoder.named_parameters()}
        for receiver in holders:
            own = sum(weight[b.task] for b in receiver.branches)
            decoder.zero_grad()
            (weight[task] / own * plain.losses(partition[receiver.id], branch).mean()).backward()
            for name, p in decoder.named_parameters():
                assert p.grad is not None
                expected[name] -= 0.5 * len(partition[receiver.id]) / images * p.grad
        # A step of the picture decoder is small beside its weights: their float32 rounding is 1e-4 of it.
        assert apart(combined.decoders[f"group/{task}"], expected, before.decoders[f"group/{task}"]) < 1e-3
    # Local decoders are their receiver's own.
    decoder = plain.decoders[PICTURE]
    decoder.zero_grad()
    plain.losses(partition[9], PICTURE).mean().backward()
    mine = {name: p.detach() - 0.5 * p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    assert apart(combined.decoders["9/picture@down"], mine, heads["picture@down"]) < 1e-3


def test_adam_cannot_cancel_a_task_weight() -> None:
    """Adam divides a factor on the loss away; in the average it stays (design section 4)."""
    found = []
    for weight in (1.0, 9.0):
        plan = quiet_plan(
            {"kind": "adam", "lr": 1e-3},
            tasks={"label": {"kind": "classification"}, "picture": {"kind": "reconstruction", "weight": weight}},
            receivers={
                "a": {"count": 1, "tasks": ["label"], "channel": "down"},
                "b": {"count": 1, "tasks": ["picture"], "channel": "down"},
            },
        )
        halves = [np.arange(80), np.arange(80, 160)]
        before, replies, combined = one_round(plan, halves)
        expected = {
            k: v + (replies[0].delta[k] + weight * replies[1].delta[k]) / (1 + weight) for k, v in before.shared.items()
        }
        assert apart(combined.shared, expected, before.shared) < 1e-4
        found.append(combined.shared)
    assert apart(found[0], found[1], before.shared) > 0.1


# --------------------------------------------------------------------------------------------------- a pure function


def noisy_plan(**keys: Any) -> Plan:
    changes: dict[str, Any] = {
        "data": {"kind": "digits", "train_images": 96},
        "channels": {"down": {"kind": "rayleigh", "csi": "zf"}, "radar": {"kind": "sensing"}},
        "tasks": {"label": {"kind": "classification"}, "target": {"kind": "sensing"}},
        "receivers": {
            "all": {"count": 3, "tasks": ["label", "target"], "channel": {"label": "down", "target": "radar"}}
        },
        "train": {"batch": 16, "draws": 2, "snr_db": {"uniform": [0, 20]}, "augment": ["flip", "crop"]},
        "federation": {"kind": "flower", "rounds": 3},
    }
    return small_plan(**{**changes, **keys})


def same(one: Reply, other: Reply) -> bool:
    pairs = [(one.delta, other.delta), (one.optimizer, other.optimizer)]
    pairs += [(one.decoders[key], other.decoders[key]) for key in one.decoders]
    return one.losses == other.losses and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs
    )


def test_training_is_a_pure_function() -> None:
    """Dropout, fading, SNR, augmentation and order: all of it comes from the receiver's stream and nowhere else."""
    plan = noisy_plan()
    indices = np.arange(40)
    before = torch.get_rng_state()
    inputs = task_of(plan, indices, receiver=1)
    kept = {name: value.clone() for name, value in inputs.shared.items()}
    first = only(plan, inputs)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(11)
    assert same(first, only(plan, inputs))
    assert all(torch.equal(kept[name], inputs.shared[name]) for name in kept)
    np.testing.assert_array_equal(inputs.indices, np.arange(40))
    torch.set_rng_state(before)
    # Not of who else trains, nor in which order.
    other = task_of(plan, np.arange(40, 96), receiver=2)
    together = train(plan, [other, inputs])
    assert same(together[1], first)
    # But of receiver, round and seed.
    for change in ({"receiver": 2}, {"round": 2}, {"seed": 1}):
        different = only(plan, task_of(plan, indices, **{"receiver": 1, **change}))
        assert not same(different, first)


def test_a_receiver_that_raises_is_reported_and_the_others_go_on() -> None:
    plan = noisy_plan()
    good, bad = task_of(plan, np.arange(20)), task_of(plan, np.array([5, 100_000]), receiver=1)
    broken = task_of(plan, np.arange(20), receiver=2)
    broken.shared.pop(next(iter(broken.shared)))
    replies = train(plan, [bad, good, broken])
    assert [reply.receiver for reply in replies] == [1, 0, 2]
    assert replies[1].error is None
    assert same(replies[1], only(plan, good))
    for reply in (replies[0], replies[2]):
        assert reply.error
        assert "Error" in reply.error
        assert not reply.delta
        assert not reply.decoders
        assert reply.examples == 0


# ------------------------------------------------------------------------------------------------ what one step sees


Heard = list[tuple[Tensor, Any, Realisation]]


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], Heard]:
    """Record what a channel is asked to carry: signal, SNR and draws of every step."""

    def start(channel: type) -> Heard:
        heard: Heard = []
        original = channel.apply  # type: ignore[attr-defined]

        def apply(self: Any, x: Tensor, realisation: Realisation, snr_db: Any, *rest: Any) -> Tensor:
            heard.append((x.detach().clone(), snr_db, realisation))
            received: Tensor = original(self, x, realisation, snr_db, *rest)
            return received

        monkeypatch.setattr(channel, "apply", apply)
        return heard

    return start


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the images of every step, as the task sees them."""
    images: list[Tensor] = []
    original = Classification.truth

    def truth(self: Classification, examples: Examples, realisation: Realisation) -> Tensor:
        images.append(examples.images.detach().clone())
        return original(self, examples, realisation)

    monkeypatch.setattr(Classification, "truth", truth)
    return images


def test_training_snr_is_drawn_for_each_example_and_draw(listened: Callable[[type], Heard]) -> None:
    down, radar = listened(Awgn), listened(Sensing)
    plan = noisy_plan(
        channels={"down": {"kind": "awgn"}, "radar": {"kind": "sensing"}},
        train={"batch": 16, "draws": 3, "epochs": 2, "snr_db": {"uniform": [-5, 15]}, "sensing_snr_db": 7.0},
    )
    only(plan, task_of(plan, np.arange(40)))
    assert [x.shape[0] for x, _, _ in down] == [16, 16, 8] * 2
    snr = torch.cat([value.flatten() for _, value, _ in down])
    assert all(value.shape == (3, len(x)) for x, value, _ in down)
    assert len(snr) == len(snr.unique()) == 3 * 80
    assert snr.min() >= -5
    assert snr.max() <= 15
    # Uniform: mean 5 and standard deviation 20 / sqrt 12, within five standard errors.
    assert snr.mean() == pytest.approx(5, abs=5 * 5.77 / math.sqrt(240))
    assert {value for _, value, _ in radar} == {7.0}
    for heard in (down, radar):
        noise = torch.cat([drawn.noise.flatten() for _, _, drawn in heard])
        assert noise.std() == pytest.approx(1, abs=0.1)
        # New noise in every step, draw, example and symbol.
        assert len(noise.unique()) > 0.999 * len(noise)


def test_noise_is_on_in_training(listened: Callable[[type], Heard]) -> None:
    """The signal that meets the noise has power 1, dropout or not, so that the training SNR is what it says."""
    down = listened(Awgn)
    plan = quiet_plan({"kind": "sgd", "lr": 0.1}, {"snr_db": 0.0}, link={"encoder": {"kind": "cnn"}})
    only(plan, task_of(plan, np.arange(64)))
    ((x, snr_db, realisation),) = down
    assert snr_db == 0.0
    torch.testing.assert_close(x.square().mean(1), torch.ones(64), rtol=1e-5, atol=0)
    received = Awgn().apply(x, realisation, snr_db, "real")[0]
    assert (received - x).square().mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("batch", [16, 40, 100])
def test_every_image_is_seen_once_in_each_epoch_in_a_new_order(seen: list[Tensor], batch: int) -> None:
    plan = quiet_plan({"kind": "sgd", "lr": 0.01}, {"batch": batch, "epochs": 2})
    indices = np.arange(20, 60)
    only(plan, task_of(plan, indices))
    sizes = [len(images) for images in seen]
    assert sizes == {16: [16, 16, 8], 40: [40], 100: [40]}[batch] * 2
    images = torch.cat(seen).flatten(1)
    originals = (plan.train_examples.images[20:60].float() / 255).flatten(1)
    orders = []
    for epoch in (images[:40], images[40:]):
        which = torch.cdist(epoch.double(), originals.double()).argmin(1)
        assert torch.equal(epoch, originals[which])
        assert sorted(which.tolist()) == list(range(40))
        orders.append(which.tolist())
    assert orders[0] != orders[1]
    assert orders[0] != list(range(40))


IMAGE, COPIES = 7, 500


def augmented(seen: list[Tensor], kinds: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """One image, and what training sees of it in 500 copies."""
    plan = quiet_plan({"kind": "sgd", "lr": 1e-3}, {"augment": kinds, "batch": COPIES})
    only(plan, task_of(plan, np.full(COPIES, IMAGE)))
    return plan.train_examples.images[IMAGE].float().div(255).numpy(), torch.cat(seen).numpy()


def windows(image: np.ndarray) -> np.ndarray:
    """All 81 crops of the image with 4 pixels of reflection on each side, (81, 3, H, W)."""
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    height, width = image.shape[1:]
    return np.stack([padded[:, i : i + height, j : j + width] for i in range(9) for j in range(9)])


def nearest(found: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Number of the candidate that each picture equals; it must equal one."""
    flat = torch.from_numpy(found.reshape(len(found), -1)).double()
    distance, which = torch.cdist(flat, torch.from_numpy(candidates.reshape(len(candidates), -1)).double()).min(1)
    assert distance.max() < 1e-4
    return which.numpy()


def test_flip_mirrors_half_of_the_images_left_to_right(seen: list[Tensor]) -> None:
    image, found = augmented(seen, ["flip"])
    which = nearest(found, np.stack([image, image[:, :, ::-1]]))
    assert np.abs(image - image[:, :, ::-1]).max() > 0.1
    assert abs(which.mean() - 0.5) < 5 * 0.5 / math.sqrt(COPIES)


def test_crop_is_a_shifted_window_of_the_reflected_image(seen: list[Tensor]) -> None:
    image, found = augmented(seen, ["crop"])
    which = nearest(found, windows(image))
    # Rows and columns are shifted independently, each by -4 .. 4 with the same probability.
    for shift in (which // 9, which % 9):
        counts = np.bincount(shift, minlength=9)
        assert len(counts) == 9
        assert np.abs(counts - COPIES / 9).max() < 5 * math.sqrt(COPIES / 9)
    assert abs(np.corrcoef(which // 9, which % 9)[0, 1]) < 5 / math.sqrt(COPIES)


def test_flip_and_crop_together(seen: list[Tensor]) -> None:
    image, found = augmented(seen, ["flip", "crop"])
    which = nearest(found, np.concatenate([windows(image), windows(image[:, :, ::-1])]))
    assert abs((which >= 81).mean() - 0.5) < 5 * 0.5 / math.sqrt(COPIES)
    assert len(set(which.tolist())) > 100


def test_without_augmentation_images_are_left_alone(seen: list[Tensor]) -> None:
    image, found = augmented(seen, [])
    assert (found == image).all()


# ------------------------------------------------------------------------------------------------------- optimisation


def test_learning_rate_schedules() -> None:
    for progress in (0.0, 0.3, 0.99):
        assert learning_rate(Optimizer(lr=0.2), progress) == 0.2
    cosine = Optimizer(lr=0.2, schedule="cosine")
    expected = {0.0: 0.2, 1 / 3: 0.15, 0.5: 0.1, 2 / 3: 0.05, 1.0: 0.0}
    for progress, lr in expected.items():
        assert learning_rate(cosine, progress) == pytest.approx(lr, abs=1e-12)
    cycle = Optimizer(lr=0.2, schedule="one_cycle")
    # From lr / 25 straight up to lr at 30 %, then half a cosine down to lr / 1000.
    for progress, lr in {0.0: 0.008, 0.15: 0.104, 0.3: 0.2, 0.65: 0.1001, 1.0: 0.0002}.items():
        assert learning_rate(cycle, progress) == pytest.approx(lr, rel=1e-9)
    values = [learning_rate(cycle, p) for p in np.linspace(0, 1, 101)]
    assert max(values) == pytest.approx(0.2)
    assert np.argmax(values) == 30
    assert np.abs(np.diff(values)).max() < 0.2 * 0.04


def run_rounds(plan: Plan, task: ReceiverTask, count: int, keep: bool) -> tuple[Parameters, dict[str, Parameters]]:
    """Several rounds of one receiver, as the centralised reference does them."""
    shared, decoders = task.shared, task.decoders
    state: Parameters = {}
    for number in range(1, count + 1):
        keys = {"round": number, "shared": shared, "decoders": decoders, "optimizer": state, "keep_optimizer": keep}
        reply = only(plan, task_of(plan, task.indices, task.seed, **keys))
        shared, decoders, state = after(reply, shared), reply.decoders, reply.optimizer
    return shared, decoders


PLAIN_OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "adam": ({"kind": "adam", "lr": 1e-3}, lambda p: torch.optim.Adam(p, 1e-3)),
    "adamw": (
        {"kind": "adamw", "lr": 1e-3, "weight_decay": 0.5},
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.5),
    ),
    "momentum": (
        {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", PLAIN_OPTIMIZERS)
def test_kept_optimiser_state_makes_rounds_one_long_run(name: str) -> None:
    """Four rounds of one full-batch epoch with the state kept are four steps of PyTorch's own optimiser; started
    afresh in every round they are not."""
    options, build = PLAIN_OPTIMIZERS[name]
    plan = quiet_plan(options, federation={"kind": "none", "rounds": 4})
    task = task_of(plan, np.arange(160))
    plain = Plain(plan, task.shared, task.decoders)
    optimizer = build(plain.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        plain.losses(task.indices, LABEL).mean().backward()
        optimizer.step()
    shared, decoders = run_rounds(plan, task, 4, keep=True)
    # Adam turns a gradient that is zero but for rounding into a full step: a few weights may differ.
    assert apart(shared, weights_of(plain.encoder), task.shared) < 1e-3
    assert apart(decoders["label@down"], weights_of(plain.decoders[LABEL]), task.decoders["label@down"]) < 1e-3
    fresh, _ = run_rounds(plan, task, 4, keep=False)
    assert apart(fresh, weights_of(plain.encoder), task.shared) > 0.3


def test_the_schedule_runs_over_all_rounds_and_epochs() -> None:
    """Cosine over 2 rounds of 2 full-batch epochs: the four steps have the rates of progress 0, 1/4, 1/2, 3/4."""
    optimizer = {"kind": "sgd", "lr": 0.2, "schedule": "cosine"}
    plan = quiet_plan(optimizer, {"epochs": 2}, federation={"kind": "none", "rounds": 2})
    task = task_of(plan, np.arange(160))
    plain = Plain(plan, task.shared, task.decoders)
    for step in range(4):
        for parameter in plain.parameters():
            parameter.grad = None
        plain.losses(task.indices, LABEL).mean().backward()
        for parameter in plain.parameters():
            assert parameter.grad is not None
            parameter.data -= 0.1 * (1 + math.cos(math.pi * step / 4)) * parameter.grad
    shared, _ = run_rounds(plan, task, 2, keep=False)
    assert apart(shared, weights_of(plain.encoder), task.shared) < 1e-3


def test_the_proximal_term_pulls_towards_the_global_model() -> None:
    """Two SGD steps: in the first the receiver still is at w0 and the term is zero; in the second its gradient is
    mu (w1 - w0), of the encoder only."""
    lr, mu = 0.2, 0.7
    one = quiet_plan({"kind": "sgd", "lr": lr}, {"epochs": 1})
    two = quiet_plan({"kind": "sgd", "lr": lr}, {"epochs": 2})
    indices = np.arange(160)
    first = only(one, task_of(one, indices))
    pulled_once = only(one, task_of(one, indices, proximal_mu=mu))
    assert all(torch.equal(first.delta[name], pulled_once.delta[name]) for name in first.delta)
    free, pulled = only(two, task_of(two, indices)), only(two, task_of(two, indices, proximal_mu=mu))
    difference = {name: pulled.delta[name] - free.delta[name] for name in free.delta}
    expected = {name: -lr * mu * value for name, value in first.delta.items()}
    zero = {name: torch.zeros_like(value) for name, value in expected.items()}
    assert apart(difference, expected, zero) < 1e-3
    for name, value in free.decoders["label@down"].items():
        torch.testing.assert_close(pulled.decoders["label@down"][name], value, rtol=1e-6, atol=1e-7)
    # The reported loss is the task's, without the term.
    assert pulled.losses == pytest.approx(free.losses, rel=1e-6)
    assert same(only(two, task_of(two, indices, proximal_mu=0.0)), free)


def test_fedprox_hands_its_mu_to_the_receivers_and_with_mu_0_is_fedavg() -> None:
    states = {}
    aggregators: dict[str, dict[str, Any]] = {
        "fedavg": {"kind": "fedavg"},
        "none": {"kind": "fedprox", "mu": 0},
        "some": {"kind": "fedprox", "mu": 0.7},
    }
    for name, aggregator in aggregators.items():
        plan = quiet_plan(
            {"kind": "sgd", "lr": 0.2},
            {"epochs": 2},
            receivers={"all": {"count": 2, "tasks": ["label"], "channel": "down"}},
            federation={"kind": "flower", "rounds": 1, "aggregator": aggregator},
        )
        halves = [np.arange(60), np.arange(60, 160)]
        before, _, states[name] = one_round(plan, halves)
        given = rounds.tasks(plan, before, halves, 0, [0, 1])
        assert [task.proximal_mu for task in given] == [aggregator.get("mu", 0)] * 2
    for key, value in states["fedavg"].shared.items():
        assert torch.equal(value, states["none"].shared[key])
    moved = {name: float(sum((v - before.shared[k]).square().sum() for k, v in states[name].shared.items()))
             for name in states}  # fmt: skip
    assert moved["some"] < moved["fedavg"]


def test_replies_say_what_was_learnt() -> None:
    """Delta is new minus old; the loss is the mean over the images of the last epoch, not over batches."""
    plan = quiet_plan({"kind": "sgd", "lr": 1e-9}, {"batch": 64, "epochs": 2})
    task = task_of(plan, np.arange(100))
    reply = only(plan, task)
    plain = Plain(plan, task.shared, task.decoders)
    with torch.no_grad():
        by_hand = float(plain.losses(task.indices, LABEL).mean())
    assert reply.losses == {"label@down": pytest.approx(by_hand, rel=1e-5)}
    assert reply.examples == 100
    assert reply.optimizer == {}
    assert reply.delta.keys() == task.shared.keys()
    assert reply.decoders.keys() == task.decoders.keys()


def test_several_draws_cost_one_pass_of_the_encoder(listened: Callable[[type], Heard]) -> None:
    heard = listened(Awgn)
    plan = quiet_plan({"kind": "adam", "lr": 2e-3}, {"batch": 20, "snr_db": 10, "draws": 4})
    only(plan, task_of(plan, np.arange(60)))
    assert [(tuple(x.shape), tuple(drawn.noise.shape)) for x, _, drawn in heard] == [((20, 8), (4, 20, 8))] * 3
