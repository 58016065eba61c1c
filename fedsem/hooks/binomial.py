"""What counts and order statistics of independent receptions say, with a probability of error that is known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def clopper_pearson(successes: Tensor, trials: int, alpha: float) -> Tensor:
    """Lower bound of a probability, which is too large with probability alpha at most (Clopper and Pearson, The Use of
    Confidence or Fiducial Limits Illustrated in the Case of the Binomial, 1934; one-sided): the alpha quantile of
    Beta(k, n - k + 1), and 0 for k = 0.

    Args:
        successes: k of each example, (...,).
        trials: n.
        alpha: probability of error.

    Returns:
        float64, on the device of `successes`.
    """
    # scipy takes a second to import, and few runs need it.
    from scipy.special import betaincinv

    k = successes.double().cpu().numpy()
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), trials - k + 1, alpha), 0.0)
    return torch.as_tensor(low, device=successes.device)


def outnumbers(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Whether `first` of `first + second` votes are too many for a fair coin: the two-sided binomial test,
    2 P(Bin(first + second, 1/2) >= first) <= alpha, for first >= second (Hung and Fithian, Rank Verification for
    Exponential Families, 2019: so the winner of several is told from the runner-up)."""
    from scipy.special import betainc

    a, b = first.double().cpu().numpy(), second.double().cpu().numpy()
    tail = np.where(a > 0, betainc(np.maximum(a, 1), b + 1, 0.5), 1.0)
    return torch.as_tensor(2 * tail <= alpha, device=first.device)


def rank_above(quantile: Tensor, trials: int, alpha: float) -> Tensor:
    """The smallest k for which the k-th smallest of n independent draws lies above the quantile of their distribution
    but with probability alpha: P(Bin(n, q) <= k - 1) >= 1 - alpha; n + 1 where no draw does (David and Nagaraja, Order
    Statistics, 2003, section 7.1).

    Args:
        quantile: q, (...,), float64.
        trials: n.
        alpha: probability of error.

    Returns:
        int64 k, from 1 to n + 1.
    """
    from scipy.special import bdtr

    q = quantile.cpu().numpy()
    below = bdtr(np.arange(trials, dtype=np.float64), trials, q.reshape(-1, 1))
    enough = below >= 1 - alpha
    found = np.where(enough.any(1), enough.argmax(1) + 1, trials + 1)
    return torch.as_tensor(found.reshape(q.shape), device=quantile.device)
