"""Checks, in families, and how much a measured difference means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from fedsem.evaluation.statistics import Measured, bootstrap
from fedsem.reporting.findings import Finding, Verdict

POINT = 0.01
"""One percentage point."""
Subject = TypeVar("Subject")


Outcome = tuple[Verdict, str]
"""Verdict and evidence."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One question to a run.

    Attributes:
        name: what it is called.
        family: the checks that it belongs to.
        needs: what must be there for it to apply.
        ask: looks at the subject.
    """

    name: str
    family: str
    needs: str
    ask: Callable[[Subject], Outcome]

    @property
    def paragraph(self) -> str:
        """What it asks, why, and when it says what."""
        return inspect.cleandoc(self.ask.__doc__ or "")


class Family(Generic[Subject]):
    """Checks of one kind of subject, in the order in which they are asked.

    Args:
        name: what they are called.
        opening: what they have in common, for the documentation.
    """

    def __init__(self, name: str, opening: str) -> None:
        self.name, self.opening = name, opening
        self.checks: list[Check[Subject]] = []

    def check(self, needs: str) -> Callable[[Callable[[Subject], Outcome]], Callable[[Subject], Outcome]]:
        """Decorator: a function is a check of this family; its name and docstring are the check's."""

        def add(ask: Callable[[Subject], Outcome]) -> Callable[[Subject], Outcome]:
            self.checks.append(Check(ask.__name__, self.name, needs, ask))
            return ask

        return add

    def examine(self, subject: Subject) -> Iterator[Finding]:
        """Ask everything, one check after another."""
        for check in self.checks:
            verdict, evidence = check.ask(subject)
            yield Finding(check.name, verdict, evidence, self.name)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean of `one` minus `other` over images, (N,) each, with the 95 % interval of the bootstrap that is paired over
    images."""
    whole = np.ones((1, len(one)))
    low, high = bootstrap(len(one), 1).difference(
        Measured(one[None], whole, single=False), Measured(other[None], whole, single=False)
    )
    return float(one.mean() - other.mean()), low, high


def beaten(gain: tuple[float, float, float]) -> Verdict:
    """What it means that something which should do no more harm does so much more: up to a point on average is nothing;
    beyond it, the interval says whether that may be chance.

    Args:
        gain: accuracy that it takes beyond, with the ends of its interval.
    """
    # A point exactly is no more than a point, whatever float32 makes of it.
    value, low, _ = (round(part, 6) for part in gain)
    return "failed" if low > POINT else "suspicious" if value > POINT else "passed"


def shown(gain: tuple[float, float, float]) -> str:
    """A difference of accuracies with its interval."""
    value, low, high = (round(part, 3) + 0.0 for part in gain)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
