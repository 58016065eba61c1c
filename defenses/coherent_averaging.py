"""Receptions that are averaged before they are decoded."""

from __future__ import annotations

from pydantic import PositiveInt

from fedsem.registry import register

from .single_shot_certificate import SingleShotCertificate


@register("defense", "coherent_averaging")
class CoherentAveraging(SingleShotCertificate):
    """The receiver averages N receptions of the same x, with h fixed, and decodes the mean once (Tse and Viswanath,
    Fundamentals of Wireless Communication, 2005, section 3.2: repetition coding): noise of variance s^2 / N is left,
    and the whole of the perturbation, if it comes with every one of them. What a single decision certifies is then
    Phi(Phi^-1(p) - sqrt(N) r / s): less noise, more accuracy, and a certificate that shrinks with it. The equaliser and
    the decoder work as for one reception.

    Attributes:
        averaged_receptions: N; of n means of so many receptions each, the share that is decoded rightly is counted.
    """

    averaged_receptions: PositiveInt = 1000

    @property
    def averaged(self) -> int:
        return self.averaged_receptions
