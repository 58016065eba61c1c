"""Randomised smoothing of the image."""

from __future__ import annotations

from fedsem.hooks.vote import NoisyCopies
from fedsem.registry import register
from fedsem.tasks.classification import Classification

from .majority_vote import MajorityVote


@register("defense", "randomised_smoothing")
class RandomisedSmoothing(MajorityVote, NoisyCopies):
    """Receivers vote on noisy copies of the image: g(u) = argmax_c P[f(u + N(0, sigma^2 I)) = c] keeps its class for
    every ||delta|| < sigma Phi^-1(p) (Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized
    Smoothing, 2019). The probability is over the copies' channels too, gains and noise: each copy is sent over an air
    of its own, so that a decision costs n transmissions.

    An adversary who knows it climbs -log of the mean probability over draws of the noise (Salman et al., Provably
    Robust Deep Learning via Adversarially Trained Smoothed Classifiers, 2019: SmoothAdv).
    """

    serves = (Classification,)
