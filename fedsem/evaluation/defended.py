"""A trained link behind a defense that acts at test time, or after a repair."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from fedsem.evaluation.repaired import repaired
from fedsem.evaluation.trained import TrainedLink
from fedsem.hooks.certificate import DecoderBounds
from fedsem.hooks.defense import Defense
from fedsem.hooks.detector import Detector
from fedsem.hooks.repair import Repair
from fedsem.hooks.transform import Transform
from fedsem.hooks.vote import Vote


def defended(link: TrainedLink, defense: Defense | None, known: bool = False) -> TrainedLink:
    """The link behind a defense; the link itself for None, and for what changes nothing.

    Args:
        link: the trained link.
        defense: acts on a trained link.
        known: whether a transform is differentiated by way of its stand-in, as an adversary does who knows it.
    """
    if defense is None or isinstance(defense, DecoderBounds):
        return link
    if isinstance(defense, Repair):
        return repaired(link, defense)
    if isinstance(defense, Vote):
        # Of noisy copies an adversary meets the noise, and the mean over its draws.
        noisy = defense if isinstance(defense, Transform) else None
        changed = replace(link, vote=defense, transform=noisy, known=known)
    elif isinstance(defense, Transform) and defense.where == "input":
        changed = replace(link, transform=defense, known=known)
    elif isinstance(defense, Transform):
        listeners = [replace(one, decoder=_Behind(defense, known, one.decoder)) for one in link.listeners]
        changed = replace(link, listeners=tuple(listeners))
    else:
        assert isinstance(defense, Detector)
        changed = replace(link, detector=defense)
    object.__setattr__(changed, "orders", link.orders)
    return changed


class _Behind(nn.Module):
    """A decoder behind a transform of what it receives."""

    def __init__(self, transform: Transform, known: bool, decoder: nn.Module) -> None:
        super().__init__()
        self.transform, self.known, self.decoder = transform, known, decoder

    def forward(self, heard: Tensor) -> Tensor:
        return self.decoder(self.transform.applied(heard, None, self.known))
