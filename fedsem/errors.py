"""Errors that a user can act on. Each message is one clear sentence that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable


class FedsemError(Exception):
    """Base of all errors that the command line prints as one sentence, without a traceback."""

    def __str__(self) -> str:
        # One line, whatever a user's key or a library's message holds.
        return "".join(letter if letter.isprintable() else " " for letter in super().__str__())


class ScenarioError(FedsemError):
    """The scenario is wrong: an unknown key, a wrong type, an impossible combination."""


class DataError(FedsemError):
    """A data set is missing or cannot be read."""


class FederationError(FedsemError):
    """The federation lost more than its policy allows."""


class OutputError(FedsemError):
    """Results cannot be written or read."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'? Known: a, b." for an unknown name; the first sentence only where a name is near."""
    names = sorted(known)
    folded = {each.lower(): each for each in names}
    match = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean '{folded[match[0]]}'?" if match else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


class _Yaml(reprlib.Repr):
    """`repr`, shortened, with the words that YAML has for what is neither text nor a number."""

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_float(self, value: float, level: int) -> str:
        if math.isfinite(value):
            return repr(value)
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"

    def repr_date(self, value: object, level: int) -> str:
        return str(value)

    repr_datetime = repr_TimeStamp = repr_date


_yaml = _Yaml()
_yaml.maxstring = _yaml.maxother = 60


def shown(value: object) -> str:
    """A value of the scenario as a message shows it: short, on one line, as it would stand in YAML."""
    return _yaml.repr(value)
