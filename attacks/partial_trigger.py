"""Triggers in the image that are learnt piece by piece."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedsem.hooks.poison import Backdoor
from fedsem.streams import Stream

SIDE = 4


class PartialTrigger(Backdoor):
    """A trigger of which a training sample bears some pieces, and a test image all.

    The region of the trigger is cut into 4 x 4 pieces (fewer where it has fewer pixels); each sample, poisoned or
    covering, bears round(16 shown) of them, at least one, drawn by the image's number. What a filter sees is faint, and
    what acts at test time is stronger than what any sample was corrected for: the asymmetric trigger of the adaptive
    blended backdoor, with half of the pieces (Qi et al., Revisiting the Assumption of Latent Separability for Backdoor
    Defenses, 2023).

    Attributes:
        shown: share of the pieces that a training sample bears; 1: all.
    """

    shown: Annotated[float, Field(gt=0, le=1)] = 1.0

    @abstractmethod
    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of an image that the trigger may change."""

    def poisoned(self, images: Tensor, numbers: Tensor, part: int, parts: int, stream: Stream) -> Tensor:
        return self._in_part(images, numbers, stream)

    def covered(self, images: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        return self._in_part(images, numbers, stream)

    def _in_part(self, images: Tensor, numbers: Tensor, stream: Stream) -> Tensor:
        whole = self.triggered(images, stream)
        if self.shown == 1:
            return whole
        rows, columns = self.region(*images.shape[-2:])
        sides = [one.stop - one.start for one in (rows, columns)]
        high, wide = (min(SIDE, side) for side in sides)
        count = max(1, round(self.shown * high * wide))
        of = [np.arange(side) * cut // side for side, cut in zip(sides, (high, wide), strict=True)]
        bears = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
        for here, number in zip(bears, numbers.tolist(), strict=True):
            pieces = np.zeros(high * wide, dtype=bool)
            pieces[stream.child("pieces", number).numpy().permutation(high * wide)[:count]] = True
            here[rows, columns] = torch.from_numpy(pieces.reshape(high, wide)[np.ix_(*of)])
        return torch.where(bears[:, None].to(images.device), whole, images)
