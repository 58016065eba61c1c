"""What every defense says of itself, at whatever hook it acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fedsem.errors import ScenarioError
from fedsem.registry import Options

if TYPE_CHECKING:
    from fedsem.plan import Plan
    from fedsem.scenario import Grid, Scenario


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

    def grids(self, scenario: Scenario) -> Iterator[tuple[str, Grid]]:
        """The grids that name it, each with how an error about it begins."""
        for i, grid in enumerate(scenario.evaluation.grids):
            if any(scenario.defenses.get(name) is self for name in grid.defenses):
                yield f"In the scenario, 'evaluation.grids.{i}", grid

    def _needs_reserve(self, path: str, plan: Plan, what_for: str) -> None:
        """Refuse a scenario that keeps no images back, which it `what_for`."""
        if plan.dataset.reserve is None:
            raise ScenarioError(
                f"In the scenario, '{path}': '{self.kind}' {what_for} images that neither a receiver nor a test holds; "
                "keep some of them with data.reserve."
            )
