"""Checks of a scenario that need its data and its plug-ins, so that an impossible combination ends in one sentence
before anything is written."""

from __future__ import annotations

from typing import Any

import torch

from fedsem.adaptive import with_adaptive
from fedsem.errors import ScenarioError
from fedsem.hooks.adversary import TrainingAttack
from fedsem.hooks.aggregate import too_few
from fedsem.hooks.detector import Detector
from fedsem.hooks.evasion import Evasion
from fedsem.hooks.leakage import Leakage
from fedsem.hooks.loss import LossDefense
from fedsem.hooks.poison import Backdoor
from fedsem.hooks.update import UpdateAttack
from fedsem.hooks.update_defense import UpdateDefense
from fedsem.models.mae_encoder import MaeOptions
from fedsem.models.pretrained import stand_in
from fedsem.plan import Plan, asked_per_round, make_plan
from fedsem.scenario import Federation, Scenario


def resolve(scenario: Scenario) -> Plan:
    """Check a scenario against its data and plug-ins, and put attacks in the place of `adaptive`.

    Raises:
        ScenarioError: an impossible combination, as one sentence with its YAML path.
        DataError: the data set is missing or cannot be read.
    """
    scenario = with_adaptive(scenario)
    _check_channels(scenario)
    _check_use(scenario)
    _check_federation(scenario)
    plan = make_plan(scenario)
    missing = [one for one in plan.wanted if not one.path.is_file()]
    for one in missing:
        stand_in(str(one.path), one.untrained(plan.dataset))
    try:
        _check_networks(plan)
    finally:
        for one in missing:
            stand_in(str(one.path), None)
    return plan


def _check_networks(plan: Plan) -> None:
    """The checks that need the encoder and the decoders, or what stands in for those that are to be trained."""
    scenario = plan.scenario
    if scenario.link.symbols == "complex" and plan.channel_uses % 2:
        raise ScenarioError(
            f"In the scenario, 'link.encoder.channel_uses': complex symbols carry two numbers each, so "
            f"{plan.channel_uses} must be even; change it, or use symbols: real."
        )
    plan.new_transmitter()
    _check_tasks(plan)
    _check_patches(plan)
    _check_groups(plan)
    if scenario.federation.kind == "flower":
        for seed in scenario.seeds:
            plan.partition(seed)
        asked = asked_per_round(plan)
        if (scenario.federation.min_receivers or 0) > asked:
            raise ScenarioError(
                f"In the scenario, 'federation.min_receivers': {scenario.federation.min_receivers} receivers can never "
                f"answer when each round asks {asked} (fraction {scenario.federation.fraction} of "
                f"{len(plan.receivers)}); lower it, or raise the fraction."
            )
    _check_aggregator(plan)
    _check_rounds(plan)
    for name, attack in scenario.attacks.items():
        attack.check(f"attacks.{name}", plan)
    for name, defense in scenario.defenses.items():
        defense.check(f"defenses.{name}", plan)


def _check_channels(scenario: Scenario) -> None:
    for name, group in scenario.receivers.items():
        for task in group.tasks:
            channel_name = str(group.channel_of(task))
            sensing = scenario.channels[channel_name].is_sensing
            if scenario.tasks[task].is_sensing != sensing:
                need, have = ("a sensing", "a communication") if not sensing else ("a communication", "a sensing")
                raise ScenarioError(
                    f"In the scenario, 'receivers.{name}': the task '{task}' needs {need} channel, but "
                    f"'{channel_name}' is {have} channel; name a channel for each task in 'channel'."
                )


def _check_tasks(plan: Plan) -> None:
    """Every task has what it needs, and something is trained."""
    scenario = plan.scenario
    objects = plan.dataset.train.objects
    for branch in plan.branches:
        task, where = plan.task(branch), f"In the scenario, 'tasks.{branch.task}'"
        if task.is_sensing and plan.new_transmitter().digital:
            raise ScenarioError(
                f"{where}: a digital transmission has no waveform that a target could reflect; use "
                "link.encoder.transport: analog."
            )
        if task.needs is not None:
            if not scenario.link.encoder.paints:
                raise ScenarioError(
                    f"{where}: '{task.kind}' decodes a painted picture, which link.encoder "
                    f"'{scenario.link.encoder.kind}' does not give; use the encoder 'mae'."
                )
            lacking = objects is None or (task.needs == "keypoints" and not objects.keypoints.shape[1])
            if task.needs != "picture" and lacking:
                raise ScenarioError(
                    f"{where}: '{task.kind}' needs annotated {task.needs}, which the data set "
                    f"'{plan.dataset.name}' does not have; use 'digit_scenes', or 'coco' with the right annotations."
                )
            if scenario.train.augment:
                raise ScenarioError(
                    f"In the scenario, 'train.augment': boxes and masks of '{branch.task}' would not move with the "
                    "pictures; remove it."
                )
        plan.new_decoder(branch)
    for receiver in {receiver.group: receiver for receiver in plan.receivers}.values():
        if not any(plan.task(branch).weight for branch in receiver.branches):
            raise ScenarioError(
                f"In the scenario, 'receivers.{receiver.group}.tasks': all of them have weight 0, so that the shared "
                "encoder learns nothing from these receivers; add a task or raise a weight."
            )


def _check_patches(plan: Plan) -> None:
    """What a transmitter of patches can and cannot do: better said now than after the training."""
    scenario, encoder = plan.scenario, plan.scenario.link.encoder
    grids = [(f"In the scenario, 'evaluation.grids.{i}", grid) for i, grid in enumerate(scenario.evaluation.grids)]
    if not isinstance(encoder, MaeOptions):
        for where, grid in grids:
            for key in ("mask_ratio", "selection"):
                if getattr(grid, key) is not None:
                    raise ScenarioError(f"{where}.{key}': link.encoder '{encoder.kind}' sends no patches; remove it.")
        return
    if scenario.link.power != "per_example":
        raise ScenarioError(
            "In the scenario, 'link.power': patches are sent with power: per_example, since their number varies."
        )
    for name, channel in scenario.channels.items():
        where = f"In the scenario, 'channels.{name}"
        if getattr(channel, "decoder_csi", False):
            raise ScenarioError(f"{where}.decoder_csi': what paints a picture takes no channel estimate; remove it.")
        if encoder.digital and channel.fading_name == "fast":
            raise ScenarioError(
                f"{where}.fading': a digital transmission needs one gain for a whole picture; use fading: block."
            )
        if encoder.csi_correlation < 1 and channel.kind not in ("rayleigh", "awgn", "sensing"):
            raise ScenarioError(
                f"{where}': link.encoder.csi_correlation is the delay of a Rayleigh gain; use kind: rayleigh."
            )
    painting = [branch for branch in plan.branches if plan.decoder_format(branch).paints and plan.task(branch).weight]
    chosen = [(f"{where}.selection'", name) for where, grid in grids for name in grid.selection or []]
    chosen.append(("In the scenario, 'link.encoder.selection'", encoder.selection))
    for where, name in chosen:
        if name == "oracle" and not painting:
            raise ScenarioError(
                f"{where}: an oracle chooses by the loss of tasks that decode painted pictures, and none of those has "
                "a weight; choose otherwise, or give one a weight."
            )
    for where, grid in grids:
        if grid.mask_ratio is not None and encoder.latency_budget_s is not None:
            raise ScenarioError(
                f"{where}.mask_ratio': link.encoder.latency_budget_s decides how many patches are sent; remove one of "
                "the two."
            )
        attacks = [name for name in grid.attacks if name != "none"]
        if "original" in (grid.selection or []) and (
            attacks or any(task.is_sensing for task in scenario.tasks.values())
        ):
            raise ScenarioError(
                f"{where}.selection': 'original' shows receivers the images themselves, which no attack on the link "
                "and no radar meets; give it a grid of its own, without attacks and sensing tasks."
            )
        evasions = {name: attack for name, attack in scenario.attacks.items() if isinstance(attack, Evasion)}
        disturbs = [name for name in attacks if name in evasions and "air" in evasions[name].sites]
        if encoder.digital and disturbs:
            raise ScenarioError(
                f"In the scenario, 'attacks.{disturbs[0]}.sites': a digital transmission has no waveform that could be "
                "disturbed; use link.encoder.transport: analog, or sites: [input]."
            )


def _check_groups(plan: Plan) -> None:
    first: dict[str, tuple[dict[str, torch.Size], str]] = {}
    for group in {receiver.group: receiver for receiver in plan.receivers if receiver.decoder == "group"}.values():
        for branch in group.branches:
            shapes = {name: value.shape for name, value in plan.new_decoder(branch).named_parameters()}
            others, where = first.setdefault(branch.task, (shapes, group.group))
            if shapes != others:
                raise ScenarioError(
                    f"In the scenario, 'receivers.{group.group}.decoder': decoders of the task '{branch.task}' cannot "
                    f"be averaged with those of group '{where}': over their channels they have other shapes; use "
                    "decoder: local."
                )


def _check_aggregator(plan: Plan) -> None:
    """Rules and what comes before them have enough updates in every group."""
    federation = plan.scenario.federation
    if federation.kind != "flower":
        return
    asked = asked_per_round(plan)
    groups = {"shared": asked}
    for receiver in plan.receivers:
        if receiver.decoder == "group":
            for branch in plan.trained_branches(receiver):
                group = f"group/{branch.task}"
                groups[group] = min(asked, groups.get(group, 0) + 1)
    if (own := federation.group_aggregator) is not None and own.proximal_mu:
        raise ScenarioError(
            f"In the scenario, 'federation.group_aggregator': '{own.kind}' holds receivers near the global encoder "
            "and does nothing for decoders; name it in federation.aggregator."
        )
    merging = [step for step in federation.pre_aggregators if step.left(asked) != asked]
    for key, rule in federation.rules.items():
        if rule.needs_receivers and merging:
            raise ScenarioError(
                f"In the scenario, 'federation.pre_aggregators': '{merging[0].kind}' merges updates, and '{rule.kind}' "
                "must know whose each is; remove it, or use another rule."
            )
        if not rule.needs_root:
            continue
        if plan.dataset.reserve is None:
            raise ScenarioError(
                f"In the scenario, 'federation.{key}': '{rule.kind}' compares updates with what the server learns on "
                "data that no receiver holds; keep some images back with data.reserve."
            )
        if local := next((one for one in plan.receivers if one.decoder == "local"), None):
            raise ScenarioError(
                f"In the scenario, 'receivers.{local.group}.decoder': with '{rule.kind}' the server learns through the "
                "decoders, and does not know those of policy 'local'; use decoder: group."
            )
    for group, members in groups.items():
        rule = federation.rule(group)
        if (found := too_few(rule, federation.pre_aggregators, members)) is not None:
            step, reached = found
            name = "the encoder" if group == "shared" else f"the decoder of '{group.partition('/')[2]}'"
            own = "aggregator" if rule is federation.aggregator else "group_aggregator"
            key = own if step is rule else "pre_aggregators"
            lack = step.lacks(f"{name} has {reached} in a round", "add receivers")
            raise ScenarioError(f"In the scenario, 'federation.{key}': {lack}")


def _check_rounds(plan: Plan) -> None:
    """There are as many rounds as are measured, and what is measured has a mean over them."""
    measured, rounds = plan.scenario.evaluation.rounds, plan.scenario.federation.rounds
    if measured > rounds:
        raise ScenarioError(
            f"In the scenario, 'evaluation.rounds': there are only {rounds} rounds to measure the link after, not "
            f"{measured}; lower it, or raise federation.rounds."
        )
    if measured > 1 and (boxes := [branch.task for branch in plan.branches if plan.task(branch).kind == "detection"]):
        raise ScenarioError(
            f"In the scenario, 'evaluation.rounds': the average precision of '{boxes[0]}' is a ranking of one round's "
            "detections and is not averaged over rounds; use rounds: 1."
        )


def _check_use(scenario: Scenario) -> None:
    # Silently training without what a person asked for would be worse than refusing.
    for name in scenario.use.attacks:
        if not isinstance(scenario.attacks[name], TrainingAttack):
            raise ScenarioError(
                f"In the scenario, 'use.attacks': '{name}' does not act in training; leave it out, and list attacks of "
                "the test phase in 'evaluation.grids'."
            )
    forging = [name for name in scenario.use.attacks if isinstance(scenario.attacks[name], UpdateAttack)]
    if len(forging) > 1:
        raise ScenarioError(
            f"In the scenario, 'use.attacks': '{forging[0]}' and '{forging[1]}' would both replace updates; name one, "
            "and sweep over them with sweep.use.attacks."
        )
    if scenario.use.attacks and scenario.federation.kind == "none":
        raise ScenarioError(
            f"In the scenario, 'use.attacks': '{scenario.use.attacks[0]}' is an attack of some receivers, and the "
            "centralised reference has none; use federation.kind: flower."
        )
    for name in scenario.use.defenses:
        if not scenario.defenses[name].in_training:
            raise ScenarioError(
                f"In the scenario, 'use.defenses': '{name}' acts on a trained link; name it in defenses of a grid."
            )
    for hook, what in ((LossDefense, "say what receivers minimise"), (UpdateDefense, "limit what receivers send")):
        named = [name for name in scenario.use.defenses if isinstance(scenario.defenses[name], hook)]
        if len(named) > 1:
            raise ScenarioError(
                f"In the scenario, 'use.defenses': '{named[0]}' and '{named[1]}' would both {what}; name one, and "
                "sweep over them with sweep.use.defenses."
            )
    for i, grid in enumerate(scenario.evaluation.grids):
        for name in grid.defenses:
            if name != "none" and scenario.defenses[name].in_training:
                raise ScenarioError(
                    f"In the scenario, 'evaluation.grids.{i}.defenses': '{name}' acts in training; name it in "
                    "use.defenses."
                )
        behind = [scenario.defenses[name] for name in grid.defenses if name != "none"]
        for name in grid.attacks:
            attack = scenario.attacks.get(name)
            if behind and isinstance(attack, Leakage):
                raise ScenarioError(
                    f"In the scenario, 'evaluation.grids.{i}.attacks': what '{name}' learns is measured on the link "
                    "without defenses of a trained link; name it in a grid of its own."
                )
            careless = isinstance(attack, Evasion) and attack.knowledge.defense == "adaptive" and not attack.avoids
            if attack is not None and careless and any(isinstance(one, Detector) for one in behind):
                raise ScenarioError(
                    f"In the scenario, 'attacks.{name}.knowledge.defense': '{attack.kind}' climbs class scores that "
                    "know no detector; use defense: exact, or an attack of fedsem's own."
                )
            if attack is not None and not isinstance(attack, (Evasion, Backdoor, Leakage)):
                raise ScenarioError(
                    f"In the scenario, 'evaluation.grids.{i}.attacks': '{name}' acts in training; name it in "
                    "'use.attacks'."
                )


def _check_federation(scenario: Scenario) -> None:
    federation, plain = scenario.federation, Federation()
    if federation.secure_aggregation:
        rules: list[Any] = [*federation.rules.values(), *federation.pre_aggregators]
        # Averages need nothing but the sum; whatever else combines or limits updates must see each of them.
        seeing = [f"'{rule.kind}'" for rule in rules if rule.kind not in ("fedavg", "fedprox")]
        seeing += [f"'{name}'" for name in scenario.use.defenses if isinstance(scenario.defenses[name], UpdateDefense)]
        where = "In the scenario, 'federation.secure_aggregation'"
        if seeing:
            raise ScenarioError(
                f"{where}: it would hide each update from the server, and {seeing[0]} must see them; remove one of the "
                "two."
            )
        raise ScenarioError(
            f"{where}: Flower's message API, on which fedsem runs, does not have it (SecAgg+ is a workflow of Flower's "
            "older API); remove it, or use the defense 'differential_privacy' against who sees the models."
        )
    if federation.kind == "none":
        averaging = ("aggregator", "group_aggregator", "pre_aggregators", "server_optimizer")
        for key in (*averaging, "fraction", "min_receivers"):
            if getattr(federation, key) != getattr(plain, key):
                raise ScenarioError(
                    f"In the scenario, 'federation.{key}': the centralised reference (kind: none) averages nothing; "
                    "remove it, or use kind: flower."
                )
