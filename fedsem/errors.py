"""Errors that a user can act on. Each message is one clear sentence that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedsemError(Exception):
    """Base of all errors that the command line prints as one sentence, without a traceback."""


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
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{match[0]}'?" if match else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."
