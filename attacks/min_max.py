"""Min-Max and Min-Sum: as far from the mean as the honest are from one another."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np

from fedsem.hooks.update import Directed, Rows, Seen
from fedsem.registry import register


class _Crowd(Directed):
    """All send mean + gamma p, with a direction p and the largest gamma that the distances of the honest deltas allow
    (Shejwalkar and Houmansadr, Manipulating the Byzantine, 2021). Its limits are quadratic in gamma, so that their
    smallest root takes the place of the paper's search.

    Attributes:
        direction: p: `std`: -(standard deviation); `unit`: -(mean / ||mean||); `sign`: -(sign of the mean).
    """

    direction: Literal["std", "unit", "sign"] = "std"

    def line(self, seen: Seen) -> tuple[Rows, Rows]:
        mean = seen.honest.mean(0)
        if self.direction == "std":
            return mean, -seen.honest.std(0, ddof=1) if len(seen.honest) > 1 else np.zeros_like(mean)
        if self.direction == "unit":
            return mean, -mean / max(float(np.linalg.norm(mean)), 1e-12)
        return mean, -np.sign(mean)

    def own_scale(self, seen: Seen, start: Rows, direction: Rows) -> float:
        length = float(direction @ direction)
        if length == 0:
            return 0.0
        # Of the centred deltas: raw ones would lose the distances in rounding.
        centred = seen.honest - start
        gram = centred @ centred.T
        norms = gram.diagonal()
        squared = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
        return self.largest(-(centred @ direction), norms, squared, length)

    @abstractmethod
    def largest(self, along: Rows, norms: Rows, squared: Rows, length: float) -> float:
        """gamma.

        Args:
            along: p . (mean - x_i), (m,).
            norms: ||mean - x_i||^2, (m,).
            squared: ||x_i - x_j||^2, (m, m).
            length: ||p||^2.
        """


def _root(along: Rows, rest: Rows, length: float) -> Rows:
    """The larger root of length g^2 + 2 along g + rest = 0, where rest <= 0."""
    return (-along + np.sqrt(np.maximum(along**2 - length * rest, 0.0))) / length


@register("attack", "min_max")
class MinMax(_Crowd):
    """Min-Max: no further from any honest delta than the two honest ones that are furthest apart."""

    def largest(self, along: Rows, norms: Rows, squared: Rows, length: float) -> float:
        return float(_root(along, norms - squared.max(), length).min())


@register("attack", "min_sum")
class MinSum(_Crowd):
    """Min-Sum: the squared distances to all honest deltas sum to no more than those of the honest one that is furthest
    from the others."""

    def largest(self, along: Rows, norms: Rows, squared: Rows, length: float) -> float:
        most = squared.sum(1).max()
        return float(_root(along.sum(keepdims=True), norms.sum(keepdims=True) - most, len(norms) * length)[0])
