"""Malicious receivers of a federation: who they are, and what they send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from fedsem.federation.rounds import (
    aggregated,
    averaged,
    fault,
    flat,
    group_weight,
    limited,
    remembered,
    shared_weight,
    stacked,
    stepped,
    tasks,
)
from fedsem.federation.state import FederationState, owner
from fedsem.hooks.aggregate import Updates
from fedsem.hooks.update import Rows, Seen, UpdateAttack
from fedsem.plan import Branch, Plan
from fedsem.streams import Stream
from fedsem.training import Parameters, ReceiverTask, Reply
from fedsem.trial import Trial


def forged(
    plan: Plan,
    seed: int,
    state: FederationState,
    replies: Sequence[Reply],
    root: Mapping[str, Parameters] | None = None,
) -> tuple[list[Reply], dict[str, list[int]]]:
    """The replies of a round with what malicious receivers send in place of what they have learnt.

    They collude, and see what all honest receivers send: of the encoder, and of each decoder that is averaged. Where no
    honest receiver has answered, they send their own.

    Returns:
        the replies; and for each aggregation group (`shared`, or the decoder's owner) that has malicious members, how
        many those are, and all members.
    """
    acting = [attack for attack in plan.training_attacks if attack.acts(state.round + 1)]
    if not acting:
        return list(replies), {}
    # What an honest receiver sends in vain is nothing to build on.
    answered = [reply for reply in replies if reply.error is None and fault(plan, state, reply) is None]
    if plan.update_defense is not None:
        answered, _ = limited(plan, state, answered)
    attack = next((one for one in acting if isinstance(one, UpdateAttack)), None)
    bad = {number for one in acting for number in one.malicious(len(plan.receivers), seed)}
    sent = list(replies) if attack is None else _forge(plan, attack, seed, state, replies, answered, root or {})
    present: dict[str, list[int]] = {}
    valid = [reply for reply in sent if reply.error is None and fault(plan, state, reply) is None]
    for group, members in _groups(plan, valid).items():
        if malicious := sum(reply.receiver in bad for reply in members):
            present[group] = [malicious, len(members)]
    return sent, present


def _groups(plan: Plan, replies: Sequence[Reply]) -> dict[str, list[Reply]]:
    """Who is averaged with whom: all for the encoder, the holders of a task for its decoder."""
    groups: dict[str, list[Reply]] = {"shared": list(replies)}
    for reply in replies:
        receiver = plan.receivers[reply.receiver]
        if receiver.decoder == "group":
            for branch in plan.trained_branches(receiver):
                groups.setdefault(owner(plan, receiver, branch), []).append(reply)
    return groups


def _forge(
    plan: Plan,
    attack: UpdateAttack,
    seed: int,
    state: FederationState,
    replies: Sequence[Reply],
    answered: Sequence[Reply],
    root: Mapping[str, Parameters],
) -> list[Reply]:
    bad = set(attack.malicious(len(plan.receivers), seed))
    changed = {reply.receiver: reply for reply in answered if reply.receiver in bad}
    stream = Stream(seed).child("forge", state.round + 1)
    drawn = Stream(seed).child("aggregate", state.round + 1)
    asked = cache(lambda: _asked(plan, seed, state, sorted(changed)))

    def forge(
        group: str, sent: dict[int, Parameters], names: list[str], weights: dict[int, float]
    ) -> dict[int, Parameters]:
        honest, own = (sorted(who for who in sent if (who in bad) == wanted) for wanted in (False, True))
        if not honest or not own or not names:
            return {}
        order = sorted(sent)
        counted = np.array([weights[who] for who in order])

        def aggregate(forgeries: Rows) -> Rows:
            if (defense := plan.update_defense) is not None:
                forgeries = np.stack([row * defense.factor(float(np.linalg.norm(row))) for row in forgeries])
            rows = np.zeros((len(order), forgeries.shape[1]), np.float32)
            rows[[order.index(who) for who in honest]] = seen.honest
            rows[[order.index(who) for who in own]] = forgeries
            own_root = flat(root[group], names) if group in root else None
            updates = Updates(rows, counted, tuple(order), remembered(state, group), drawn.child(group), own_root)
            return aggregated(plan.scenario.federation, group, updates).delta

        trials = cache(lambda: _trials(plan, group, asked()))

        def loss(step: Rows) -> float:
            before = state.shared if group == "shared" else state.decoders[group]
            after, _ = stepped(plan.scenario.federation, group, before, np.asarray(step, np.float64), state.optimizer)
            total = sum(
                trial.images
                * trial.loss(
                    after if group == "shared" else state.shared,
                    work.decoders if group == "shared" else dict.fromkeys(work.decoders, after),
                )
                for trial, work in trials()
            )
            return total / max(1, sum(trial.images for trial, _ in trials()))

        seen = Seen(
            stacked((sent[who] for who in honest), names, len(honest), sent[honest[0]]),
            tuple(honest),
            stacked((sent[who] for who in own), names, len(own), sent[own[0]]),
            aggregate,
            loss,
        )
        made = attack.forge(seen, stream.child(group))
        return {who: _parameters(row, sent[who], names) for who, row in zip(own, made, strict=True)}

    shared = forge(
        "shared",
        {reply.receiver: reply.delta for reply in answered},
        averaged(state.shared),
        {reply.receiver: shared_weight(plan, reply) for reply in answered},
    )
    for number, delta in shared.items():
        changed[number] = replace(changed[number], delta=delta)
    for who, holders in _groups(plan, answered).items():
        if who == "shared":
            continue
        members = {reply.receiver: _of_group(plan, reply, who) for reply in holders}
        before = state.decoders[who]
        deltas = {
            number: {name: value - before[name] for name, value in parameters.items()}
            for number, (_, parameters) in members.items()
        }
        weights = {reply.receiver: group_weight(plan, reply) for reply in answered}
        for number, delta in forge(who, deltas, averaged(before), weights).items():
            key = members[number][0]
            after = {name: before[name] + value for name, value in delta.items()}
            changed[number] = replace(changed[number], decoders={**changed[number].decoders, key: after})
    return [changed.get(reply.receiver, reply) for reply in replies]


JUDGED = 500
"""Of how many images of the malicious receivers the loss is taken, about: at most as many of each of them."""


def _asked(plan: Plan, seed: int, state: FederationState, receivers: Sequence[int]) -> list[ReceiverTask]:
    """What these receivers were asked to do in the round, with the images by which they judge."""
    share = max(1, JUDGED // len(receivers))
    return [
        replace(
            task, indices=Stream(seed).child("judge", task.receiver).numpy().permutation(np.sort(task.indices))[:share]
        )
        for task in tasks(plan, state, plan.partition(seed), seed, receivers)
    ]


def _trials(plan: Plan, group: str, asked: Sequence[ReceiverTask]) -> list[tuple[Trial, ReceiverTask]]:
    """Trials of what an aggregation group averages, each with what is asked: of the encoder for all tasks that teach
    it, of a decoder for its own. Receivers with the same decoders and channels are tried together."""
    alike: dict[tuple[tuple[str, Branch], ...], list[ReceiverTask]] = {}
    for task in asked:
        receiver = plan.receivers[task.receiver]
        owners = {branch: owner(plan, receiver, branch) for branch in task.branches}
        kept = [one for one in task.branches if (task.branches[one] if group == "shared" else owners[one] == group)]
        if kept:
            alike.setdefault(tuple((owners[one], one) for one in kept), []).append(task)
    found = []
    for key, same in alike.items():
        work = replace(
            same[0],
            branches={one: same[0].branches[one] for _, one in key},
            decoders={one.key: same[0].decoders[one.key] for _, one in key},
            indices=np.concatenate([task.indices for task in same]),
        )
        found.append((Trial(plan, work), work))
    return found


def _of_group(plan: Plan, reply: Reply, group: str) -> tuple[str, Parameters]:
    """The branch key and the parameters of the decoder that a receiver shares with this group."""
    receiver = plan.receivers[reply.receiver]
    key = next(one.key for one in plan.trained_branches(receiver) if owner(plan, receiver, one) == group)
    return key, reply.decoders[key]


def _parameters(row: Rows, like: Parameters, names: Sequence[str]) -> Parameters:
    parts = torch.from_numpy(np.ascontiguousarray(row)).split([like[name].numel() for name in names])
    # What is not averaged they send as they have it.
    made = {name: part.view_as(like[name]).to(like[name].dtype) for name, part in zip(names, parts, strict=True)}
    return like | made
