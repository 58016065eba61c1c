"""Places of patches in the picture."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def uniform_scores(side: int) -> Tensor:
    """Scores (L,) whose k best patches form an even grid for every k: a low-discrepancy order of the places (the R2
    sequence of Roberts, The Unreasonable Effectiveness of Quasirandom Sequences, 2018, each point taking the nearest
    free place)."""
    golden = 1.32471795724474602596
    centre = (torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1) + 0.5) / side
    free = centre.flatten(0, 1).double()
    scores = torch.zeros(side**2, dtype=torch.float64)
    for rank in range(side**2):
        point = torch.tensor([(0.5 + (rank + 1) / golden) % 1, (0.5 + (rank + 1) / golden**2) % 1])
        place = int((free - point).square().sum(1).argmin())
        scores[place] = side**2 - rank
        free[place] = torch.inf
    return scores.float()
