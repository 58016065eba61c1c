"""Jamming: exactly the budget's energy, the spectrum of a tone, the duty of pulses, and harm over the air."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import ToyProblem, changed, energy64, fresh_link, head, site, small_plan, tally
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsem.errors import ScenarioError
from fedsem.evaluation.air import Air
from fedsem.evaluation.problem import LinkProblem
from fedsem.evaluation.score import Scorer
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.evasion import Evasion
from fedsem.registry import names
from fedsem.streams import Stream
from fedsem.units import from_db

Symbols = Literal["real", "complex"]
SNR_DB = 10.0
WAVEFORMS: list[dict[str, Any]] = [
    {"waveform": "gaussian"},
    {"waveform": "pulsed"},
    {"waveform": "pulsed", "duty": 0.01},
    {"waveform": "pulsed", "duty": 1},
    {"waveform": "tone"},
    {"waveform": "tone", "frequency": 0.0},
    {"waveform": "tone", "frequency": 0.5},
    {"waveform": "tone", "frequency": -0.13},
]


def jammer(**options: Any) -> Evasion:
    made = names("attack")["jamming"].model_validate(options)
    assert isinstance(made, Evasion)
    return made


def on_air(rows: int, numbers: int, symbols: Symbols = "real", psr: float | Tensor = 0.1, seed: int = 0) -> ToyProblem:
    clean = 3 * torch.randn((rows, numbers), generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(rows, dtype=torch.long)
    return ToyProblem(
        lambda signals, index: signals["air"], {"air": site(clean, bounded=False)}, psr, labels, symbols=symbols
    )


def jammed(problem: ToyProblem, seed: int = 0, **options: Any) -> np.ndarray:
    """Symbols of the jammer, (B, n), in double precision: of two numbers each where they are complex."""
    wave = jammer(**options).perturb(problem, Stream(seed))["air"].double().numpy()
    return (wave[:, 0::2] + 1j * wave[:, 1::2]) / np.sqrt(2) if problem.symbols == "complex" else wave


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.sampled_from(WAVEFORMS),
    st.sampled_from(["real", "complex"]),
    st.sampled_from([2, 8, 20, 64]),
    st.floats(-60, 10),
    st.integers(0, 2**32),
)
def test_every_example_gets_exactly_its_energy(
    options: dict[str, Any], symbols: Symbols, numbers: int, psr_db: float, seed: int
) -> None:
    psr = from_db(psr_db) * torch.tensor([1.0, 0.5, 2.0, 0.0])
    problem = on_air(4, numbers, symbols, psr, seed)
    delta = jammer(**options).perturb(problem, Stream(seed))["air"]
    assert torch.isfinite(delta).all()
    np.testing.assert_allclose(energy64(delta), psr.numpy() * energy64(problem.sites["air"].clean), rtol=1e-5)
    assert torch.equal(delta, jammer(**options).perturb(problem, Stream(seed))["air"])


@pytest.mark.parametrize("symbols", ["real", "complex"])
@pytest.mark.parametrize("cycles", [3, 13, -7])
def test_a_tone_has_one_line_in_its_spectrum(symbols: Symbols, cycles: int) -> None:
    """A whole number of cycles in n symbols: all energy in that bin of the FFT, and of its mirror for real symbols."""
    wave = jammed(on_air(6, 128, symbols), waveform="tone", frequency=cycles / (128 if symbols == "real" else 64))
    spectrum = np.abs(np.fft.fft(wave, axis=1)) ** 2
    bins = {cycles % wave.shape[1]} | ({-cycles % wave.shape[1]} if symbols == "real" else set())
    np.testing.assert_allclose(spectrum[:, sorted(bins)].sum(1), spectrum.sum(1), rtol=1e-6)
    # sqrt(2 P) cos(...) and sqrt(P) exp(j ...): the amplitude that the docstring says.
    power = (np.abs(wave) ** 2).mean(1)
    peak = np.abs(wave).max(1)
    if symbols == "complex":
        np.testing.assert_allclose(np.abs(wave), np.sqrt(power)[:, None].repeat(64, 1), rtol=1e-5)
    else:
        assert (peak <= np.sqrt(2 * power) * 1.00001).all()
        assert (peak > 0.95 * np.sqrt(2 * power)).all()
    phases = np.angle(np.fft.fft(wave, axis=1)[:, cycles])
    assert np.ptp(phases) > 1


@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_a_random_tone_is_somewhere_else_in_every_example(symbols: Symbols) -> None:
    wave = jammed(on_air(500, 256, symbols), waveform="tone")
    spectrum = np.abs(np.fft.fft(wave, axis=1)) ** 2
    places = np.fft.fftfreq(wave.shape[1])[spectrum.argmax(1)]
    places = np.abs(places) if symbols == "real" else places
    low = 0.0 if symbols == "real" else -0.5
    # Uniform over [low, 0.5]: its quarters hold a quarter each, within four deviations of 500 draws.
    shares = np.histogram(places, bins=np.linspace(low, 0.5, 5))[0] / 500
    assert np.abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 500)


@pytest.mark.parametrize("symbols", ["real", "complex"])
@pytest.mark.parametrize(("duty", "hit"), [(0.25, 16), (0.1, 6), (0.001, 1), (1.0, 64)])
def test_pulses_hit_the_share_of_symbols_that_they_are_told(symbols: Symbols, duty: float, hit: int) -> None:
    """A complex symbol is hit as a whole; those that are hit meet 1 / duty times the power; which ones is random."""
    problem = on_air(400, 64 if symbols == "real" else 128, symbols)
    wave = jammed(problem, waveform="pulsed", duty=duty)
    power = np.abs(wave) ** 2
    assert ((power > 0).sum(1) == hit).all()
    np.testing.assert_allclose(power[power > 0].mean() / power.mean(), 64 / hit, rtol=1e-6)
    often = (power > 0).mean(0)
    assert np.abs(often - hit / 64).max() < 5 * np.sqrt(hit / 64 * (1 - hit / 64) / 400) + 1e-12


@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_gaussian_jamming_is_white_and_gaussian(symbols: Symbols) -> None:
    wave = jammed(on_air(2000, 64, symbols, psr=1.0), waveform="gaussian")
    wave = wave / np.sqrt((np.abs(wave) ** 2).mean(1, keepdims=True))
    correlation = wave.conj().T @ wave / len(wave)
    assert np.abs(correlation - np.eye(wave.shape[1])).max() < 6 / np.sqrt(len(wave))
    # E|z|^4 is 3 (E z^2)^2 of real and 2 (E|z|^2)^2 of complex Gaussians; a little less on a sphere.
    size = wave.shape[1]
    sphere = 3 * size / (size + 2) if symbols == "real" else 2 * size / (size + 1)
    assert (np.abs(wave) ** 4).mean() == pytest.approx(sphere, abs=0.06)
    assert np.abs((wave**2).mean() - (1 if symbols == "real" else 0)) < 0.02


@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_the_link_says_what_its_symbols_are(symbols: Symbols) -> None:
    link = fresh_link({"kind": "awgn"}, symbols=symbols, images=4)
    made = jammer(waveform="pulsed", duty=0.25)
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    problem.psr = 0.1
    assert problem.symbols == symbols
    hit = (made.perturb(problem, Stream(0))["air"] != 0).sum(1)
    assert (hit == 2).all()
    assert problem.select(torch.tensor([0, 2])).symbols == symbols


@pytest.mark.parametrize("waveform", ["gaussian", "pulsed", "tone"])
@pytest.mark.parametrize("task", ["label", "target"])
def test_jamming_hurts_each_task(trained_link: TrainedLink, waveform: str, task: str) -> None:
    link = changed(head(trained_link, 200), evaluation={"draws": {"attack": 1, "score": 8}, "baselines": False})
    made = jammer(waveform=waveform)
    made.check("attacks.a", link.plan)
    problem = LinkProblem(link, Air(link), made, SNR_DB, SNR_DB)
    scorer, listeners = Scorer(link, Air(link)), [one for one in link.listeners if one.branch.task == task]
    values = []
    for psr_db in (None, -60.0, 0.0, 5.0):
        problem.psr = 0.0 if psr_db is None else from_db(psr_db)
        delta = {} if psr_db is None else made.perturb(problem, Stream(0))
        found = tally(next(iter(scorer.score(listeners, [SNR_DB], delta)[0].values())), "accuracy")
        values.append(found.numerator.sum() / found.denominator.sum())
    clean, quiet, loud, louder = values
    assert abs(quiet - clean) < 0.002
    assert loud < clean - 0.03
    assert louder < loud - 0.03


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"norm": "linf"}, r"'attacks\.j\.norm': jamming aims at nothing; remove it\."),
        ({"objective": {"label": 1}}, r"'attacks\.j\.objective': jamming aims at nothing"),
        ({"targeted": {"label": 1}}, r"'attacks\.j\.targeted': jamming aims at nothing"),
        ({"draws": 3}, r"'attacks\.j\.draws': jamming aims at nothing"),
        ({"surrogate": {}}, r"'attacks\.j\.surrogate': jamming aims at nothing"),
        ({"sites": ["input"]}, r"'attacks\.j\.sites': jamming acts over the air; use sites: \[air\]\."),
        ({"sites": ["input", "air"]}, r"'attacks\.j\.sites': jamming acts over the air"),
        ({"duty": 0.5}, r"'attacks\.j\.duty': only waveform: pulsed has it"),
        ({"waveform": "pulsed", "frequency": 0.1}, r"'attacks\.j\.frequency': only waveform: tone has it"),
        ({"waveform": "tone", "frequency": 0.6}, r"'attacks\.j\.frequency': "),
        ({"waveform": "pulsed", "duty": 0}, r"'attacks\.j\.duty': "),
        ({"knowledge": {"weights": "all"}}, r"'attacks\.j\.knowledge\.weights': 'jamming' works with none"),
    ],
)
def test_what_a_jammer_would_ignore_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ScenarioError, match=sentence) as caught:
        small_plan(attacks={"j": {"kind": "jamming", **options}})
    assert "\n" not in str(caught.value)
