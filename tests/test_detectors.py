"""The theory of the sensing detectors against a second way to the same number, simulations, and the channel itself."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import ndtr

from fedsem.channels.sensing import Sensing
from fedsem.channels.symbols import Symbols, to_air
from fedsem.evaluation import detectors
from fedsem.evaluation.detectors import energy_detector_accuracy, matched_filter_accuracy

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
Geometry = Literal["bistatic", "monostatic"]
Fading = Literal["rayleigh", "none"]
SETTINGS: list[Any] = [
    (symbols, geometry, fading)
    for symbols in ("real", "complex")
    for geometry, fading in (("bistatic", "rayleigh"), ("monostatic", "rayleigh"), ("bistatic", "none"))
]
AIR = st.sampled_from(SETTINGS)


def best_accuracy(statistic: np.ndarray, present: np.ndarray) -> float:
    """P(correct) with the threshold fitted on one half of the trials and scored on the other."""
    half = len(statistic) // 2
    order = np.argsort(statistic[:half])
    sorted_truth = present[:half][order]
    errors = np.concatenate([[0], np.cumsum(sorted_truth)]) + np.concatenate(
        [np.cumsum(~sorted_truth[::-1])[::-1], [0]]
    )
    threshold = np.concatenate([[-np.inf], statistic[:half][order]])[errors.argmin()]
    return float(np.mean((statistic[half:] > threshold) == present[half:]))


def simulate(
    snr_db: float, nc: int, symbols: Symbols, geometry: Geometry, fading: Fading, trials: int = 100_000
) -> tuple[float, float]:
    """A simulation of our own, sample by sample in NumPy: accuracy of the energy detector and of the matched filter."""
    rng = np.random.default_rng(nc)

    def cn(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / math.sqrt(2)

    present = rng.random(trials) < 0.5
    if fading == "none":
        a = np.ones(trials, complex)
    elif geometry == "bistatic":
        a = cn(trials) * cn(trials)
    else:
        a = cn(trials) ** 2 / math.sqrt(2)
    sigma = 10 ** (-snr_db / 20)
    if symbols == "real":
        z, a = rng.normal(size=nc), np.abs(a)
        z *= math.sqrt(nc) / np.linalg.norm(z)
        r = (present * a)[:, None] * z + sigma * rng.normal(size=(trials, nc))
        matched = r @ z
    else:
        z = cn(nc // 2)
        z *= math.sqrt(nc / 2) / np.linalg.norm(z)
        r = (present * a)[:, None] * z + sigma * cn(trials, nc // 2)
        matched = (r @ z.conj()).real if fading == "none" else np.abs(r @ z.conj())
    return best_accuracy((np.abs(r) ** 2).sum(1), present), best_accuracy(matched, present)


def reference(detector: str, snr_db: float, nc: int, symbols: Symbols, geometry: Geometry) -> float:
    """Another road: SciPy's non-central chi-squared, adaptive quadrature over the hops, thresholds on a grid."""
    c = nc * 10 ** (snr_db / 10)
    freedom = nc if detector == "energy" else 2
    gaussian = detector == "matched" and symbols == "real"
    grid = np.linspace(-4, 8, 120) if gaussian else np.linspace(0, stats.chi2.isf(1e-7, freedom), 200)[1:]

    def missed(power: float) -> np.ndarray:
        return ndtr(grid - math.sqrt(power * c)) if gaussian else stats.ncx2.cdf(grid, freedom, power * c)

    # The amplitudes of the hops are Rayleigh: average over s = |h|^2 of each hop by Gauss-Legendre in its quantiles.
    nodes, weights = np.polynomial.legendre.leggauss(40)
    quantiles, weights = ((nodes + 1) / 2) ** 2, weights * (nodes + 1) / 2  # denser near a deep fade
    hop = -np.log1p(-quantiles)
    average = np.zeros_like(grid)
    if geometry == "monostatic":
        for s, w in zip(hop, weights, strict=True):
            average += w * missed(s**2 / 2)
    else:
        for s, w in zip(hop, weights, strict=True):
            for t, v in zip(hop, weights, strict=True):
                if t <= s:
                    average += w * v * missed(s * t) * (1 if s == t else 2)
    false_alarm = stats.norm.sf(grid) if gaussian else stats.chi2.sf(grid, freedom)
    return float(1 - (false_alarm + average).min() / 2)


@pytest.mark.parametrize("nc", [1, 2, 20, 64])
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 5.0])
def test_energy_detector_without_fading(nc: int, snr_db: float) -> None:
    """Densities of chi^2 and chi'^2 cross at the best threshold."""
    c = nc * 10 ** (snr_db / 10)
    grid = np.linspace(0, stats.chi2.isf(1e-8, nc), 20_001)[1:]
    expected = 1 - (stats.chi2.sf(grid, nc) + stats.ncx2.cdf(grid, nc, c)).min() / 2
    for symbols in ("real", "complex") if nc % 2 == 0 else ("real",):
        got = energy_detector_accuracy(snr_db, nc, symbols, "bistatic", "none")
        assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("snr_db", [-20.0, -13.0, -10.0, 0.0])
@pytest.mark.parametrize("symbols", ["real", "complex"])
def test_matched_filter_without_fading(snr_db: float, symbols: Symbols) -> None:
    """The coherent detector: P_e = Q(d / 2), d^2 = nc SNR."""
    expected = stats.norm.cdf(math.sqrt(20 * 10 ** (snr_db / 10)) / 2)
    assert matched_filter_accuracy(snr_db, 20, symbols, "bistatic", "none") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("snr_db", "nc"), [(-8.0, 20), (3.0, 20), (10.0, 4)])
@pytest.mark.parametrize("geometry", ["bistatic", "monostatic"])
@pytest.mark.parametrize(("detector", "symbols"), [("energy", "real"), ("matched", "real"), ("matched", "complex")])
def test_quadrature_by_another_road(
    detector: str, snr_db: float, nc: int, symbols: Symbols, geometry: Geometry
) -> None:
    accuracy = energy_detector_accuracy if detector == "energy" else matched_filter_accuracy
    got = accuracy(snr_db, nc, symbols, geometry, "rayleigh")
    assert got == pytest.approx(reference(detector, snr_db, nc, symbols, geometry), abs=2e-4)


@pytest.mark.parametrize("threshold", [5.0, 15.0, 40.0])
def test_the_average_over_reflections(threshold: float) -> None:
    """The weights of the mixture against adaptive quadrature in log P, monostatic, at one threshold."""

    def integrand(u: float) -> float:
        e = math.exp(u)
        return stats.ncx2.cdf(threshold, 20, 100 * e**2 / 2) * e * math.exp(-e)

    expected = integrate.quad(integrand, -15, 3.5, epsabs=1e-8, limit=200)[0]
    power, probability = detectors._reflected_power("monostatic", "rayleigh", 0.05)
    assert probability @ stats.ncx2.cdf(threshold, 20, power * 100) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("geometry", "moments"), [("bistatic", (1, 4, 36)), ("monostatic", (1, 6, 90))])
def test_moments_of_the_reflected_power(geometry: Geometry, moments: tuple[int, ...]) -> None:
    """Bistatic E P^k = (k!)^2; monostatic (2k)! / 2^k."""
    power, probability = detectors._reflected_power(geometry, "rayleigh", 0.05)
    for k, moment in enumerate(moments, start=1):
        assert probability @ power**k == pytest.approx(moment, rel=1e-6)


@pytest.mark.parametrize(("symbols", "geometry", "fading"), SETTINGS)
@pytest.mark.parametrize(("snr_db", "nc"), [(-5.0, 8), (10.0, 20)])
def test_against_a_simulation(snr_db: float, nc: int, symbols: Symbols, geometry: Geometry, fading: Fading) -> None:
    energy, matched = simulate(snr_db, nc, symbols, geometry, fading, trials=60_000)
    bound = 5 * 0.5 / math.sqrt(30_000) + 1e-3
    assert energy_detector_accuracy(snr_db, nc, symbols, geometry, fading) == pytest.approx(energy, abs=bound)
    assert matched_filter_accuracy(snr_db, nc, symbols, geometry, fading) == pytest.approx(matched, abs=bound)


@pytest.mark.parametrize(("symbols", "geometry", "fading"), SETTINGS)
@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_the_sensing_channel_follows_the_theory(
    snr_db: float, symbols: Symbols, geometry: Geometry, fading: Fading
) -> None:
    """Detectors on what `Sensing` hands to a decoder for one fixed waveform of energy nc = 20."""
    n, nc = 60_000, 20
    x = torch.randn((1, nc), generator=torch.Generator().manual_seed(1))
    x = (x * math.sqrt(nc) / x.norm()).expand(n, nc)
    channel = Sensing(geometry=geometry, fading=fading, known_snr=False)
    drawn = channel.draw((n,), nc, symbols, torch.Generator().manual_seed(2))
    assert drawn.target is not None
    r, present = channel.apply(x, drawn, snr_db, symbols), drawn.target.numpy() > 0
    inner = (to_air(x, symbols).conj() * to_air(r, symbols)).sum(1)
    matched = inner.abs() if symbols == "complex" and fading == "rayleigh" else inner.real
    bound = 5 * 0.5 / math.sqrt(n / 2) + 1e-3
    energy_found = best_accuracy(r.double().square().sum(1).numpy(), present)
    matched_found = best_accuracy(matched.double().numpy(), present)
    assert energy_found == pytest.approx(energy_detector_accuracy(snr_db, nc, symbols, geometry, fading), abs=bound)
    assert matched_found == pytest.approx(matched_filter_accuracy(snr_db, nc, symbols, geometry, fading), abs=bound)


def test_anchors_measured_before_the_first_line() -> None:
    """facts.md, nc = 20, 10 dB. The matched figures are those of complex symbols, whose phase is unknown."""
    for geometry, energy, matched in (("bistatic", 0.893, 0.932), ("monostatic", 0.836, 0.880)):
        air: Any = ("complex", geometry, "rayleigh")
        assert energy_detector_accuracy(10, 20, *air) == pytest.approx(energy, abs=1.5e-3)
        assert matched_filter_accuracy(10, 20, *air) == pytest.approx(matched, abs=1.5e-3)
        # With real symbols the phase is known, which is worth 1.5 to 2 points.
        assert matched_filter_accuracy(10, 20, "real", *air[1:]) > matched + 0.014
    for accuracy in (energy_detector_accuracy, matched_filter_accuracy):
        assert accuracy(10, 20, "complex", "bistatic", "none") == pytest.approx(1.0, abs=5e-4)


@PROPERTY
@given(AIR, st.floats(-40, 60), st.integers(1, 60))
def test_knowing_the_waveform_never_hurts(air: Any, snr_db: float, pairs: int) -> None:
    energy = energy_detector_accuracy(snr_db, 2 * pairs, *air)
    matched = matched_filter_accuracy(snr_db, 2 * pairs, *air)
    assert 0.5 - 1e-9 <= energy <= matched + 1e-7
    assert matched <= 1


@PROPERTY
@given(AIR, st.floats(-30, 50), st.floats(0.1, 10), st.integers(1, 30))
def test_more_power_and_more_samples_never_hurt(air: Any, snr_db: float, step: float, pairs: int) -> None:
    for accuracy in (energy_detector_accuracy, matched_filter_accuracy):
        here = accuracy(snr_db, 2 * pairs, *air)
        assert accuracy(snr_db + step, 2 * pairs, *air) >= here - 1e-7
        assert accuracy(snr_db, 2 * pairs + 2, *air) >= here - 1e-7


@PROPERTY
@given(st.floats(-30, 40), st.integers(1, 30), st.sampled_from(["bistatic", "monostatic"]))
def test_energy_is_the_same_for_real_and_complex_symbols(snr_db: float, pairs: int, geometry: Geometry) -> None:
    for fading in ("rayleigh", "none"):
        one, two = (energy_detector_accuracy(snr_db, 2 * pairs, s, geometry, fading) for s in ("real", "complex"))
        assert one == two


@PROPERTY
@given(st.floats(-30, 40), st.sampled_from(["bistatic", "monostatic"]))
def test_one_complex_symbol_of_unknown_phase_has_only_its_energy(snr_db: float, geometry: Geometry) -> None:
    energy = energy_detector_accuracy(snr_db, 2, "complex", geometry, "rayleigh")
    assert matched_filter_accuracy(snr_db, 2, "complex", geometry, "rayleigh") == pytest.approx(energy, abs=1e-9)


@pytest.mark.parametrize(("symbols", "geometry", "fading"), SETTINGS)
def test_limits(symbols: Symbols, geometry: Geometry, fading: Fading) -> None:
    for accuracy in (energy_detector_accuracy, matched_filter_accuracy):
        assert accuracy(-80, 20, symbols, geometry, fading) == pytest.approx(0.5, abs=1e-3)
        assert accuracy(80, 20, symbols, geometry, fading) == pytest.approx(1, abs=3e-4)
        assert accuracy(400, 20, symbols, geometry, fading) == pytest.approx(1, abs=1e-8)
        assert accuracy(-400, 20, symbols, geometry, fading) == pytest.approx(0.5, abs=1e-8)


def test_a_deep_fade_of_both_hops_costs_diversity() -> None:
    """Monostatic misses fall like SNR^-1/2 (P(E^2 < x) ~ sqrt x), bistatic ones like log(SNR) / SNR."""
    air: Any = ("complex", "monostatic", "rayleigh")
    misses = [1 - matched_filter_accuracy(snr, 20, *air) for snr in (70, 90)]
    assert misses[0] / misses[1] == pytest.approx(10, rel=0.2)
    air = ("complex", "bistatic", "rayleigh")
    misses = [1 - matched_filter_accuracy(snr, 20, *air) for snr in (50, 70)]
    assert 50 < misses[0] / misses[1] < 100


def test_a_point_takes_less_than_50_ms() -> None:
    detectors._chi_squared_accuracy.cache_clear()
    begin = time.process_time()
    for snr_db in range(10):
        energy_detector_accuracy(snr_db + 0.5, 256, "real", "bistatic", "rayleigh")
    assert (time.process_time() - begin) / 10 < 0.05


@pytest.mark.parametrize(
    "arguments",
    [(10, 0, "real", "bistatic", "none"), (10, 3, "complex", "bistatic", "none"), (10, 4, "polar", "bistatic", "none"),
     (10, 4, "real", "sideways", "none"), (10, 4, "real", "bistatic", "rician")],
)  # fmt: skip
def test_wrong_arguments_are_refused(arguments: Any) -> None:
    for accuracy in (energy_detector_accuracy, matched_filter_accuracy):
        with pytest.raises(ValueError, match="should be"):
            accuracy(*arguments)
