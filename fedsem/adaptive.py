"""Attacks that know the defenses in use: what stands for the name `adaptive` in a scenario's lists of attacks.

Each defense says which attack knows it (`Defense.adaptive`). Against it alone a defense's figure is worth something; an
attack that does not know of the defense may fail for reasons that a real adversary would find a way around (Tramer,
Carlini, Brendel and Madry, On Adaptive Attacks to Adversarial Example Defenses, 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedsem.errors import FedsemError, ScenarioError
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.aggregate import Aggregator
from fedsem.hooks.defense import Defense
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.poison import Backdoor
from fedsem.hooks.update import UpdateAttack
from fedsem.registry import find
from fedsem.scenario import ADAPTIVE, Grid, Scenario


class NothingKnown(ScenarioError):
    """`adaptive` is asked for in a training where no defense says which attack knows it."""


def with_adaptive(scenario: Scenario) -> Scenario:
    """The scenario with attacks in the place of the name `adaptive`.

    In a grid it stands for the evasion attacks that know the defenses in use and, each by itself, those of the grid,
    called `adaptive_<attack>` after the one of the grid whose sites, norm and objective they have; nothing where that
    one is what they say, where none is in use, or where one of them says nothing. In `use.attacks` it stands for what
    the aggregator, the defenses in use and those of the grids say that acts in training, called `adaptive_<kind>`, with
    the options of the scenario's first attack of the same kind, and with the fraction and the rounds of its other
    attacks of that hook, of backdoors also their samples and targets. Its triggers are measured in every grid that
    measures another one.

    Raises:
        NothingKnown: nothing is known that could stand in `use.attacks`.
        ScenarioError: a name is taken, or it is not clear what the attack should be like.
    """
    attacks = dict(scenario.attacks)
    used = scenario.use.attacks
    if ADAPTIVE in used:
        acting = [_add(attacks, f"{ADAPTIVE}_{one.kind}", one, scenario) for one in _in_training(scenario)]
        used = [name for name in used if name != ADAPTIVE] + acting
    triggers = [name for name in used if name not in scenario.attacks and isinstance(attacks.get(name), Backdoor)]
    grids: list[Grid] = []
    for i, grid in enumerate(scenario.evaluation.grids):
        if triggers and any(isinstance(scenario.attacks.get(name), Backdoor) for name in grid.attacks):
            grid = grid.model_copy(update={"attacks": [*grid.attacks, *triggers]})
        if ADAPTIVE in grid.attacks:
            other = _beside(grid, scenario, f"evaluation.grids.{i}.attacks")
            listed = [name for name in grid.attacks if name != ADAPTIVE]
            there = [scenario.attacks.get(name) for name in listed]
            behind: dict[tuple[str, ...], list[str]] = {}
            for defense in grid.defenses:
                met = _used(scenario) + ([] if defense == "none" else [scenario.defenses[defense]])
                new = [one for one in knowing(met, scenario.attacks[other]) or [] if one not in there]
                known = tuple(_add(attacks, f"{ADAPTIVE}_{other}", one, scenario) for one in new)
                behind.setdefault(known, []).append(defense)
            # Each link meets the attacks that know its own defenses, and no other link's.
            for known, defenses in behind.items():
                grids.append(grid.model_copy(update={"attacks": [*listed, *known], "defenses": defenses}))
        else:
            grids.append(grid)
    if used is scenario.use.attacks and grids == scenario.evaluation.grids:
        return scenario
    return scenario.model_copy(
        update={
            "attacks": attacks,
            "use": scenario.use.model_copy(update={"attacks": used}),
            "evaluation": scenario.evaluation.model_copy(update={"grids": grids}),
        }
    )


def knowing(defenses: Iterable[Defense], like: Evasion) -> list[Evasion] | None:
    """The evasion attacks that know these defenses, each once, at sites, norm and objective of another attack; of its
    kind, with its options. None where one of the defenses says nothing: then not all that is in use is known."""
    found: list[Evasion] = []
    for defense in defenses:
        said = defense.adaptive()
        if said is None:
            return None
        cls = _attack(said, defense)
        if not issubclass(cls, Evasion):  # of another hook: it does not act on what is perturbed
            continue
        same = ("knowledge", "surrogate", "targeted")
        given = like.model_dump(exclude_unset=True, exclude=set(same)) if cls is type(like) else {}
        given |= {"sites": like.sites, "norm": like.norm, "objective": like.objective}
        one = cls.model_validate({**given, **{key: value for key, value in said.items() if key != "kind"}})
        if one not in found:
            found.append(one)
    return found


def knows(attack: Evasion, defenses: Sequence[Defense]) -> bool:
    """Whether an attack is one of those that know these defenses, all of them in training."""
    return _plainly(attack) in [_plainly(one) for one in knowing(defenses, attack) or []]


def planted(attack: Backdoor, scenario: Scenario, behind: Defense | None) -> bool:
    """Whether a backdoor is what all that stands against it says knows it: the aggregator, where it defends, the
    defenses in use, and that of the trained link; not where nothing stands there."""
    said: list[Mapping[str, Any] | None] = [one for _, one in _ruling(scenario) if one is not None]
    said += [defense.adaptive() for defense in [*_used(scenario), *([] if behind is None else [behind])]]
    written = {"kind": attack.kind, **attack.model_dump()}
    return bool(said) and all(one is not None and written.items() >= one.items() for one in said)


def _plainly(attack: Evasion) -> Evasion:
    """The attack, whatever it knows of defenses that act on a trained link."""
    return attack.model_copy(update={"knowledge": attack.knowledge.model_copy(update={"defense": "exact"})})


def _used(scenario: Scenario) -> list[Defense]:
    return [scenario.defenses[name] for name in scenario.use.defenses if name in scenario.defenses]


def _attack(said: Mapping[str, Any], defense: Defense) -> type[Any]:
    try:
        return find("attack", str(said["kind"]))
    except KeyError as error:
        raise FedsemError(f"The attack that knows '{defense.kind}': {error.args[0]}") from None


def _beside(grid: Grid, scenario: Scenario, path: str) -> str:
    """The attack of a grid that an adaptive one is like."""
    evasions = {name: one for name in grid.attacks if isinstance(one := scenario.attacks.get(name), Evasion)}
    if not evasions:
        raise ScenarioError(
            f"In the scenario, '{path}': '{ADAPTIVE}' takes its sites, norm and objective from another attack of the "
            "grid; name one beside it, such as one of kind standard."
        )
    return next((name for name, one in evasions.items() if one.kind == "standard"), next(iter(evasions)))


def _ruling(scenario: Scenario) -> list[tuple[Defense, Mapping[str, Any] | None]]:
    """The aggregator, if there is one, with what it says knows it; averaging says nothing, but what comes before a rule
    makes a defense of it, and the line search goes through both."""
    federation = scenario.federation
    if federation.kind != "flower":
        return []
    rule = federation.aggregator
    return [(rule, Aggregator.adaptive(rule) if federation.pre_aggregators else rule.adaptive())]


def _in_training(scenario: Scenario) -> list[TrainingAttack]:
    """What the aggregator, the defenses in use and those of a trained link say knows them in training."""
    after = dict.fromkeys(name for grid in scenario.evaluation.grids for name in grid.defenses if name != "none")
    defenses = [*_used(scenario), *(scenario.defenses[name] for name in after)]
    saying = [*_ruling(scenario), *((defense, defense.adaptive()) for defense in defenses)]
    said_by_all = [said for _, said in saying if said is not None]
    found: list[TrainingAttack] = []
    for defense, said in saying:
        # What another defense asks for has all that this one asks for, and knows both (see `planted`).
        if said is None or any(other.items() > said.items() for other in said_by_all):
            continue
        cls = _attack(said, defense)
        if issubclass(cls, TrainingAttack):
            one = cls.model_validate({**_when(scenario, cls), **{k: v for k, v in said.items() if k != "kind"}})
            if one not in found:
                found.append(one)
    if not found:
        names = " and ".join(f"'{defense.kind}'" for defense, _ in saying) or "nothing"
        raise NothingKnown(
            f"In the scenario, 'use.attacks': '{ADAPTIVE}' stands for the attack in training that knows the aggregator "
            f"and the defenses in use, and {names} names none; leave it out here."
        )
    return found


def _when(scenario: Scenario, cls: type[TrainingAttack]) -> dict[str, Any]:
    """Options of the scenario's first attack of the same kind; fraction, rounds and targets of those of its hook."""
    alike = [one for one in scenario.attacks.values() if type(one) is cls]
    options = alike[0].model_dump(exclude_unset=True) if alike else {}
    hook = next((one for one in (UpdateAttack, Backdoor) if issubclass(cls, one)), TrainingAttack)
    keys = ["fraction", "first_round", "last_round", *(["samples", "targets"] if hook is Backdoor else [])]
    others = [one.model_dump(include=set(keys)) for one in scenario.attacks.values() if isinstance(one, hook)]
    if any(one != others[0] for one in others):
        *most, last = (f"'{key}'" for key in keys)
        raise ScenarioError(
            f"In the scenario, 'use.attacks': '{ADAPTIVE}' has {', '.join(most)} and {last} of the other attacks at "
            "its hook, and those differ; make them the same."
        )
    return options | (others[0] if others else {})


def _add(attacks: dict[str, Any], name: str, attack: Any, scenario: Scenario) -> str:
    """Give an attack this name, or one with a number where it is taken; the name."""
    if name in scenario.attacks:
        raise ScenarioError(
            f"In the scenario, 'attacks.{name}': this is what '{ADAPTIVE}' is called here; give your attack another "
            "name."
        )
    numbered = [name, *(f"{name}_{number}" for number in range(2, len(attacks) + 3))]
    free = next(one for one in numbered if attacks.get(one, attack) == attack)
    attacks[free] = attack
    return free
