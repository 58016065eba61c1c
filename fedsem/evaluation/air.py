"""Channel draws of an evaluation, made once and shared by all that is compared (common random numbers)."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from fedsem.channels.channel import Realisation
from fedsem.evaluation.trained import Listener, TrainedLink
from fedsem.streams import Stream

TRANSFORMS = 16
"""Draws of a random transform at most: the encoder runs once for each; channel draws are shared out among them."""


class Air:
    """Draws for the whole test set, by listener.

    `score` draws are the same for every SNR, PSR, attack and defense, so that differences between those are paired and
    do not depend on batch size. `attack` draws are what a perturbation may be fitted on: independent of the former,
    and new in every step.

    Args:
        link: the trained link.
        name: of its random streams.
        draws: that score; None: `evaluation.draws.score`.
    """

    def __init__(self, link: TrainedLink, name: str = "evaluate", draws: int | None = None) -> None:
        self.link = link
        self.stream = Stream(link.seed).child(name)
        self.draws = draws or link.plan.scenario.evaluation.draws.score
        self._score: dict[str, Realisation] = {}
        self._transforms: list[Tensor | None] = []

    def score(self, listener: Listener) -> Realisation:
        """(draws, N) draws; kept."""
        if listener.name not in self._score:
            self._score[listener.name] = self._draw(listener, self.draws, self.stream.child("score", listener.name))
        return self._score[listener.name]

    def attack(self, listener: Listener, step: int, draws: int | None = None) -> Realisation:
        """(draws, N) draws for a step of an attack; by default draws.attack of them."""
        return self._draw(
            listener,
            draws or self.link.plan.scenario.evaluation.draws.attack,
            self.stream.child("attack", listener.name, step),
        )

    def score_transform(self) -> Tensor | None:
        """Draws of what is random in the link's transform, (m, N, ...), m at most `TRANSFORMS`; None where nothing is.
        Kept."""
        if not self._transforms:
            self._transforms.append(self._draw_transform(self.draws, self.stream.child("transform", "score")))
        return self._transforms[0]

    def attack_transform(self, step: int, draws: int) -> Tensor | None:
        """The same for a step of an attack with so many channel draws."""
        return self._draw_transform(draws, self.stream.child("transform", "attack", step))

    def _draw_transform(self, draws: int, stream: Stream) -> Tensor | None:
        if self.link.transform is None:
            return None
        shape = (min(draws, TRANSFORMS), len(self.link.labels))
        drawn = self.link.transform.draw(shape, self.link.plan.images.shape, stream.torch())
        return None if drawn is None else drawn.to(self.link.plan.device)

    def _draw(self, listener: Listener, draws: int, stream: Stream) -> Realisation:
        plan = self.link.plan
        # Of a digital transmission only the gain matters; it is drawn first, and the same without the noise.
        uses = 0 if self.link.transmitter.digital else plan.channel_uses
        # Drawn on the CPU: the same on every device.
        realisation = plan.channel(listener.branch).draw(
            (draws, len(self.link.labels)), uses, plan.scenario.link.symbols, stream.torch()
        )
        return self.averaged(realisation).to(plan.device)

    def averaged(self, realisation: Realisation) -> Realisation:
        """The draws with the noise that is left where the receiver averages several receptions."""
        if self.link.averaged == 1:
            return realisation
        return replace(realisation, noise=realisation.noise / math.sqrt(self.link.averaged))
