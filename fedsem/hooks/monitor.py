"""Hook `monitor`: after every round the server looks at what has become of the encoder, and changes nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsem.errors import ScenarioError
from fedsem.hooks.defense import Defense

if TYPE_CHECKING:
    from fedsem.plan import Plan


class Monitor(Defense):
    """A defense in `use.defenses` that watches the features of the images of `data.reserve`, what the encoder sends for
    them, from round to round, and raises an alarm where they move as they did not before. What is done about an alarm
    is up to people: training goes on as it would without.

    The table has, for each round, `feature_drift`, `drift_score`, what is compared with a threshold of 1, and
    `drift_alarm`, 1 or 0.
    """

    @abstractmethod
    def drift(self, before: np.ndarray, after: np.ndarray) -> float:
        """How far the features of the same images have moved in a round, both (N, nc) float64."""

    @abstractmethod
    def score(self, drifts: Sequence[float]) -> float:
        """How suspicious the last of these rounds is, from all until then: above 1 is an alarm."""

    def adaptive(self) -> Mapping[str, Any] | None:
        """It changes nothing: the weights are what there is to attack."""
        return {"kind": "standard"}

    def check(self, path: str, plan: Plan) -> None:
        """Cross-check with the rest of the scenario.

        Raises:
            ScenarioError: there is no server, no image to watch, or the encoder sends patches.
        """
        encoder = plan.scenario.link.encoder
        self._needs_reserve(path, plan, "watches")
        if encoder.paints:
            raise ScenarioError(
                f"In the scenario, '{path}': link.encoder '{encoder.kind}' sends chosen patches, which images do not "
                "have in common; use the encoder 'cnn'."
            )
        if plan.scenario.federation.kind == "none" and any(self is one for one in plan.monitors.values()):
            raise ScenarioError(
                f"In the scenario, '{path}': the centralised reference has no server that could watch its rounds; use "
                "federation.kind: flower."
            )
