"""Which link gets which colour, line and marker where a figure compares several."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from fedsem.reporting.rows import telling
from fedsem.reporting.style import CATEGORIES, CLEAN, LINES, MARKERS, Stroke, ramp


class Links:
    """The trained links (cells of a sweep, groups of receivers) that a figure compares.

    Attributes:
        facets: what tells them apart; empty where there is only one.
        strokes: label -> stroke. With two facets, colour tells one (a ramp where it is a number) and line and marker
            the other.
    """

    def __init__(self, rows: pd.DataFrame, without: Sequence[str] = (), attacked: bool = False) -> None:
        """Find out what tells the links apart.

        Args:
            rows: as `fedsem.reporting.rows.with_words` gives them, of all panels of the figure.
            without: facets that do not count.
            attacked: the figure shows attacks too: links then leave the attacks' colours to them.
        """
        self.facets = telling(rows, without)
        identities = rows[[f"@{facet}" for facet in self.facets]].drop_duplicates()
        named = [tuple(str(word) for word in identity) for identity in identities.itertuples(index=False)]
        self.strokes = (
            dict(zip(map(_label, named), _strokes(named, attacked), strict=True))
            if self.facets
            else {"": Stroke(CLEAN)}
        )

    def label(self, rows: pd.DataFrame) -> str:
        """The label of a group of rows that belong to one link."""
        return _label([str(rows[f"@{facet}"].iloc[0]) for facet in self.facets])

    @property
    def columns(self) -> list[str]:
        """The columns to group by."""
        return [f"@{facet}" for facet in self.facets]


def _label(identity: Sequence[str]) -> str:
    return ", ".join(word for word in identity if word)


def _strokes(identities: Sequence[tuple[str, ...]], attacked: bool) -> list[Stroke]:
    facets = [sorted(set(words), key=_order) for words in zip(*identities, strict=True)]
    numeric = [all(_order(word)[0] == 0 for word in words) for words in facets]
    if len(facets) > 2 or (len(facets) == 2 and min(map(len, facets)) > len(LINES)):
        every = len(CATEGORIES)
        return [
            Stroke(CATEGORIES[i % every], LINES[i // every % len(LINES)], MARKERS[i % len(MARKERS)])
            for i in range(len(identities))
        ]
    # The facet for colours: a number before a name, then the one with more values.
    by_colour = 0
    if len(facets) == 2:
        by_colour = max((0, 1), key=lambda i: (len(facets[1 - i]) <= len(LINES), numeric[i], len(facets[i])))
    words = facets[by_colour]
    if attacked or (numeric[by_colour] and len(words) > 2):
        colours = ramp(len(words))
    else:
        colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(words))]
    strokes = []
    for identity in identities:
        colour = words.index(identity[by_colour])
        if len(facets) == 1:
            strokes.append(
                Stroke(colours[colour], LINES[colour // len(CATEGORIES) % 4], MARKERS[colour % len(MARKERS)])
            )
        else:
            style = facets[1 - by_colour].index(identity[1 - by_colour])
            strokes.append(Stroke(colours[colour], LINES[style], MARKERS[style]))
    return strokes


def _order(word: str) -> tuple[int, float, str]:
    """Numbers in words before words, by size."""
    found = re.search(r"-?\d+(\.\d+)?(e-?\d+)?", word.replace("−", "-"))
    return (0, float(found[0]), word) if found else (1, 0.0, word)
