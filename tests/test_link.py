"""The transmitter: average power 1, a fixed gain for `batch_average`, precision, and nothing that hangs on train()."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fresh_link, small_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsem.link import Transmitter
from fedsem.plan import warn_of_slow_precision
from fedsem.training import initial_parameters

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)


class Scaled(nn.Module):
    """A random encoder with outputs of any scale and offset."""

    def __init__(self, uses: int, scale: float, offset: float, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, uses))
        self.scale, self.offset = scale, offset

    def forward(self, images: Tensor) -> Tensor:
        encoded: Tensor = self.scale * (self.net(images) + self.offset)
        return encoded


def power(x: Tensor) -> np.ndarray:
    """Mean power per use of each example, in double precision."""
    return np.square(x.detach().double().numpy()).mean(1)


ENCODERS = {
    "uses": st.integers(1, 64),
    "scale": st.floats(-4, 4).map(lambda exponent: 10**exponent),
    "offset": st.sampled_from([0.0, 1.0, -30.0]),
    "seed": st.integers(0, 2**31),
}


@PROPERTY
@given(**ENCODERS)
def test_every_example_has_mean_power_one(uses: int, scale: float, offset: float, seed: int) -> None:
    images = torch.rand((5, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    x = Transmitter(Scaled(uses, scale, offset, seed), "real", "per_example", "float32")(images)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(power(x), 1, rtol=1e-5)


@PROPERTY
@given(**ENCODERS)
def test_a_batch_has_mean_power_one_and_after_calibration_each_image_its_own(
    uses: int, scale: float, offset: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    images, others = torch.rand((6, 3, 3, 3), generator=g), torch.rand((9, 3, 3, 3), generator=g)
    encoder = Scaled(uses, scale, offset, seed)
    transmitter = Transmitter(encoder, "real", "batch_average", "float32")
    assert power(transmitter(images)).mean() == pytest.approx(1, rel=1e-5)
    assert power(transmitter(images[:2])).mean() == pytest.approx(1, rel=1e-5)
    transmitter.calibrate(others, batch=4)
    # The mean over the calibration images is 1, however they were cut into batches.
    assert power(transmitter(others)).mean() == pytest.approx(1, rel=1e-5)
    alone = torch.cat([transmitter(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(alone, transmitter(images), rtol=1e-4, atol=1e-5)
    # One gain for all: the encoder's own proportions remain.
    raw = power(encoder(others))
    np.testing.assert_allclose(power(transmitter(others)), raw / raw.mean(), rtol=1e-4)


def test_calibration_weighs_images_not_batches() -> None:
    """7 images in batches of 4 and 3: a mean of batch means would be off."""
    images = torch.rand((7, 3, 3, 3), generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8).view(7, 1, 1, 1)
    encoder = Scaled(8, 1.0, 0.0, 0)
    gains = []
    for batch in (3, 4, 7):
        transmitter = Transmitter(encoder, "real", "batch_average", "float32")
        transmitter.calibrate(images, batch)
        gains.append(transmitter.gain)
    assert gains == pytest.approx([1 / math.sqrt(power(encoder(images)).mean())] * 3, rel=1e-6)


def test_per_example_power_needs_no_calibration() -> None:
    transmitter = Transmitter(Scaled(8, 1.0, 0.0, 0), "real", "per_example", "float32")
    transmitter.calibrate(torch.rand(4, 3, 3, 3), 2)
    assert transmitter.gain is None


def test_a_silent_encoder_sends_zeros_and_no_nan() -> None:
    for kind in ("per_example", "batch_average"):
        x = Transmitter(Scaled(8, 0.0, 0.0, 0), "real", kind, "float32")(torch.rand(2, 3, 3, 3))
        assert torch.equal(x, torch.zeros(2, 8))


def test_the_trained_links_power_is_one(trained_link: Any) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(power(trained_link.transmitter(trained_link.images[:64])), 1, rtol=1e-5)


def test_batch_average_is_calibrated_when_a_link_is_put_together() -> None:
    keys = {"encoder": {"kind": "cnn", "channel_uses": 8}, "power": "batch_average"}
    link = fresh_link({"kind": "awgn"}, link=keys)
    with torch.no_grad():
        train = link.plan.train_examples.images.float() / 255
        assert power(link.transmitter(train)).mean() == pytest.approx(1, rel=1e-5)
        alone = torch.cat([link.transmitter(image.unsqueeze(0)) for image in link.images])
        torch.testing.assert_close(alone, link.transmitter(link.images), rtol=1e-4, atol=1e-5)
        assert power(alone).std() > 1e-4


def test_bf16_is_close_to_float32_and_still_meets_the_power_constraint(trained_link: Any) -> None:
    """Eight bits of mantissa: per cent, not more. The signal itself is float32, so its power is exact."""
    single = trained_link.transmitter
    half = Transmitter(single.encoder, single.symbols, single.power, "bf16").eval()
    with torch.no_grad():
        a, b = single(trained_link.images[:64]), half(trained_link.images[:64])
    assert b.dtype == torch.float32
    np.testing.assert_allclose(power(b), 1, rtol=1e-5)
    apart = (a - b).norm() / a.norm()
    assert 1e-5 < apart < 0.03


def test_bf16_keeps_parameters_and_gradients_in_float32() -> None:
    plan = small_plan(compute={"engine": "local", "device": "cpu", "precision": "bf16"})
    transmitter = plan.new_transmitter()
    transmitter(torch.rand(2, 3, 32, 32)).square().sum().backward()
    for parameter in transmitter.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "able", "told"),
    [
        ("bf16", {"avx512_bf16": False, "amx_bf16": False}, True),
        ("bf16", {"avx512_bf16": False, "amx_bf16": True}, False),
        ("bf16", {}, False),
        ("float32", {"avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_a_precision_that_the_cpu_can_only_emulate_is_told(
    precision: str, able: dict[str, bool], told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    warn_of_slow_precision(small_plan(compute={"engine": "local", "device": "cpu", "precision": precision}))
    assert ["compute.precision=float32" in record.getMessage() for record in caplog.records] == [True] * told


@pytest.mark.parametrize(
    ("channel", "symbols", "task"),
    [
        ({"kind": "awgn"}, "real", "classification"),
        ({"kind": "rayleigh", "csi": "mmse", "estimation_error": 0.1}, "complex", "classification"),
        ({"kind": "sensing"}, "real", "sensing"),
    ],
)
def test_what_is_received_never_depends_on_training_mode(channel: dict[str, Any], symbols: str, task: str) -> None:
    """With dropout off, train() and eval() must give the same receptions, noise included: an eval() that silently
    switches the channel's noise off is a known trap."""
    encoder = {"kind": "cnn", "channel_uses": 8, "dropout": 0.0}
    link = fresh_link(channel, task, link={"encoder": encoder, "symbols": symbols})
    plan, listener = link.plan, link.listeners[0]
    received, outputs = [], []
    for mode in (True, False):
        link.transmitter.train(mode)
        listener.decoder.train(mode)
        with torch.no_grad():
            x = link.transmitter(link.images)
            air = plan.channel(listener.branch)
            drawn = air.draw((4, len(x)), 8, plan.scenario.link.symbols, torch.Generator().manual_seed(5))
            received.append(air.apply(x, drawn, 3.0, plan.scenario.link.symbols))
            outputs.append(listener.decoder(received[-1]))
            silent = air.apply(x, drawn, 200.0, plan.scenario.link.symbols)
        assert (received[-1] - silent).abs().mean() > 0.1
    assert torch.equal(received[0], received[1])
    assert torch.equal(outputs[0], outputs[1])


def test_dropout_acts_in_training_only() -> None:
    link = fresh_link({"kind": "awgn"})
    with torch.no_grad():
        a, b = link.transmitter.eval()(link.images), link.transmitter(link.images)
        assert torch.equal(a, b)
        c, d = link.transmitter.train()(link.images), link.transmitter(link.images)
        assert not torch.equal(c, d)


def test_all_receivers_start_from_the_same_parameters_of_the_seed() -> None:
    """Initial weights come from named streams: neither the global generator nor the order of construction matters."""
    plan = small_plan()
    torch.rand(3)
    first, decoders = initial_parameters(plan, 1)
    torch.rand(7)
    second, _ = initial_parameters(plan, 1)
    third, _ = initial_parameters(plan, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name, value in first.items() if value.ndim > 1]  # biases begin at zero, whatever the seed
    assert len(weights) == 5
    assert not any(torch.equal(first[name], third[name]) for name in weights)
    assert set(decoders) == {"label@down", "picture@down", "target@radar"}
