"""How many updates of a group rules, and what comes before them, need, and how many of these may be malicious."""

from __future__ import annotations

from pydantic import NonNegativeInt

from fedsem.registry import Options


class OfGroup(Options):
    """Works on the updates of a group, and needs so many."""

    @property
    def assumed_f(self) -> int | None:
        """How many malicious updates of a group it is set to withstand; None where it assumes nothing."""
        return None

    @property
    def least_updates(self) -> int:
        """The smallest group that it does for what its options say."""
        return 1

    @property
    def demanding(self) -> tuple[str, int] | None:
        """The option that `least_updates` grows with, and its value; None for none."""
        return None if self.assumed_f is None else ("f", self.assumed_f)

    def lacks(self, group: str, otherwise: str) -> str:
        """The rest of an error's sentence: how many updates it needs, and what to do.

        Args:
            group: how many there are, such as `the encoder has 3 in a round`.
            otherwise: what helps but for another option.
        """
        option = "" if self.demanding is None else " with {} = {}".format(*self.demanding)
        remedy = otherwise if self.demanding is None else f"lower {self.demanding[0]}, or {otherwise}"
        return f"'{self.kind}'{option} needs at least {self.least_updates} updates, and {group}; {remedy}."


class AssumesF(OfGroup):
    """What is built on more than half of the updates being honest.

    Attributes:
        f: malicious updates that it assumes.
    """

    f: NonNegativeInt = 1

    @property
    def assumed_f(self) -> int | None:
        return self.f

    @property
    def least_updates(self) -> int:
        return 2 * self.f + 1
