"""TRADES, label smoothing and interval bounds in training: published formulas, closed forms, and links."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_loss_defenses import LINK, defense, reply
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.checks import resolve
from fedsem.errors import ScenarioError
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.hooks.loss import Decoding
from fedsem.registry import find
from fedsem.scenario import check_scenario
from fedsem.streams import Stream
from fedsem.tasks.task import Task
from fedsem.units import energy, from_db


class Decoders:
    """A step with a decoder on what is on air, x + delta, heard in one draw with no noise."""

    def __init__(self, kind: str, decoder: nn.Module, truth: Tensor, count: int = 5, progress: float = 1.0) -> None:
        self.task: Task = find("task", kind)()  # type: ignore[assignment]
        self.decoder, self.truth, self.progress = decoder, truth, progress
        self.x = torch.randn(count, 6, generator=torch.Generator().manual_seed(3))
        self.asked: list[Perturbation] = []

    def site(self, name: str) -> SiteState:
        return SiteState(self.x, energy(self.x), bounded=False)

    def decodings(self, delta: Perturbation) -> list[Decoding]:
        self.asked.append(delta)
        heard = (self.x + delta["air"] if delta else self.x).unsqueeze(0)
        return [Decoding("t@c", self.task, self.decoder, 1.0, heard, self.decoder(heard), self.truth)]

    def reach(self, name: str) -> Tensor:
        return torch.ones(1, *self.x.shape)

    def losses(self, delta: Perturbation) -> Tensor:
        (one,) = self.decodings(delta)
        return one.task.loss(one.output, one.truth).mean(0)

    def loss(self, delta: Perturbation) -> Tensor:
        return self.losses(delta).mean()


def linear(outputs: int, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(6, outputs)


LABELS = torch.tensor([0, 3, 1, 2, 0])


def test_trades_is_the_formula_of_its_authors() -> None:
    """Their code: criterion_kl(log_softmax(f(x_adv)), softmax(f(x))) / B with KLDivLoss(reduction='sum')."""
    net = linear(4)
    step = Decoders("classification", net, LABELS)
    made = defense("trades", psr_db=-10, sites=["air"], beta=3.0, steps=10)
    loss = made.loss(step, Stream(0))
    delta = step.asked[-1]["air"]
    clean, moved = net(step.x), net(step.x + delta)
    apart = F.kl_div(F.log_softmax(moved, 1), F.softmax(clean, 1), reduction="sum") / 5
    expected = F.cross_entropy(clean, LABELS) + 3.0 * apart
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    spent = energy(delta) / energy(step.x)
    np.testing.assert_allclose(spent.numpy(), from_db(-10.0), rtol=1e-3)
    # It has climbed: further than 200 random directions of the same length.
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = torch.randn(delta.shape, generator=generator)
        other = other / other.norm(dim=1, keepdim=True) * delta.norm(dim=1, keepdim=True)
        tried = F.kl_div(F.log_softmax(net(step.x + other), 1), F.softmax(clean, 1), reduction="sum") / 5
        assert float(tried) < float(apart)
    loss.backward()
    assert net.weight.grad is not None
    assert bool(net.weight.grad.isfinite().all())


def test_trades_of_a_linear_reconstruction_ends_at_the_largest_singular_value() -> None:
    """max over ||d|| <= r of ||W d||^2 / pixels is r^2 s_1^2 / pixels."""
    net, pictures = linear(9, seed=2), torch.zeros(5, 9)
    step = Decoders("reconstruction", net, pictures)
    loss = defense("trades", psr_db=-20, sites=["air"], beta=1.0, steps=300, step_size=0.2).loss(step, Stream(1))
    largest = float(torch.linalg.svdvals(net.weight.detach())[0])
    worst = from_db(-20.0) * energy(step.x).mean() * largest**2 / 9
    assert float(loss - net(step.x).square().mean()) == pytest.approx(float(worst), rel=1e-3)


def test_label_smoothing_is_that_of_torch() -> None:
    net = linear(4)
    loss = defense("label_smoothing", smoothing=0.2).loss(step := Decoders("classification", net, LABELS), Stream(0))
    assert float(loss) == pytest.approx(float(F.cross_entropy(net(step.x), LABELS, label_smoothing=0.2)), rel=1e-5)
    pictures = Decoders("reconstruction", linear(9), torch.zeros(5, 9))
    kept = defense("label_smoothing", smoothing=0.2).loss(pictures, Stream(0))
    assert float(kept) == pytest.approx(float(pictures.loss({})), rel=1e-6)


@pytest.mark.parametrize(
    ("progress", "grown"), [(0.0, 0.0), (0.2, 0.0), (0.3, 0.25), (0.5, 0.75), (0.6, 1.0), (0.9, 1.0)]
)
def test_interval_training_follows_its_schedule(progress: float, grown: float) -> None:
    """Of one linear layer the worst logit of a class against the true one is (w_k - w_y) x + eps |w_k - w_y|_1."""
    net = linear(4)
    step = Decoders("classification", net, LABELS, progress=progress)
    loss = defense("ibp", psr_db=-20, kappa=0.25, start=0.2, end=0.6).loss(step, Stream(0))
    eps = grown * (from_db(-20.0) * step.x.square().mean(1)).sqrt()
    apart = net.weight.unsqueeze(0) - net.weight[LABELS].unsqueeze(1)  # (B, C, 6)
    logits = net(step.x)
    worst = logits - logits.gather(1, LABELS.unsqueeze(1)) + eps.unsqueeze(1) * apart.abs().sum(-1)
    kappa = 1 - grown * 0.75
    expected = kappa * F.cross_entropy(logits, LABELS) + (1 - kappa) * F.cross_entropy(worst, LABELS)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "made",
    [
        {"kind": "trades", "psr_db": -20, "steps": 2},
        {"kind": "trades", "psr_db": -20, "steps": 2, "sites": ["air", "input"]},
        {"kind": "label_smoothing"},
        {"kind": "ibp", "psr_db": -30, "start": 0.0, "end": 0.1},
    ],
)
def test_a_receiver_trains_with_it(made: dict[str, Any]) -> None:
    """Classification and sensing together: it changes what is learnt, and reports a loss of each task."""
    plain, other = reply({}), reply({"d": made})
    assert other.error is None
    assert set(other.losses) == set(plain.losses)
    assert all(np.isfinite(loss) for loss in other.losses.values())
    assert any(bool((other.delta[name] != plain.delta[name]).any()) for name in plain.delta)


def test_with_almost_no_weight_trades_is_plain_training() -> None:
    """The encoder learns from the clean loss, with the channel draws and the dropout of plain training."""
    plain = reply({})
    weak = reply({"d": {"kind": "trades", "psr_db": -60, "sites": ["air"], "beta": 1e-9, "steps": 1}})
    for name, moved in plain.delta.items():
        assert float((weak.delta[name] - moved).norm()) < 0.02 * float(moved.norm())


def test_two_looks_at_a_batch_share_their_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a perturbation the clean and the perturbed outputs are the same, dropout included."""
    cls = find("defense", "trades")
    found: list[float] = []

    def loss(self: Any, step: Any, stream: Stream) -> Tensor:
        nothing = {"input": torch.zeros_like(step.site("input").clean)}
        pairs = zip(step.decodings({}), step.decodings(nothing), strict=True)
        found.extend(float((one.output - other.output).detach().abs().max()) for one, other in pairs)
        clean = step.loss({})
        found.append(float((step.losses(nothing).mean() - clean).detach().abs()))
        total: Tensor = clean
        return total

    monkeypatch.setattr(cls, "loss", loss)
    assert reply({"d": {"kind": "trades", "psr_db": -20}}).error is None
    outputs, redrawn = [*found[0:2], *found[3:5]], [found[2], found[5]]  # two tasks, two batches
    assert max(outputs) < 1e-5
    assert min(redrawn) > 1e-4  # the plain losses of adversarial training draw it anew, as before


def test_before_the_box_grows_interval_training_is_plain_training() -> None:
    plain, early = reply({}), reply({"d": {"kind": "ibp", "psr_db": -20, "start": 0.9, "end": 1.0}})
    assert plain.losses == early.losses
    assert all(bool((plain.delta[name] == early.delta[name]).all()) for name in plain.delta)


PICTURE = {"picture": {"kind": "reconstruction"}}
RECEIVERS = {"all": {"count": 1, "tasks": ["picture"], "channel": "down"}}
MAE: dict[str, Any] = {
    "data": {"kind": "digit_scenes"},
    "link": {"encoder": {"kind": "mae"}},
    "channels": {"down": {"kind": "awgn"}},
    "tasks": {"objects": {"kind": "detection", "weight": 1}, **PICTURE},
    "receivers": {"all": {"count": 1, "tasks": ["picture", "objects"], "channel": "down"}},
}


@pytest.mark.parametrize(
    ("made", "changes", "sentence"),
    [
        ({"kind": "label_smoothing"}, {"tasks": PICTURE, "receivers": RECEIVERS, "channels": {"down": "awgn"}},
         r"'defenses\.d': 'label_smoothing' needs a task of kind classification"),
        ({"kind": "ibp", "psr_db": -20}, {"tasks": PICTURE, "receivers": RECEIVERS, "channels": {"down": "awgn"}},
         r"'defenses\.d': 'ibp' needs a task of kind classification or sensing"),
        ({"kind": "ibp", "psr_db": -20, "start": 0.5, "end": 0.5}, {}, r"'defenses\.d\.end': 0\.5 is not after"),
        ({"kind": "ibp", "psr_db": -20}, MAE, r"'ibp' bounds dense decoders of received numbers"),
        ({"kind": "trades", "psr_db": -20}, MAE, r"'trades' needs a distance between two outputs.*'objects'"),
        ({"kind": "trades", "psr_db": -20, "random_start": True}, {}, r"random_start"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(made: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence):
        resolve(check_scenario({**LINK, **changes, "defenses": {"d": made}, "use": {"defenses": ["d"]}}))
