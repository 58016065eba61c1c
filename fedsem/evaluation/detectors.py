"""What theory allows a sensing receiver: the best accuracy of an energy detector and of a matched filter.

The model is that of `fedsem.channels.sensing` with one range bin, no direct path and no path loss (design section 4):
r = t a z + n, P(t = 1) = 1/2, E|a|^2 = 1, noise of power 1/SNR per real number of the waveform x in R^nc, and exactly
||x||^2 = nc (power constraint `per_example`). The receiver knows its noise floor and the *distribution* of a, not a
itself. A detector reduces r to one number T and decides t = 1 above a threshold. Under both hypotheses T depends on
the air only through the non-centrality, the deflection of the field's textbooks,

    lambda = |a|^2 c,    c = nc * SNR,

the same for real and for complex symbols (nc / 2 symbols of noise CN(0, 1/SNR) and energy nc / 2). The distribution
of P = |a|^2 is a point mass at 1 without fading; bistatic a product of two independent Exp(1) with density
2 K_0(2 sqrt p); monostatic E^2 / 2 with E ~ Exp(1).

Sources: S. M. Kay, Fundamentals of Statistical Signal Processing II: Detection Theory, 1998, sections 2.2.3
(non-central chi-squared), 4.3 (matched filter), 5.3 (energy detector) and 7.6 (unknown phase); H. L. Van Trees,
Detection, Estimation, and Modulation Theory I, 1968, sections 2.2 (probability of error) and 4.4 (random phase).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammainc, gammaincc, gammainccinv, gammaln, k0, log_ndtr, ndtr, ndtri

if TYPE_CHECKING:
    from fedsem.channels.symbols import Symbols

Array = NDArray[np.float64]
Geometry = Literal["bistatic", "monostatic"]
Fading = Literal["rayleigh", "none"]

FALSE_ALARM_FLOOR = 1e-10
"""No threshold is sought beyond this P_FA: what it leaves out changes no accuracy by more."""


def energy_detector_accuracy(
    snr_db: float, channel_uses: int, symbols: Symbols, geometry: Geometry, fading: Fading
) -> float:
    """Best P(correct) of the energy detector T = ||r||^2, which knows nothing of the waveform.

    T / sigma^2 (real symbols; 2 T / sigma^2 for complex ones) is chi-squared with nc degrees of freedom under H0 and,
    given a, non-central chi-squared chi'^2_nc(lambda) under H1 (Kay 1998, eqs. 2.16 and 5.3 ff.). Averaged over P,
    that is the mixture sum_j w_j chi^2_(nc + 2j) with w_j = E[Poisson(j; P c / 2)], hence

        P_M(tau) = sum_j w_j F(tau; nc + 2j),    P_FA(tau) = 1 - F(tau; nc),
        P(correct) = max over tau of 1 - (P_FA + P_M) / 2.

    The average likelihood ratio rises with T, so no other rule on T does better. Real and complex symbols give the
    same number. It bounds a receiver that knows no waveform if the waveform is uniform on its sphere; a receiver that
    has learned something of the waveform can do better, up to `matched_filter_accuracy`.

    Args:
        snr_db: sensing SNR 1/sigma^2 in dB, after both hops.
        channel_uses: nc, real numbers per waveform (even for complex symbols).
        symbols: `real` or `complex`.
        geometry: `bistatic` or `monostatic`; without meaning where there is no fading.
        fading: `rayleigh` (each hop) or `none`.

    Returns:
        P(correct) within 1e-6, between 0.5 and 1.
    """
    _check(channel_uses, symbols, geometry, fading)
    return _chi_squared_accuracy(_deflection(snr_db, channel_uses), channel_uses, geometry, fading)


def matched_filter_accuracy(
    snr_db: float, channel_uses: int, symbols: Symbols, geometry: Geometry, fading: Fading
) -> float:
    """Best P(correct) of the matched filter, which knows the waveform z; no receiver does better.

    - No fading (a = 1): T = Re z^H r, N(0, 1) or N(sqrt c, 1) after scaling, threshold half way:
      P(correct) = Phi(sqrt(c) / 2) (Kay 1998, section 4.3; Van Trees I, section 2.2).
    - Fading, real symbols: a >= 0, the phase is known (section 4 of the design), so T = x . r is one-sided:
      P_FA = Q(tau), P_M = E[Phi(tau - sqrt(P c))].
    - Fading, complex symbols: the phase of a is uniform and unknown, so T = |z^H r|; 2 |z^H r|^2 / (||z||^2 sigma^2)
      is chi-squared with 2 degrees of freedom under H0 and chi'^2_2(P c) under H1: P_FA = exp(-tau / 2),
      P_M = E[1 - Q_1(sqrt(P c), sqrt tau)] with Marcum's Q (Kay 1998, section 7.6; Van Trees I, section 4.4).

    The threshold maximises P(correct) = 1 - (P_FA + P_M) / 2. In each case the average likelihood ratio of the whole
    of r rises with T, so this is the optimum of every receiver that knows z and the statistics of a.

    Args:
        snr_db: sensing SNR 1/sigma^2 in dB, after both hops.
        channel_uses: nc, real numbers per waveform (even for complex symbols).
        symbols: `real` or `complex`.
        geometry: `bistatic` or `monostatic`; without meaning where there is no fading.
        fading: `rayleigh` (each hop) or `none`.

    Returns:
        P(correct) within 1e-6, between 0.5 and 1.
    """
    _check(channel_uses, symbols, geometry, fading)
    c = _deflection(snr_db, channel_uses)
    if fading == "none":
        return float(ndtr(math.sqrt(c) / 2))
    if symbols == "real":
        return _one_sided_gaussian_accuracy(c, geometry)
    return _chi_squared_accuracy(c, 2, geometry, fading)


def _check(channel_uses: int, symbols: str, geometry: str, fading: str) -> None:
    if channel_uses < 1 or (symbols == "complex" and channel_uses % 2):
        raise ValueError(f"channel_uses = {channel_uses} should be positive, and even for complex symbols")
    for value, known in (
        (symbols, ("real", "complex")),
        (geometry, ("bistatic", "monostatic")),
        (fading, ("rayleigh", "none")),
    ):
        if value not in known:
            raise ValueError(f"'{value}' should be one of {', '.join(known)}")


def _deflection(snr_db: float, channel_uses: int) -> float:
    """c = nc * SNR."""
    return channel_uses * 10.0 ** (snr_db / 10)


@cache
def _chi_squared_accuracy(c: float, degrees: int, geometry: Geometry, fading: Fading) -> float:
    """P(correct) for chi^2_degrees against chi'^2_degrees(P c), averaged over P."""
    last = 2 * float(gammainccinv(degrees / 2, FALSE_ALARM_FLOOR))
    # Terms j beyond which F(tau; degrees + 2j) is below 1e-12 at every threshold of interest.
    terms = 16
    while gammainc(degrees / 2 + terms, last / 2) > 1e-12:
        terms *= 2
    j = np.arange(terms, dtype=np.float64)
    # Poisson(j; e^u) is a bump of width j^(-1/2) in u: the grid has to resolve it.
    power, probability = _reflected_power(geometry, fading, step=min(0.05, 0.5 / math.sqrt(terms)))
    mean = np.maximum(power * c / 2, 1e-300)
    poisson = np.exp(np.outer(j, np.log(mean)) - mean - gammaln(j + 1)[:, None])
    weights = poisson @ probability

    def error(tau: float) -> float:
        missed = weights @ gammainc(degrees / 2 + j, tau / 2)
        return float(gammaincc(degrees / 2, tau / 2) + missed) / 2

    return 1.0 - _smallest(error, 0.0, last)


@cache
def _one_sided_gaussian_accuracy(c: float, geometry: Geometry) -> float:
    """P(correct) for N(0, 1) against N(sqrt(P c), 1), averaged over P."""
    power, probability = _reflected_power(geometry, "rayleigh", step=0.05)
    shift = np.sqrt(power * c)

    def error(tau: float) -> float:
        return float(ndtr(-tau) + probability @ np.exp(log_ndtr(tau - shift))) / 2

    return 1.0 - _smallest(error, -10.0, float(-ndtri(FALSE_ALARM_FLOOR)))


def _reflected_power(geometry: Geometry, fading: Fading, step: float) -> tuple[Array, Array]:
    """Values of P = |a|^2 and their probabilities: the trapezoidal rule in log P.

    In u = log p the density decays like e^u (a power of it) on the left and doubly exponentially on the right, where
    the trapezoidal rule converges exponentially in 1 / step.
    """
    if fading == "none":
        return np.ones(1), np.ones(1)
    u = np.arange(-40.0, 8.0, step)
    p = np.exp(u)
    if geometry == "bistatic":
        density = 2 * k0(2 * np.sqrt(p))
    else:  # P = E^2 / 2: density e^(-sqrt(2 p)) / sqrt(2 p)
        density = np.exp(-np.sqrt(2 * p)) / np.sqrt(2 * p)
    probability = density * p * step
    return p, probability / probability.sum()


def _smallest(error: Callable[[float], float], low: float, high: float) -> float:
    """Smallest value of a function with a single valley."""
    found = minimize_scalar(error, bounds=(low, high), method="bounded", options={"xatol": 1e-6 * (high - low)})
    return min(float(found.fun), error(low), error(high))
