"""The Square attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Generator, Tensor

from fedsem.errors import ScenarioError
from fedsem.hooks.budget import clip, radius, unit
from fedsem.hooks.evasion import Evasion, Norm, Perturbation, Problem, SiteState
from fedsem.hooks.evasion_losses import measure, objective
from fedsem.plan import Plan
from fedsem.registry import register
from fedsem.streams import Stream
from fedsem.tasks.classification import Classification
from fedsem.units import energy

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after each of which the changed share p is halved (section 4 of the paper's supplement)."""


@register("attack", "square")
class Square(Evasion):
    """Random search with squares, without gradients: a black box that is only asked (Andriushchenko, Croce, Flammarion
    and Hein, Square Attack: a Query-Efficient Black-Box Adversarial Attack via Random Search, 2020, algorithms 1 to 3).

    Every query changes one square window of the perturbation of every example, at a place of its own, and keeps the
    change where the loss rises. `linf`: the window becomes eps s, with a random sign s in each channel, from vertical
    stripes of +-eps. `l2`: energy from a second window, and what is left of the budget, moves into the first, along
    its old direction plus a random sign times a pattern of two opposite peaks, eta; the start is a grid of five by five
    such patterns. The window holds a share p of an image's pixels, which is halved along the paper's schedule. Over the
    air, windows are runs of neighbouring numbers of the signal. With both sites, queries take turns.

    Channel draws stay the same for a block of queries; on each new set the best perturbation is measured again: a
    maximum over ever fresh draws would reward luck. It does not stop at its first success, since what counts is the
    error over other draws.

    Attributes:
        queries: how often the link is asked, for every example; each answer is the mean over the channel draws.
        p_init: share of the pixels, or of the numbers over the air, that a window holds at first; AutoAttack's default.
        redraw: queries to a set of channel draws; the first of each measures the best perturbation on the new set.
        loss: `ce`: the objective, whatever the task; `margin`, the paper's for classification: of the mean scores over
            the draws, the largest wrong one minus the true one, or, targeted, the target's minus the largest other.
    """

    queries: PositiveInt = 1000
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    redraw: Annotated[int, Field(ge=2)] = 100
    loss: Literal["ce", "margin"] = "ce"

    knows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "weights": ("none",),
        "signal": ("exact",),
        "channel": ("statistics", "csi"),
    }

    def check(self, path: str, plan: Plan) -> None:
        super().check(path, plan)
        if self.loss == "ce":
            return
        tasks = [plan.scenario.tasks[task] for task, weight in self.goals(plan).items() if weight]
        if len(tasks) != 1 or not isinstance(tasks[0], Classification) or self.objective == "joint":
            raise ScenarioError(
                f"In the scenario, '{path}.loss': 'margin' is for an attack on one classification task; use ce."
            )

    def perturb(self, problem: Problem, stream: Stream) -> Perturbation:
        loss = objective if self.loss == "ce" else _away_from_the_truth if not self.targeted else _to_the_target
        generators = {name: stream.child(name).torch() for name in self.sites}
        with torch.no_grad():
            best: Perturbation = {
                name: start(problem.sites[name], problem.psr, self.norm, generators[name]) for name in self.sites
            }
            value = measure(problem, best, 0, loss)
            for query in range(1, self.queries):
                draws, asked = divmod(query, self.redraw)
                if asked == 0:
                    value = measure(problem, best, draws, loss)
                    continue
                name = self.sites[query % len(self.sites)]
                share = self.p_init / 2 ** sum(query * 10_000 // self.queries > after for after in HALVINGS)
                changed = propose(best[name], problem.sites[name], problem.psr, self.norm, share, generators[name])
                reached = measure(problem, {**best, name: changed}, draws, loss)
                better = (reached > value).view(-1, *[1] * (changed.dim() - 1))
                best[name] = torch.where(better, changed, best[name])
                value = torch.maximum(reached, value)
        return best


def start(site: SiteState, psr: float | Tensor, norm: Norm, generator: Generator) -> Tensor:
    """The first perturbation of every row, on the surface of the ball before it is clipped to the image range."""
    rows, channels, height, width = _as_images(site.clean).shape
    if norm == "linf":
        direction = _signs((rows, channels, 1, width), generator).expand(rows, channels, height, width)
        return clip(direction.reshape(site.clean.shape).to(site.clean) * radius(site, psr, norm), site)
    wide = max((width if height == 1 else min(height, width)) // 5, 1)
    high = 1 if height == 1 else wide
    down, across = _Tiles.of(height, high), _Tiles.of(width, wide)
    peaks = across.repeat(down.repeat(eta(high, wide).mT).mT) * (down.inside[:, None] & across.inside)
    turned = torch.randint(0, 2, (rows, 1, down.count, across.count), generator=generator)
    signs = _signs((rows, channels, down.count, across.count), generator)
    turned, signs = (across.spread(down.spread(each.mT).mT) for each in (turned, signs))
    direction = torch.where(turned == 1, peaks[1], peaks[0]) * signs
    return clip(unit(direction.reshape(site.clean.shape).to(site.clean)) * radius(site, psr, norm), site)


def propose(
    delta: Tensor, site: SiteState, psr: float | Tensor, norm: Norm, share: float, generator: Generator
) -> Tensor:
    """A perturbation of every row that differs from `delta` in one window (`l2`: in two), within the budget.

    Args:
        delta: the best so far, (B, ...).
        site: where it acts.
        psr: the budget.
        norm: of the ball.
        share: p, of the pixels, or numbers, that the window holds.
        generator: of the windows' places and signs.
    """
    limit, old = radius(site, psr, norm), _as_images(delta)
    rows, channels, *shape = old.shape
    # A window of the L2 attack must have room for two halves, also when it has become small.
    size = _window((shape[0], shape[1]), share, 1 if norm == "linf" else 3)
    first = _Windows(rows, (shape[0], shape[1]), size, generator)
    into = first.inside.to(delta.device)
    signs = _signs((rows, channels, 1, 1), generator).to(old)
    if norm == "linf":
        painted = _as_images(limit) * signs
        changed, other = (clip(torch.where(into, way * painted, old).view(delta.shape), site) for way in (1, -1))
        # The same signs as before would waste the query.
        same = (changed == delta).flatten(1).all(1)
        return torch.where(same.view(-1, *[1] * (delta.dim() - 1)), other, changed)
    second = _Windows(rows, (shape[0], shape[1]), size, generator)
    outof = second.inside.to(delta.device)
    turned = torch.randint(0, 2, (rows,), generator=generator)
    peaks = first.put(eta(*size)[turned]).to(old)
    moved = (old * (into | outof)).square().sum((2, 3), keepdim=True)
    unused = (_as_images(limit).square() - energy(old).view(-1, 1, 1, 1)).clamp_min(0) / channels
    direction = _unit_of_channels(peaks * signs + _unit_of_channels(old * into))
    changed = torch.where(into, direction * (moved + unused).sqrt(), old * ~outof)
    return clip(unit(changed.view(delta.shape)) * limit, site)


def eta(high: int, wide: int) -> Tensor:
    """The paper's pattern for a window, and the same turned by a right angle: two halves of opposite sign, each with a
    peak of nested rectangles sum_{k >= d} 1 / (k + 1)^2 at Chebyshev distance d from its centre; unit norm; (2, high,
    wide). A window that is one number high has no other way to lie."""
    if high == 1:
        upright = torch.cat([_peak(1, wide // 2), -_peak(1, wide - wide // 2)], 1)
        both = torch.stack([upright, upright])
    else:
        flat = torch.cat([_peak(high // 2, wide), -_peak(high - high // 2, wide)])
        both = torch.stack([flat, flat.T])
    return both / both.flatten(1).norm(dim=1)[:, None, None]


def _peak(high: int, wide: int) -> Tensor:
    """One half of a pattern, with unit norm; empty where a window of one number has no such half."""
    down, across = torch.arange(high) - high // 2, torch.arange(wide) - wide // 2
    distance = torch.maximum(down.abs()[:, None], across.abs())
    sizes = torch.arange(1, max(high, wide) // 2 + 2, dtype=torch.float64).pow(-2)
    heights: Tensor = sizes.flip(0).cumsum(0).flip(0)[distance]
    return heights / heights.norm().clamp_min(1e-12)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of one size side by side in the middle of an axis.

    Attributes:
        count: how many there are.
        number: of the tile at each place of the axis, (n,).
        within: place in its tile, (n,).
        inside: whether there is a tile, (n,).
    """

    count: int
    number: Tensor
    within: Tensor
    inside: Tensor

    @classmethod
    def of(cls, length: int, side: int) -> _Tiles:
        count = length // side
        place = torch.arange(length) - (length - count * side) // 2
        inside = (place >= 0) & (place < count * side)
        return cls(count, (place // side).clamp(0, count - 1), place % side, inside)

    def spread(self, values: Tensor) -> Tensor:
        """One value for each tile, (..., count), to one for each place, (..., n)."""
        return values[..., self.number]

    def repeat(self, pattern: Tensor) -> Tensor:
        """The pattern of one tile, (..., side), in all of them, (..., n)."""
        return pattern[..., self.within]


class _Windows:
    """One window in each of so many rows, at random places.

    Attributes:
        inside: whether a pixel lies in its row's window, (B, 1, H, W).
    """

    def __init__(self, rows: int, shape: tuple[int, int], size: tuple[int, int], generator: Generator) -> None:
        self.down, self.across = (
            torch.arange(length) - torch.randint(0, length - side + 1, (rows, 1), generator=generator)
            for length, side in zip(shape, size, strict=True)
        )
        self.size = size
        rows_in, columns_in = (
            (place >= 0) & (place < side) for place, side in zip((self.down, self.across), size, strict=True)
        )
        self.inside = (rows_in[:, :, None] & columns_in[:, None, :])[:, None]

    def put(self, patterns: Tensor) -> Tensor:
        """Patterns of the windows, (B, high, wide), where the windows are, and zero around them, (B, 1, H, W)."""
        high, wide = self.size
        row = torch.arange(len(patterns))[:, None, None]
        placed = patterns[row, self.down.clamp(0, high - 1)[:, :, None], self.across.clamp(0, wide - 1)[:, None, :]]
        return placed[:, None] * self.inside


def _window(shape: tuple[int, int], share: float, least: int) -> tuple[int, int]:
    """Height and width of a window that holds this share of an image, or of a signal (which is one number high)."""
    height, width = shape
    if height == 1:
        return 1, min(max(round(share * width), least), width)
    side, largest = max(round((share * height * width) ** 0.5), least), min(height, width)
    return (min(side, largest),) * 2


def _as_images(signal: Tensor) -> Tensor:
    """Images as they are, (B, C, H, W); signals over the air as images of one row, (B, 1, 1, n)."""
    return signal if signal.dim() == 4 else signal.flatten(1)[:, None, None, :]


def _unit_of_channels(images: Tensor) -> Tensor:
    """Each channel of each image with norm 1; an exact zero stays zero."""
    return unit(images.flatten(0, 1)).view(images.shape)


def _signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return 2 * torch.randint(0, 2, shape, generator=generator) - 1


def _away_from_the_truth(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """Of the mean scores over the draws, the largest of a wrong class minus the true one's."""
    scores, place = problem.scores(delta, step, index).mean(0), problem.labels[index].unsqueeze(-1)
    margin = scores.scatter(-1, place, -torch.inf).amax(-1) - scores.gather(-1, place).squeeze(-1)
    return margin - problem.alarm(delta, step, index)


def _to_the_target(problem: Problem, delta: Perturbation, step: int, index: slice) -> Tensor:
    """Of the mean scores over the draws, the target's minus the largest of another class."""
    return -_away_from_the_truth(problem, delta, step, index) - 2 * problem.alarm(delta, step, index)
