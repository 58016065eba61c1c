"""Surrogates: links that an adversary trains itself, to attack another one through them."""

from __future__ import annotations

from typing import Any

from fedsem.hooks.evasion import Evasion
from fedsem.scenario import Scenario, check_scenario, dump_scenario
from fedsem.streams import Stream


def surrogates_of(scenario: Scenario) -> dict[str, Evasion]:
    """Attacks of the evaluation's grids that have a surrogate, by name."""
    named = {name: scenario.attacks[name] for grid in scenario.evaluation.grids for name in grid.attacks
             if name in scenario.attacks}  # fmt: skip
    return {name: one for name, one in named.items() if isinstance(one, Evasion) and one.surrogate is not None}


def surrogate_scenario(scenario: Scenario, attack: Evasion) -> Scenario:
    """The scenario in which the surrogate is trained: one learner, on the reserve, with the link's own encoder or
    another; channels, tasks and local training are the link's."""
    assert attack.surrogate is not None
    tree: dict[str, Any] = dump_scenario(scenario)
    if attack.surrogate.encoder is not None:
        encoder = attack.surrogate.encoder
        tree["link"]["encoder"] = {"kind": encoder.kind, **encoder.model_dump(mode="json")}
    tree["data"] |= {"portion": "reserve", "train_images": None}
    tree["train"]["epochs"] = 1
    tree["federation"] = {"kind": "none", "rounds": attack.surrogate.epochs}
    tree |= {"attacks": {}, "defenses": {}, "use": {"attacks": [], "defenses": []}, "sweep": {}, "ablate": {}}
    tree["evaluation"] |= {"grids": [], "rounds": 1}
    return check_scenario(tree)


def surrogate_seed(seed: int) -> int:
    """Seed of a surrogate's training: the adversary does not know the link's."""
    return Stream(seed).child("surrogate").key
