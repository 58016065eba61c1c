"""A vote over receptions of the same signal."""

from __future__ import annotations

from fedsem.hooks.vote import ManyReceptions
from fedsem.registry import register
from fedsem.tasks.classification import Classification
from fedsem.tasks.sensing import Sensing

from .majority_vote import MajorityVote


@register("defense", "reception_vote")
class ReceptionVote(MajorityVote, ManyReceptions):
    """The receiver decodes every one of n receptions of the same x, with h fixed, and the decisions vote. With s the
    standard deviation of the noise and p the Clopper-Pearson bound, no perturbation over the air of ||g w|| <
    s Phi^-1(p) turns the vote (the argument of Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via
    Randomized Smoothing, 2019, with the channel's noise in place of the transmitter's). Over AWGN the certified PSR is
    Phi^-1(p)^2 / (nc SNR): at most -15.2 dB at nc = 20, 10 dB and n = 1000.
    """

    serves = (Classification, Sensing)
