"""The channels against textbook closed forms: error rates, outage, the distributions of fading, what noise may not do.

Sources: Proakis & Salehi, Digital Communications, 5th ed. (error rates, appendix B for imperfect estimates); Simon &
Alouini, Digital Communication over Fading Channels (Rician); Tse & Viswanath (outage). All draws have fixed seeds;
statistical bounds are five standard errors, so that a bound is not met by luck and not missed by bad luck.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import integrate, stats
from scipy.special import k1, ndtr
from torch import Tensor

from fedsem.channels.awgn import Awgn
from fedsem.channels.channel import Channel, Realisation
from fedsem.channels.rayleigh import Rayleigh
from fedsem.channels.rician import Rician
from fedsem.channels.sensing import Sensing
from fedsem.channels.symbols import Symbols, from_air, to_air, uses

PROPERTY = settings(deadline=None, derandomize=True, max_examples=25)
BOTH: tuple[Symbols, ...] = ("real", "complex")
CSI: tuple[Any, ...] = ("none", "phase", "zf", "mmse")
Fading = Literal["block", "fast"]

FADING_CHANNELS: list[Any] = [Rayleigh(fading=f, csi=c) for f in ("block", "fast") for c in CSI] + [
    Rician(k_factor=5, fading="fast", csi="mmse", estimation_error=0.1),
    Rayleigh(csi="zf", decoder_csi=True, estimation_error=0.2),
    Rayleigh(fading="fast", csi="none", decoder_csi=True),
]
SENSING_CHANNELS = [
    Sensing(fading="none"),
    Sensing(geometry="bistatic", direct_path_db=3.0, range_bins=4, path_loss=2),
    Sensing(geometry="monostatic", known_waveform=True, known_snr=False, range_bins=3),
    Sensing(geometry="monostatic", known_waveform=True),
]
CHANNELS: list[Channel] = [Awgn(), *FADING_CHANNELS, *SENSING_CHANNELS]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waveform(examples: int, channel_uses: int, seed: int = 1) -> Tensor:
    """Gaussian numbers with a mean power of exactly 1 per example."""
    x = torch.randn((examples, channel_uses), generator=rng(seed))
    return x * math.sqrt(channel_uses) / x.norm(dim=1, keepdim=True)


def describe(channel: Channel) -> str:
    options = channel.model_dump(exclude_defaults=True).values()
    return "-".join([channel.kind, *(str(option) for option in options)])


def error_rate(channel: Channel, symbols: Symbols, snr_db: float, channel_uses: int = 8) -> tuple[float, float]:
    """Sign errors of bits sent as +-1, and five standard errors (bits under one gain are one cluster)."""
    examples = 320_000 // channel_uses
    bits = torch.randint(0, 2, (examples, channel_uses), generator=rng(2)) * 2.0 - 1
    drawn = channel.draw((examples,), channel_uses, symbols, rng(3))
    wrong = (channel.apply(bits, drawn, snr_db, symbols).sign() != bits).double().mean(1)
    return wrong.mean().item(), 5 * wrong.std().item() / math.sqrt(examples) + 1e-5


def by_symbol(x: Tensor, symbols: Symbols) -> np.ndarray:
    """Our own conversion of real numbers to symbols, in double precision."""
    if symbols == "real":
        return x.double().numpy()
    pairs = x.double().numpy().reshape(*x.shape[:-1], -1, 2)
    return (pairs[..., 0] + 1j * pairs[..., 1]) / math.sqrt(2)


def close(got: Tensor, symbols: Symbols, expected: np.ndarray, tolerance: float = 2e-4) -> None:
    """Compare what a decoder receives with symbols computed in double precision."""
    actual = by_symbol(got, symbols)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected) / (1 + np.abs(expected).max(axis=-1, keepdims=True))
    assert error.max() < tolerance


# --- Symbols ---------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 2**31))
def test_symbols_there_and_back(examples: int, pairs: int, seed: int) -> None:
    x = torch.randn((examples, 2 * pairs), generator=rng(seed))
    assert torch.equal(from_air(to_air(x, "real"), "real"), x)
    torch.testing.assert_close(from_air(to_air(x, "complex"), "complex"), x, rtol=3e-7, atol=0)
    assert to_air(x, "complex").shape == (examples, pairs) == (examples, uses(2 * pairs, "complex"))
    close(x, "complex", by_symbol(x, "complex"))
    # Power per symbol is 1 in both ways: half the energy on air, in half the symbols.
    mean_power = to_air(x, "complex").abs().square().mean()
    torch.testing.assert_close(mean_power, x.square().mean(), rtol=1e-5, atol=0)


def test_complex_symbols_pair_neighbours() -> None:
    z = to_air(torch.tensor([[1.0, 2.0, 3.0, -4.0]]), "complex")
    torch.testing.assert_close(z, torch.tensor([[1 + 2j, 3 - 4j]]) / math.sqrt(2))


def test_complex_symbols_need_an_even_number() -> None:
    with pytest.raises(RuntimeError):
        to_air(torch.ones(1, 3), "complex")


# --- Error rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("snr_db", [-3, 0, 4, 8, 10])
def test_bpsk_and_qpsk_over_awgn(symbols: Symbols, snr_db: float) -> None:
    """Real: amplitude 1, noise 1/SNR. Complex: amplitude 1/sqrt 2, noise 1/(2 SNR) per component. Both Q(sqrt SNR)."""
    measured, bound = error_rate(Awgn(), symbols, snr_db)
    assert measured == pytest.approx(ndtr(-math.sqrt(10 ** (snr_db / 10))), abs=bound)
    assert bound < 0.005


@pytest.mark.parametrize("csi", ["phase", "zf", "mmse"])
@pytest.mark.parametrize("fading", ["block", "fast"])
@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("snr_db", [0, 10, 20])
def test_bpsk_and_qpsk_over_rayleigh(symbols: Symbols, fading: Fading, csi: Any, snr_db: float) -> None:
    """E Q(sqrt(|h|^2 SNR)) = (1 - sqrt(g / (1 + g))) / 2 with g = SNR / 2, for real symbols and for complex ones."""
    g = 10 ** (snr_db / 10) / 2
    measured, bound = error_rate(Rayleigh(fading=fading, csi=csi), symbols, snr_db)
    assert measured == pytest.approx((1 - math.sqrt(g / (1 + g))) / 2, abs=bound)
    assert bound < 0.01


@pytest.mark.parametrize("fading", ["block", "fast"])
def test_without_csi_the_phase_is_known_for_real_symbols_only(fading: Fading) -> None:
    measured, bound = error_rate(Rayleigh(fading=fading, csi="none"), "real", 10)
    assert measured == pytest.approx((1 - math.sqrt(5 / 6)) / 2, abs=bound)
    measured, bound = error_rate(Rayleigh(fading=fading, csi="none"), "complex", 10)
    assert measured == pytest.approx(0.5, abs=bound)


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("k_factor", [0.0, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("snr_db", [3, 10])
def test_bpsk_and_qpsk_over_rician(symbols: Symbols, k_factor: float, snr_db: float) -> None:
    """Q(x) = 1/pi int_0^(pi/2) exp(-x^2 / (2 sin^2 t)) dt, averaged through the moment generating function of |h|^2."""
    g = 10 ** (snr_db / 10) / 2

    def integrand(t: float) -> float:
        s = (1 + k_factor) * math.sin(t) ** 2
        return (1 + k_factor) * math.sin(t) ** 2 / (s + g) * math.exp(-k_factor * g / (s + g))

    expected = integrate.quad(integrand, 0, math.pi / 2)[0] / math.pi
    measured, bound = error_rate(Rician(k_factor=k_factor, csi="zf", fading="fast"), symbols, snr_db)
    assert measured == pytest.approx(expected, abs=bound)


@pytest.mark.parametrize("csi", ["phase", "zf", "mmse"])
@pytest.mark.parametrize("estimation_error", [0.01, 0.1, 0.5])
def test_qpsk_with_an_imperfect_estimate(csi: Any, estimation_error: float) -> None:
    """P(Re y e* < 0) = (1 - Re r / sqrt(1 - (Im r)^2)) / 2, r the correlation of y and the estimate (app. B)."""
    snr = 10 ** (12 / 10)
    r = 1 / math.sqrt(2 * (1 + 1 / snr) * (1 + estimation_error))
    channel = Rayleigh(csi=csi, fading="fast", estimation_error=estimation_error)
    measured, bound = error_rate(channel, "complex", 12)
    assert measured == pytest.approx((1 - r / math.sqrt(1 - r**2)) / 2, abs=bound)


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize(("snr_db", "rate"), [(5, 1.0), (10, 1.0), (10, 2.0), (20, 3.0)])
def test_rayleigh_outage_as_received(symbols: Symbols, snr_db: float, rate: float) -> None:
    """P(log2(1 + |h|^2 SNR) < R) = 1 - exp(-(2^R - 1) / SNR), with the received SNR measured from x and y alone.

    If noise were scaled from faded power, the received SNR would not vary and there would be no outage.
    """
    examples, channel_uses, snr = 10_000, 256, 10 ** (snr_db / 10)
    x = waveform(examples, channel_uses)
    channel = Rayleigh(csi="none")
    y = by_symbol(channel.apply(x, channel.draw((examples,), channel_uses, symbols, rng(4)), snr_db, symbols), symbols)
    z = by_symbol(x, symbols)
    gain = (y * z.conj()).sum(1, keepdims=True) / (np.abs(z) ** 2).sum(1, keepdims=True)
    noise = (np.abs(y - gain * z) ** 2).sum(1) / (z.shape[1] - 1)
    received_snr = (np.abs(gain[:, 0]) ** 2 - noise / z.shape[1]) / noise
    expected = 1 - math.exp(-(2**rate - 1) / snr)
    outage = np.mean(np.log2(1 + received_snr.clip(0)) < rate)
    assert outage == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / examples) + 0.002)
    # The noise floor does not move with the fade.
    weak = np.abs(gain[:, 0]) ** 2 < 0.2
    for part in (noise[weak], noise[~weak]):
        assert part.mean() * snr == pytest.approx(1, abs=5 * part.std() * snr / math.sqrt(len(part)))


# --- Distributions of the gains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("fading", ["block", "fast"])
def test_rayleigh_gains_are_cn_0_1(symbols: Symbols, fading: Fading) -> None:
    drawn = Rayleigh(fading=fading).draw((20_000,), 4, symbols, rng())
    assert drawn.h.shape == (20_000, 1 if fading == "block" else uses(4, symbols))
    for gain in (drawn.h, drawn.g, drawn.error):
        values = gain.flatten()[:20_000].numpy()
        assert stats.kstest(np.abs(values) ** 2, "expon").pvalue > 1e-3
        assert stats.kstest(np.angle(values), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 1e-3
        assert stats.kstest(values.real * math.sqrt(2), "norm").pvalue > 1e-3
        assert np.mean(np.abs(values) ** 2) == pytest.approx(1, abs=5 / math.sqrt(20_000))


@pytest.mark.parametrize("k_factor", [0.5, 3.0, 10.0, 100.0])
def test_rician_gains(k_factor: float) -> None:
    """|h| ~ Rice, E|h|^2 = 1, and K from the moments: sqrt(1 - v) / (1 - sqrt(1 - v)) with v = Var |h|^2."""
    n = 50_000
    drawn = Rician(k_factor=k_factor).draw((n,), 1, "real", rng())
    for gain in (drawn.h, drawn.g):
        amplitude = gain.flatten().abs().double().numpy()
        power = amplitude**2
        assert power.mean() == pytest.approx(1, abs=5 * power.std() / math.sqrt(n))
        variance = (1 + 2 * k_factor) / (1 + k_factor) ** 2
        assert power.var() == pytest.approx(variance, abs=5 * ((power - 1) ** 2).std() / math.sqrt(n))
        root = math.sqrt(1 - power.var() / power.mean() ** 2)
        assert root / (1 - root) == pytest.approx(k_factor, rel=0.05)
        rice = stats.rice(b=math.sqrt(2 * k_factor), scale=math.sqrt(1 / (2 * (k_factor + 1))))
        assert stats.kstest(amplitude, rice.cdf).pvalue > 1e-3


@pytest.mark.parametrize("symbols", BOTH)
def test_rician_without_line_of_sight_is_rayleigh(symbols: Symbols) -> None:
    h = Rician(k_factor=0).draw((20_000,), 2, symbols, rng(1)).h.flatten().numpy()
    other = Rayleigh().draw((20_000,), 2, symbols, rng(2)).h.flatten().numpy()
    assert stats.ks_2samp(np.abs(h), np.abs(other)).pvalue > 1e-3
    assert stats.ks_2samp(np.angle(h), np.angle(other)).pvalue > 1e-3
    one, two = (error_rate(channel, symbols, 10) for channel in (Rician(k_factor=0), Rayleigh()))
    assert one[0] == pytest.approx(two[0], abs=one[1] + two[1])


def test_awgn_gains_are_one() -> None:
    drawn = Awgn().draw((3, 5), 4, "complex", rng())
    assert torch.equal(drawn.h, torch.ones((3, 5, 1), dtype=torch.complex64))
    assert torch.equal(drawn.g, drawn.h)


@pytest.mark.parametrize("channel", [Rayleigh(), Rician(k_factor=2), Rayleigh(fading="fast"), Sensing()], ids=describe)
def test_every_example_has_its_own_gain(channel: Channel) -> None:
    n = 5_000
    drawn = channel.draw((4, n), 1, "real", rng())
    h = torch.view_as_real(drawn.h[..., 0]).reshape(-1, 2)
    assert len(torch.unique(h, dim=0)) == 4 * n
    centred = (drawn.h[..., 0] - drawn.h.mean()).numpy()
    for one, two in [(centred[0, 1:], centred[0, :-1]), (centred[0], centred[1])]:
        assert abs(np.mean(one * two.conj())) / np.mean(np.abs(centred) ** 2) < 5 / math.sqrt(n)


@pytest.mark.parametrize("symbols", BOTH)
def test_block_gain_is_constant_over_the_symbols_and_fast_gain_is_not(symbols: Symbols) -> None:
    x = waveform(200, 8)
    fading: Fading
    for fading in ("block", "fast"):
        channel = Rayleigh(fading=fading, csi="none")
        y = channel.apply(x, channel.draw((200,), 8, symbols, rng()), 200.0, symbols)
        gain = by_symbol(y, symbols) / by_symbol(x, symbols)
        spread = np.abs(gain - gain[:, :1]).max(axis=1)
        assert spread.max() < 1e-4 if fading == "block" else spread.min() > 1e-3


@pytest.mark.parametrize("channel", [Rayleigh(), Rician(k_factor=1), Sensing(geometry="monostatic")], ids=describe)
def test_the_adversarys_gain_and_all_noise_are_independent_of_the_link(channel: Channel) -> None:
    n = 20_000
    drawn = channel.draw((n,), 2, "complex", rng())
    columns = {"h": drawn.h, "g": drawn.g, "noise": drawn.noise[:, :1]}
    if not isinstance(channel, Sensing):
        columns["error"] = drawn.error
    parts = []
    for value in columns.values():
        v = value[:, 0].numpy()
        parts += [v.real, v.imag, np.abs(v) ** 2]
    correlation = np.abs(np.corrcoef(np.stack(parts)))
    for i in range(len(parts)):
        for j in range(len(parts)):
            if i // 3 != j // 3:
                assert correlation[i, j] < 5 / math.sqrt(n)


# --- Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0, 25.0])
def test_noise_per_real_number_has_variance_one_over_snr(symbols: Symbols, snr_db: float) -> None:
    x = waveform(20_000, 10)
    y = Awgn().apply(x, Awgn().draw((20_000,), 10, symbols, rng(5)), snr_db, symbols)
    noise = ((y - x) * 10 ** (snr_db / 20)).flatten().double().numpy()
    assert noise.var() == pytest.approx(1, abs=5 * math.sqrt(2 / noise.size))
    assert noise.mean() == pytest.approx(0, abs=5 / math.sqrt(noise.size))
    assert stats.kstest(noise[:50_000], "norm").pvalue > 1e-3
    # Neighbours, which share a complex symbol, are independent too.
    assert abs(np.mean(noise[::2] * noise[1::2])) < 5 / math.sqrt(noise.size / 2)


def test_real_and_complex_awgn_are_the_same_channel() -> None:
    x = waveform(10_000, 6)
    noise = [
        (Awgn().apply(x, Awgn().draw((10_000,), 6, symbols, rng(seed)), 7.0, symbols) - x).flatten().numpy()
        for seed, symbols in enumerate(BOTH)
    ]
    assert stats.ks_2samp(*noise).pvalue > 1e-3
    assert noise[0].var() == pytest.approx(noise[1].var(), rel=10 * math.sqrt(2 / 60_000))


@pytest.mark.parametrize("channel", [Rayleigh(csi="none"), Rician(csi="none", fading="fast")], ids=describe)
@pytest.mark.parametrize("symbols", BOTH)
def test_noise_is_not_scaled_from_faded_power(channel: Channel, symbols: Symbols) -> None:
    x = waveform(20_000, 8)
    drawn = channel.draw((20_000,), 8, symbols, rng(6))
    h = drawn.h.abs().numpy() if symbols == "real" else drawn.h.numpy()
    noise = np.abs(by_symbol(channel.apply(x, drawn, 5.0, symbols), symbols) - h * by_symbol(x, symbols)) ** 2
    power = np.broadcast_to(np.abs(h) ** 2, noise.shape)
    assert abs(np.corrcoef(noise.flatten(), power.flatten())[0, 1]) < 5 / math.sqrt(20_000)
    for part in (noise[power < 0.1], noise[power > 1.5]):
        assert part.mean() == pytest.approx(10**-0.5, abs=5 * part.std() / math.sqrt(part.size))


@PROPERTY
@given(st.sampled_from(BOTH), st.floats(-20, 30), st.floats(-20, 30), st.integers(0, 2**31))
def test_a_realisation_rescales_over_snr(symbols: Symbols, one: float, two: float, seed: int) -> None:
    """y(snr_1) - h x = sqrt(SNR_2 / SNR_1) (y(snr_2) - h x): a draw is made once and holds for every SNR."""
    silence = torch.zeros(3, 6)
    for channel in (Awgn(), Rayleigh(csi="none"), Rayleigh(fading="fast", csi="zf")):
        drawn = channel.draw((3,), 6, symbols, rng(seed))
        y = [channel.apply(silence, drawn, snr, symbols) for snr in (one, two)]
        torch.testing.assert_close(y[0], y[1] * 10 ** ((two - one) / 20), rtol=1e-5, atol=1e-12)
        x = waveform(3, 6)
        offset = channel.apply(x, drawn, one, symbols) - channel.apply(silence, drawn, one, symbols)
        again = channel.apply(x, drawn, two, symbols) - channel.apply(silence, drawn, two, symbols)
        torch.testing.assert_close(offset, again, rtol=1e-3, atol=2e-5 * max(1.0, *(v.abs().max().item() for v in y)))


@pytest.mark.parametrize("channel", CHANNELS, ids=describe)
@pytest.mark.parametrize("symbols", BOTH)
def test_apply_is_deterministic_given_a_realisation(channel: Channel, symbols: Symbols) -> None:
    """No hidden draw: neither torch's global generator nor a mode of a module can change what is received."""
    x = waveform(5, 6)
    drawn = channel.draw((5,), 6, symbols, rng(7))
    state = torch.get_rng_state()
    first = channel.apply(x, drawn, 3.0, symbols)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        assert torch.equal(channel.apply(x, drawn, 3.0, symbols), first)
    again = channel.draw((5,), 6, symbols, rng(7))
    assert torch.equal(channel.apply(x, again, 3.0, symbols), first)
    assert not isinstance(channel, torch.nn.Module)


# --- Shapes, draws, SNR per example ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", CHANNELS, ids=describe)
@pytest.mark.parametrize("symbols", BOTH)
def test_draws_first(channel: Channel, symbols: Symbols) -> None:
    """(K, B) draws at once equal K applications of (B,) draws, with interference and one SNR per example."""
    k, b, nc = 3, 5, 6
    x, delta, snr = waveform(b, nc), waveform(b, nc, 8) * 0.1, torch.tensor([0.0, 5.0, -3.0, 12.0, 20.0])
    drawn = channel.draw((k, b), nc, symbols, rng(9))
    y = channel.apply(x, drawn, snr, symbols, interference=delta)
    assert y.shape == (k, b, channel.width(nc, symbols))
    assert y.dtype == torch.float32
    for i in range(k):
        values: dict[str, Any] = {f.name: getattr(drawn, f.name) for f in dataclasses.fields(drawn)}
        picked: dict[str, Any] = {name: None if value is None else value[i] for name, value in values.items()}
        single = Realisation(**picked)
        torch.testing.assert_close(y[i], channel.apply(x, single, snr, symbols, interference=delta))
    some = channel.apply(x, drawn.draws(slice(1, 3)), snr, symbols, interference=delta)
    torch.testing.assert_close(some, y[1:3])


@pytest.mark.parametrize("channel", CHANNELS, ids=describe)
@pytest.mark.parametrize("symbols", BOTH)
def test_snr_per_example_equals_a_loop(channel: Channel, symbols: Symbols) -> None:
    x, snr = waveform(4, 6), torch.tensor([-5.0, 0.0, 10.0, 30.0])
    for shape in ((4,), (2, 4)):
        drawn = channel.draw(shape, 6, symbols, rng(10))
        together = channel.apply(x, drawn, snr, symbols)
        for i in range(4):
            alone = channel.apply(x[i : i + 1], drawn.at(slice(i, i + 1)), snr[i].item(), symbols)
            torch.testing.assert_close(together[..., i : i + 1, :], alone)


@pytest.mark.parametrize("channel", CHANNELS, ids=describe)
@pytest.mark.parametrize(
    "index",
    [slice(1, 4), slice(None, None, 2), torch.tensor([4, 0, 0]), torch.tensor([True, False, False, True, True])],
    ids=["slice", "stride", "indices", "mask"],
)
def test_some_of_the_examples(channel: Channel, index: Any) -> None:
    x = waveform(5, 6)
    for shape in ((5,), (3, 5)):
        drawn = channel.draw(shape, 6, "complex", rng(11))
        expected = channel.apply(x, drawn, 5.0, "complex")[..., index, :]
        torch.testing.assert_close(channel.apply(x[index], drawn.at(index).to("cpu"), 5.0, "complex"), expected)


@pytest.mark.parametrize("fading", ["block", "fast"])
@pytest.mark.parametrize("csi", CSI)
@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("decoder_csi", [False, True])
def test_width(fading: Fading, csi: Any, symbols: Symbols, decoder_csi: bool) -> None:
    expected = {
        ("real", "block"): 8 + 1, ("real", "fast"): 8 + 8, ("complex", "block"): 8 + 2, ("complex", "fast"): 8 + 8,
    }[symbols, fading] if decoder_csi else 8  # fmt: skip
    for cls in (Rayleigh, Rician):
        channel = cls(fading=fading, csi=csi, decoder_csi=decoder_csi)
        y = channel.apply(waveform(3, 8), channel.draw((2, 3), 8, symbols, rng()), 10.0, symbols)
        assert channel.width(8, symbols) == expected
        assert y.shape == (2, 3, expected)


def test_gradients_reach_the_signal_and_the_perturbation() -> None:
    """White-box attacks differentiate through every front end."""
    for channel in CHANNELS:
        x, delta = waveform(4, 6).requires_grad_(), torch.zeros(4, 6).requires_grad_()
        y = channel.apply(x, channel.draw((4,), 6, "complex", rng(12)), 10.0, "complex", interference=delta)
        y.square().sum().backward()
        for leaf in (x, delta):
            assert leaf.grad is not None
            assert torch.isfinite(leaf.grad).all()
            assert leaf.grad.abs().sum() > 0


# --- Interference and equalisers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("fading", ["block", "fast"])
@pytest.mark.parametrize("csi", CSI)
@pytest.mark.parametrize("estimation_error", [0.0, 0.3])
def test_what_is_received(symbols: Symbols, fading: Fading, csi: Any, estimation_error: float) -> None:
    """y = w (h x + g delta + n) with the equaliser's weight w of the estimate, recomputed in double precision."""
    channel = Rayleigh(fading=fading, csi=csi, estimation_error=estimation_error)
    x, delta, snr = waveform(50, 6), waveform(50, 6, 13), 10.0**0.7
    drawn = channel.draw((50,), 6, symbols, rng(14))
    h, g, noise, error = (np.asarray(v.numpy(), complex) for v in (drawn.h, drawn.g, drawn.noise, drawn.error))
    e = h + math.sqrt(estimation_error) * error
    if symbols == "real":
        h, g, e = np.abs(h), np.abs(g), np.abs(e)
    weight = {
        "none": np.ones_like(e), "phase": e.conj() / np.abs(e), "zf": 1 / e,
        "mmse": e.conj() / (np.abs(e) ** 2 + 1 / snr),
    }[csi]  # fmt: skip
    clean = channel.apply(x, drawn, 7.0, symbols)
    attacked = channel.apply(x, drawn, 7.0, symbols, interference=delta)
    expected = weight * (h * by_symbol(x, symbols) + noise / math.sqrt(snr))
    close(clean, symbols, expected)
    close(attacked, symbols, expected + weight * g * by_symbol(delta, symbols))
    difference = weight * g * by_symbol(delta, symbols)
    scale = 1 + np.abs(expected).max() / np.abs(difference).max()
    close(attacked - clean, symbols, difference, tolerance=2e-4 * scale)


@pytest.mark.parametrize("symbols", BOTH)
def test_awgn_interference_has_gain_one(symbols: Symbols) -> None:
    x, delta = waveform(20, 6), waveform(20, 6, 2)
    drawn = Awgn().draw((20,), 6, symbols, rng())
    difference = Awgn().apply(x, drawn, 0.0, symbols, interference=delta) - Awgn().apply(x, drawn, 0.0, symbols)
    torch.testing.assert_close(difference, delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("fading", ["block", "fast"])
def test_zero_forcing_inverts_a_noise_free_channel(symbols: Symbols, fading: Fading) -> None:
    x = waveform(500, 6)
    for channel in (Rayleigh(fading=fading, csi="zf"), Rician(fading=fading, csi="zf")):
        y = channel.apply(x, channel.draw((500,), 6, symbols, rng()), 200.0, symbols)
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("symbols", BOTH)
def test_mmse_becomes_zero_forcing_at_high_snr_and_silence_at_low(symbols: Symbols) -> None:
    x = waveform(500, 6)
    zf, mmse = Rayleigh(csi="zf", fading="fast"), Rayleigh(csi="mmse", fading="fast")
    drawn = mmse.draw((500,), 6, symbols, rng())
    torch.testing.assert_close(
        mmse.apply(x, drawn, 90.0, symbols), zf.apply(x, drawn, 90.0, symbols), rtol=1e-3, atol=1e-4
    )
    assert mmse.apply(x, drawn, -60.0, symbols).abs().max() < 0.05


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_mmse_has_the_least_mean_square_error(symbols: Symbols, snr_db: float) -> None:
    """E|x - y|^2 = E 1 / (1 + |h|^2 SNR) over unit-power Gaussian symbols, and any other scaling does worse."""
    snr, n = 10 ** (snr_db / 10), 40_000
    x = torch.randn((n, 4), generator=rng(20))
    channel = Rayleigh(csi="mmse", fading="fast")
    y = channel.apply(x, channel.draw((n,), 4, symbols, rng(21)), snr_db, symbols)
    squared = (y - x).square().mean(1)
    expected = integrate.quad(lambda p: math.exp(-p) / (1 + p * snr), 0, 50)[0]
    assert squared.mean().item() == pytest.approx(expected, abs=5 * squared.std().item() / math.sqrt(n))
    for factor in (0.95, 1.05):
        assert (factor * y - x).square().mean() > squared.mean()


@pytest.mark.parametrize("fading", ["block", "fast"])
@pytest.mark.parametrize("estimation_error", [0.0, 0.01, 0.25, 1.0])
def test_variance_of_the_estimate(fading: Fading, estimation_error: float) -> None:
    """What the decoder is told is h plus an error of the stated variance, independent of h and of the noise."""
    n = 20_000
    channel = Rayleigh(fading=fading, csi="none", decoder_csi=True, estimation_error=estimation_error)
    drawn = channel.draw((n,), 2, "complex", rng(22))
    told = channel.apply(waveform(n, 2), drawn, 10.0, "complex")[:, 2:].unflatten(-1, (-1, 2))
    error = (torch.view_as_complex(told.contiguous()) - drawn.h).flatten().numpy()
    assert np.mean(np.abs(error) ** 2) == pytest.approx(
        estimation_error, abs=5 * estimation_error / math.sqrt(n) + 1e-12
    )
    if estimation_error:
        assert stats.kstest(np.abs(error) ** 2 / estimation_error, "expon").pvalue > 1e-3
        for other in (drawn.h, drawn.noise):
            assert abs(np.mean(error * other.flatten().numpy().conj())) < 5 * math.sqrt(estimation_error / n)


def test_the_decoder_is_told_the_estimate_its_equaliser_used() -> None:
    for symbols in BOTH:
        channel = Rayleigh(csi="zf", decoder_csi=True, estimation_error=0.4)
        drawn = channel.draw((100,), 4, symbols, rng(23))
        with_csi = channel.apply(waveform(100, 4), drawn, 10.0, symbols)
        without = Rayleigh(csi="none").apply(waveform(100, 4), drawn, 10.0, symbols)
        known = with_csi[:, 4:].double().numpy()
        estimate = known if symbols == "real" else known[:, :1] + 1j * known[:, 1:]
        close(with_csi[:, :4], symbols, by_symbol(without, symbols) / estimate)


# --- Sensing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["bistatic", "monostatic"])
@pytest.mark.parametrize("fading", ["rayleigh", "none"])
def test_reflections_have_unit_mean_power(geometry: Any, fading: Any) -> None:
    n = 200_000
    a = Sensing(geometry=geometry, fading=fading).draw((n,), 2, "complex", rng(30)).h.flatten().numpy().astype(complex)
    power = np.abs(a) ** 2
    assert power.mean() == pytest.approx(1, abs=5 * power.std() / math.sqrt(n) + 1e-6)
    if fading == "none":
        assert np.all(a == 1)
    elif geometry == "bistatic":  # product of two Exp(1): P(> p) = 2 sqrt p K_1(2 sqrt p)
        assert stats.kstest(power[:50_000], lambda p: 1 - 2 * np.sqrt(p) * k1(2 * np.sqrt(p))).pvalue > 1e-3
    else:  # E^2 / 2: P(> p) = exp(-sqrt(2 p))
        assert stats.kstest(power[:50_000], lambda p: 1 - np.exp(-np.sqrt(2 * p))).pvalue > 1e-3
    if fading == "rayleigh":
        assert stats.kstest(np.angle(a[:50_000]), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 1e-3


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("range_bins", [1, 2, 5])
def test_presence_and_delay_are_uniform(symbols: Symbols, range_bins: int) -> None:
    n = 30_000
    channel = Sensing(range_bins=range_bins)
    drawn = channel.draw((n,), 6, symbols, rng(31))
    assert drawn.target is not None
    counts = np.bincount(drawn.target.numpy(), minlength=range_bins + 1)
    assert len(counts) == range_bins + 1
    expected = n * np.array([0.5] + [0.5 / range_bins] * range_bins)
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert drawn.noise.shape == (n, uses(6, symbols) + range_bins - 1)
    samples = 6 + (range_bins - 1) * (1 if symbols == "real" else 2)
    assert channel.width(6, symbols) == samples + 1
    assert Sensing(range_bins=range_bins, known_snr=False).width(6, symbols) == samples
    power = drawn.h.abs().square().flatten()
    assert stats.ks_2samp(power[drawn.target == 0].numpy(), power[drawn.target > 0].numpy()).pvalue > 1e-3


def received(channel: Sensing, n: int, nc: int, symbols: Symbols, snr_db: float, seed: int = 32, **options: Any) -> Any:
    """The drawn air and r in the unit of a transmitted symbol (the channel hands out r / sigma)."""
    drawn = channel.draw((n,), nc, symbols, rng(seed))
    samples = nc + (channel.range_bins - 1) * (1 if symbols == "real" else 2)
    x = waveform(n, nc)
    r = channel.apply(x, drawn, snr_db, symbols, **options)[:, :samples].double() * 10 ** (-snr_db / 20)
    assert drawn.target is not None
    return by_symbol(x, symbols), by_symbol(r, symbols), drawn, drawn.target.numpy()


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("geometry", ["bistatic", "monostatic"])
@pytest.mark.parametrize("path_loss", [0.0, 2.0])
def test_the_echo_lies_in_its_range_bin(symbols: Symbols, geometry: Any, path_loss: float) -> None:
    channel = Sensing(geometry=geometry, range_bins=4, path_loss=path_loss)
    z, r, drawn, target = received(channel, 2_000, 6, symbols, 200.0)
    gain = np.abs(drawn.h.numpy()) if symbols == "real" else drawn.h.numpy()
    for b in range(5):
        here = target == b
        expected = np.zeros_like(r[here])
        if b:
            expected[:, b - 1 : b - 1 + z.shape[1]] = gain[here] * z[here]
            power = np.mean(np.abs(expected) ** 2, axis=1) / np.mean(np.abs(z[here]) ** 2, axis=1)
            mean = (z.shape[1] / r.shape[1]) * b**-path_loss
            assert power.mean() == pytest.approx(mean, abs=5 * power.std() / math.sqrt(here.sum()))
        np.testing.assert_allclose(r[here], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("symbols", BOTH)
def test_energy_under_both_hypotheses(symbols: Symbols) -> None:
    """E||r / sigma||^2 = N + t SNR nc E|a|^2: the sensing SNR is 1/sigma^2 after both hops."""
    for options in ({"fading": "none"}, {}, {"geometry": "monostatic", "range_bins": 3}):
        channel = Sensing(known_snr=False, **options)
        n, nc, snr = 40_000, 6, 10**0.3
        drawn = channel.draw((n,), nc, symbols, rng(33))
        assert drawn.target is not None
        energy = channel.apply(waveform(n, nc), drawn, 3.0, symbols).double().square().sum(1)
        floor = channel.width(nc, symbols)
        for present in (False, True):
            part = energy[(drawn.target > 0) == present]
            bound = 5 * part.std().item() / math.sqrt(len(part))
            assert part.mean().item() == pytest.approx(floor + present * snr * nc, abs=bound)


@pytest.mark.parametrize("symbols", BOTH)
def test_sensing_noise_is_normalised(symbols: Symbols) -> None:
    """Without a target r / sigma is standard normal per real number at every SNR: no clue to the noise floor."""
    channel = Sensing(range_bins=3, known_snr=False)
    drawn = channel.draw((20_000,), 6, symbols, rng(34))
    assert drawn.target is not None
    empty = drawn.at(drawn.target.eq(0))
    x = waveform(empty.h.shape[0], 6)
    first = channel.apply(x, empty, -10.0, symbols)
    torch.testing.assert_close(channel.apply(x, empty, 25.0, symbols), first)
    assert stats.kstest(first.flatten()[:50_000].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("symbols", BOTH)
def test_the_direct_path_is_there_under_both_hypotheses(symbols: Symbols) -> None:
    level = 6.0
    plain, direct = Sensing(range_bins=3), Sensing(range_bins=3, direct_path_db=level)
    z, r, drawn, target = received(direct, 20_000, 6, symbols, 200.0)
    r = r - received(plain, 20_000, 6, symbols, 200.0)[1]
    gain = r[:, 0] / z[:, 0]
    np.testing.assert_allclose(r[:, : z.shape[1]], gain[:, None] * z, atol=1e-4 * np.abs(gain).max())
    np.testing.assert_allclose(r[:, z.shape[1] :], 0, atol=1e-6)
    power = np.abs(gain) ** 2 / 10 ** (level / 10)
    for present in (False, True):
        part = power[(target > 0) == present]
        assert part.mean() == pytest.approx(1, abs=5 * part.std() / math.sqrt(len(part)))
        assert stats.kstest(part, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(power, np.abs(drawn.h[:, 0].numpy()) ** 2)[0, 1]) < 5 / math.sqrt(20_000)
    # Without fading, as strong as stated.
    z, r, _, target = received(Sensing(fading="none", direct_path_db=level), 100, 6, symbols, 200.0)
    np.testing.assert_allclose(r, (10 ** (level / 20) + (target > 0))[:, None] * z, rtol=1e-4)


@pytest.mark.parametrize("symbols", BOTH)
def test_sensing_interference_passes_one_hop(symbols: Symbols) -> None:
    channel, delta = Sensing(range_bins=3), waveform(500, 6, 35)
    z, clean, drawn, _ = received(channel, 500, 6, symbols, 0.0)
    _, attacked, _, _ = received(channel, 500, 6, symbols, 0.0, interference=delta)
    gain = np.abs(drawn.g.numpy()) if symbols == "real" else drawn.g.numpy()
    expected = np.zeros_like(attacked)
    expected[:, : z.shape[1]] = gain * by_symbol(delta, symbols)
    np.testing.assert_allclose(attacked - clean, expected, atol=1e-4)


@pytest.mark.parametrize("symbols", BOTH)
@pytest.mark.parametrize("options", [{}, {"geometry": "monostatic", "known_waveform": True, "range_bins": 2}])
def test_the_known_snr_is_told_in_units_of_20_db(symbols: Symbols, options: dict[str, Any]) -> None:
    """And it is all that `known_snr` changes."""
    told, untold = Sensing(**options), Sensing(known_snr=False, **options)
    x, snr_db = waveform(4, 6), torch.tensor([-10.0, 0.0, 10.0, 20.0])
    drawn = told.draw((3, 4), 6, symbols, rng())
    samples = 6 + (told.range_bins - 1) * (1 if symbols == "real" else 2)
    for snr in (snr_db, 10.0):
        y = told.apply(x, drawn, snr, symbols)
        expected = torch.as_tensor(snr).expand(3, 4) / 20
        torch.testing.assert_close(y[..., samples], expected, rtol=1e-5, atol=1e-6)
        rest = torch.cat([y[..., :samples], y[..., samples + 1 :]], dim=-1)
        assert torch.equal(rest, untold.apply(x, drawn, snr, symbols))


@pytest.mark.parametrize("symbols", BOTH)
def test_the_known_waveform_is_what_was_sent(symbols: Symbols) -> None:
    channel = Sensing(geometry="monostatic", known_waveform=True, range_bins=2)
    x = waveform(5, 6)
    y = channel.apply(x, channel.draw((3, 5), 6, symbols, rng()), 0.0, symbols, interference=waveform(5, 6, 9))
    assert y.shape == (3, 5, channel.width(6, symbols))
    assert torch.equal(y[..., -6:], x.expand(3, 5, 6))


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Sensing, {"known_waveform": True}),
        (Sensing, {"geometry": "monostatic", "direct_path_db": 0.0}),
        (Sensing, {"range_bins": 0}),
        (Sensing, {"path_loss": -1.0}),
        (Sensing, {"geometry": "sideways"}),
        (Sensing, {"direct_path_db": float("nan")}),
        (Rayleigh, {"fading": "slow"}),
        (Rayleigh, {"csi": "perfect"}),
        (Rayleigh, {"estimation_error": -0.1}),
        (Rayleigh, {"k_factor": 3.0}),
        (Rician, {"k_factor": -1.0}),
        (Rician, {"k_factor": float("inf")}),
        (Awgn, {"csi": "zf"}),
    ],
)
def test_impossible_options_are_refused(cls: type[Channel], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate(options)


def test_what_the_table_calls_them() -> None:
    for channel, names in [
        (Awgn(), ("none", "none", False)),
        (Rayleigh(), ("block", "zf", False)),
        (Rician(fading="fast", csi="mmse"), ("fast", "mmse", False)),
        (Sensing(), ("rayleigh", "none", True)),
        (Sensing(fading="none"), ("none", "none", True)),
    ]:
        assert (channel.fading_name, channel.csi_name, channel.is_sensing) == names


# --- Turned symbols ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "channel",
    [Awgn(), Rayleigh(csi="zf"), Rayleigh(csi="phase"), Rician(csi="none"), Rayleigh(csi="mmse", fading="fast")],
    ids=describe,
)
def test_a_turn_is_of_everything_at_the_antenna(channel: Channel) -> None:
    """y e^{j phi}, then an equaliser that is linear in y: what the decoder receives is turned as a whole."""
    x, drawn = waveform(7, 12), channel.draw((3, 7), 12, "complex", rng())
    jam = waveform(7, 12, seed=2)
    angles = torch.linspace(-3, 3, 7)
    straight = by_symbol(channel.apply(x, drawn, 5, "complex", jam), "complex")
    got = by_symbol(channel.apply(x, drawn, 5, "complex", jam, angles), "complex")
    np.testing.assert_allclose(got, straight * np.exp(1j * angles.numpy())[:, None], atol=1e-4, rtol=1e-4)
    none = channel.apply(x, drawn, 5, "complex", jam, torch.zeros(7))
    torch.testing.assert_close(none, channel.apply(x, drawn, 5, "complex", jam), rtol=0, atol=0)


def test_a_turned_radar_return_turns_too_and_its_side_information_does_not() -> None:
    channel = Sensing(fading="none", range_bins=3)
    x, drawn = waveform(5, 8), channel.draw((5,), 8, "complex", rng())
    angles = torch.full((5,), 0.7)
    straight, got = (channel.apply(x, drawn, 5, "complex", None, turn) for turn in (None, angles))
    turned = by_symbol(straight[:, :-1], "complex") * np.exp(0.7j)
    np.testing.assert_allclose(by_symbol(got[:, :-1], "complex"), turned, atol=1e-5)
    assert torch.equal(got[:, -1], straight[:, -1])


@pytest.mark.parametrize("channel", [Awgn(), Sensing()], ids=describe)
def test_real_symbols_cannot_be_turned(channel: Channel) -> None:
    with pytest.raises(ValueError, match="real symbols have no phase"):
        channel.apply(waveform(2, 4), channel.draw((2,), 4, "real", rng()), 5, "real", None, torch.ones(2))


def test_a_turn_hides_where_the_phase_is_uniform_and_unknown() -> None:
    """`knows_phase` against the distribution: received symbols of one sent symbol, turned and not."""
    x = torch.ones(20_000, 2)
    for channel in (Rayleigh(csi="none"), Rayleigh(csi="zf"), Rician(csi="none"), Rician(csi="none", k_factor=0)):
        one, two = (channel.draw((20_000,), 2, "complex", rng(seed)) for seed in (1, 2))
        straight = by_symbol(channel.apply(x, one, 10, "complex"), "complex")[:, 0]
        got = by_symbol(channel.apply(x, two, 10, "complex", None, torch.full((20_000,), 1.0)), "complex")[:, 0]
        alike = stats.ks_2samp(np.angle(straight), np.angle(got)).pvalue > 1e-3
        assert alike != channel.knows_phase("complex")
