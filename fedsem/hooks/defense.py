"""What every defense says of itself, at whatever hook it acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedsem.registry import Options

if TYPE_CHECKING:
    from fedsem.plan import Plan


class Defense(Options):
    """Something that stands against an adversary."""

    in_training: ClassVar[bool] = True
    """Whether it acts while the link is trained (`use.defenses`), or on a trained link (`evaluation.grids`)."""

    def adaptive(self) -> Mapping[str, Any] | None:
        """The attack that knows this defense, as a scenario writes it, without sites, norm and budget; None where none
        is known: what is measured then supports no claim of robustness."""
        return None

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Args:
            path: where the scenario has it, such as `defenses.mine`.
            plan: the scenario with its data.

        Raises:
            ScenarioError: it could do nothing here.
        """
