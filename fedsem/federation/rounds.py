"""One round of federated learning, without Flower: who is asked, with what, and what becomes of the replies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from fedsem.errors import FederationError
from fedsem.federation.state import FederationState, RoundRecord, owner
from fedsem.hooks.aggregate import Aggregate, Updates, combined, too_few
from fedsem.hooks.step import StepAttack
from fedsem.plan import Plan, Receiver, asked_per_round
from fedsem.scenario import Federation
from fedsem.stepping import step_attacks
from fedsem.streams import Stream
from fedsem.training import Parameters, ReceiverTask, Reply


def sample(plan: Plan, seed: int, round_number: int) -> list[int]:
    """Receivers that are asked in a round, sorted: drawn without replacement, by seed and round alone."""
    generator = Stream(seed).child("sample", round_number).numpy()
    chosen = generator.choice(len(plan.receivers), size=asked_per_round(plan), replace=False)
    return sorted(int(receiver) for receiver in chosen)


def tasks(
    plan: Plan, state: FederationState, partition: Sequence[np.ndarray], seed: int, receivers: Sequence[int]
) -> list[ReceiverTask]:
    """What each of these receivers is asked to do in the round after `state.round`."""
    return [
        ReceiverTask(
            receiver=number,
            seed=seed,
            round=state.round + 1,
            branches={branch: plan.task(branch).weight for branch in plan.trained_branches(plan.receivers[number])},
            indices=partition[number],
            shared=state.shared,
            decoders={
                branch.key: state.decoders[owner(plan, plan.receivers[number], branch)]
                for branch in plan.trained_branches(plan.receivers[number])
            },
            proximal_mu=plan.scenario.federation.aggregator.proximal_mu,
            moved=_moved(plan, state, seed, number),
        )
        for number in receivers
    ]


def _moved(plan: Plan, state: FederationState, seed: int, number: int) -> Parameters:
    """What the last round moved of all that a receiver holds and the server averages, if an attack of it asks."""
    if not step_attacks(plan, number, seed, state.round + 1):
        return {}
    receiver = plan.receivers[number]
    parts = {"shared": "shared"}
    if receiver.decoder == "group":
        parts |= {owner(plan, receiver, branch): branch.key for branch in plan.trained_branches(receiver)}
    split = {name: name.rpartition("/") for name in state.moved}
    return {f"{parts[who]}/{name}": state.moved[path] for path, (who, _, name) in split.items() if who in parts}


def combine(
    plan: Plan,
    seed: int,
    state: FederationState,
    asked: Sequence[int],
    replies: Sequence[Reply],
    root: Mapping[str, Parameters] | None = None,
) -> FederationState:
    """The state after a round.

    The encoder is averaged over all valid replies, a receiver counting n_i * sum of its task weights; decoders of
    policy `group` over the receivers that hold the task, counting n_i; local decoders are replaced. (A receiver divides
    its loss by the sum of its task weights. With plain SGD that makes the encoder's step the pooled one, while a group
    decoder moves less on receivers that hold other tasks too; Adam does not see the factor.) A reply with NaN
    or infinite values, or with parameters that are not the receiver's, is rejected as a whole.
    `federation.server_optimizer` steps along what was averaged. With a defense of the hook `update` every reply is
    shortened to its limit, receivers count alike, and the defense has its say about each group's mean.

    Args:
        plan: the plan.
        seed: the run's seed.
        state: before the round.
        asked: receivers that were asked.
        replies: what they sent.
        root: what the server learnt itself, by aggregation group (`root_update`), for rules that ask for it.

    Raises:
        FederationError: fewer valid replies than `federation.min_receivers`.
    """
    record = RoundRecord(round=state.round + 1, asked=list(asked))
    answered = {reply.receiver: reply for reply in replies}
    valid: list[Reply] = []
    for number in sorted(asked):
        reply = answered.get(number)
        if reply is None:
            record.failed[number] = "no reply"
        elif reply.error is not None:
            record.failed[number] = reply.error
        elif (why := fault(plan, state, reply)) is not None:
            record.rejected[number] = why
        else:
            valid.append(reply)
    required = plan.scenario.federation.min_receivers or math.ceil(len(asked) / 2)
    if len(valid) < required:
        reasons = "; ".join(sorted({*record.failed.values(), *record.rejected.values()})) or "none was asked"
        raise FederationError(
            f"Round {record.round}: only {len(valid)} of {len(asked)} receivers sent a valid update and "
            f"federation.min_receivers needs {required} ({reasons}); run.log has the details."
        )
    if plan.update_defense is not None:
        valid, record.clipped = limited(plan, state, valid)
    server = _Server(plan, seed, state, record, root or {})
    shared = server.step(
        "shared",
        state.shared,
        (reply.delta for reply in valid),
        [shared_weight(plan, reply) for reply in valid],
        [reply.receiver for reply in valid],
    )
    decoders = dict(state.decoders)
    groups: dict[str, list[tuple[Reply, Parameters]]] = {}
    if plan.update_defense is not None:
        # A decoder that stands still where none of its holders was drawn would say so.
        groups = {who: [] for who in holders(plan) if who != "shared"}
    for reply in valid:
        receiver = plan.receivers[reply.receiver]
        for branch in plan.trained_branches(receiver):
            who, parameters = owner(plan, receiver, branch), reply.decoders[branch.key]
            if receiver.decoder == "group":
                groups.setdefault(who, []).append((reply, parameters))
            else:
                decoders[who] = parameters
    for who, members in groups.items():
        before = state.decoders[who]
        decoders[who] = server.step(
            who,
            before,
            ({name: value - before[name] for name, value in parameters.items()} for _, parameters in members),
            [group_weight(plan, reply) for reply, _ in members],
            [reply.receiver for reply, _ in members],
        )
    if not all(bool(v.isfinite().all()) for parameters in (shared, *decoders.values()) for v in parameters.values()):
        remedy = "lower train.optimizer.lr or federation.server_optimizer.lr"
        if plan.scenario.use.attacks:
            remedy = f"the attack '{plan.scenario.use.attacks[-1]}' may have done it: weaken it, or {remedy}"
        raise FederationError(
            f"The federation diverged in round {record.round}: averaged parameters are NaN or infinite; {remedy}."
        )
    _count(plan, state, record, valid)
    moved: Parameters = {}
    if any(isinstance(attack, StepAttack) for attack in plan.training_attacks):
        pairs = [("shared", shared, state.shared), *((who, decoders[who], state.decoders[who]) for who in groups)]
        moved = {f"{who}/{name}": value - before[name] for who, after, before in pairs for name, value in after.items()}
    history = [*state.history, record]
    return FederationState(state.round + 1, shared, decoders, server.velocity, history, moved, server.memory)


def holders(plan: Plan) -> dict[str, int]:
    """Aggregation groups, and how many receivers of the federation each of them has."""
    counts = {"shared": len(plan.receivers)}
    for receiver in plan.receivers:
        if receiver.decoder == "group":
            for branch in plan.trained_branches(receiver):
                who = owner(plan, receiver, branch)
                counts[who] = counts.get(who, 0) + 1
    return counts


def limited(plan: Plan, state: FederationState, replies: Sequence[Reply]) -> tuple[list[Reply], list[int]]:
    """Valid replies with all that leaves a receiver, as one vector, shortened as the defense in use says; and the
    receivers that this has changed. Local decoders never leave."""
    defense = plan.update_defense
    assert defense is not None
    made, clipped = [], []
    for reply in replies:
        receiver = plan.receivers[reply.receiver]
        grouped = {}
        if receiver.decoder == "group":
            for branch in plan.trained_branches(receiver):
                before = state.decoders[owner(plan, receiver, branch)]
                after = reply.decoders[branch.key]
                grouped[branch.key] = before, {name: after[name] - before[name] for name in averaged(before)}
        sent = [{name: reply.delta[name] for name in averaged(state.shared)}, *(delta for _, delta in grouped.values())]
        norm = math.sqrt(sum(float(v.double().square().sum()) for parameters in sent for v in parameters.values()))
        if (factor := defense.factor(norm)) == 1:
            made.append(reply)
            continue
        clipped.append(reply.receiver)
        shared = {name: (value.double() * factor).float() for name, value in sent[0].items()}
        decoders = {
            key: reply.decoders[key]
            | {name: (before[name].double() + factor * value.double()).float() for name, value in delta.items()}
            for key, (before, delta) in grouped.items()
        }
        made.append(replace(reply, delta=reply.delta | shared, decoders=reply.decoders | decoders))
    return made, clipped


def shared_weight(plan: Plan, reply: Reply) -> float:
    """What a receiver counts in the average of the encoder: n_i * sum of its task weights; 1 where all count alike."""
    if plan.update_defense is not None:
        return 1.0
    return reply.examples * sum(plan.task(branch).weight for branch in plan.receivers[reply.receiver].branches)


def group_weight(plan: Plan, reply: Reply) -> float:
    """What a receiver counts in the average of a shared decoder: n_i; 1 where all count alike."""
    return 1.0 if plan.update_defense is not None else float(reply.examples)


class _Server:
    """What the server does in a round: combines each group's deltas and steps along them.

    Attributes:
        velocity: of its optimiser, brought up to date.
        memory: what the rules remember, brought up to date.
    """

    def __init__(
        self, plan: Plan, seed: int, state: FederationState, record: RoundRecord, root: Mapping[str, Parameters]
    ) -> None:
        self.federation, self.state, self.record, self.root = plan.scenario.federation, state, record, root
        self.defense = plan.update_defense
        self.expected = {who: len(record.asked) * count / len(plan.receivers) for who, count in holders(plan).items()}
        self.noise = Stream(seed).child("privacy", state.round + 1)
        self.stream = Stream(seed).child("aggregate", state.round + 1)
        self.velocity, self.memory = dict(state.optimizer), dict(state.memory)

    def step(
        self,
        group: str,
        before: Parameters,
        deltas: Iterable[Parameters],
        weights: list[float],
        receivers: list[int],
    ) -> Parameters:
        """The parameters of an aggregation group after the server's step."""
        if not before:  # such as the picture that a MAE paints: nothing to learn
            return {}
        names = averaged(before)
        stack = stacked(deltas, names, len(receivers), before)
        made = self._combined(group, stack, names, weights, receivers)
        if self.defense is not None:
            expected = self.expected[group]
            mean = made.delta * (len(receivers) / expected)
            made = replace(made, delta=self.defense.release(mean, expected, self.noise.child(group)))
        self.memory |= {f"{group}/{name}": torch.from_numpy(np.asarray(value)) for name, value in made.memory.items()}
        if made.kept is not None:
            verdicts = list(zip(receivers, made.kept, strict=True))
            self.record.kept[group] = [who for who, kept in verdicts if kept]
            self.record.dropped[group] = [who for who, kept in verdicts if not kept]
        after, velocity = stepped(self.federation, group, before, made.delta, self.velocity)
        self.velocity |= velocity
        return after

    def _combined(
        self, group: str, stack: np.ndarray, names: list[str], weights: list[float], receivers: list[int]
    ) -> Aggregate:
        """What the group's rule makes of its deltas; of none a step of zero."""
        if not receivers:
            return Aggregate(np.zeros(stack.shape[1]))
        return aggregated(
            self.federation,
            group,
            Updates(
                stack,
                np.asarray(weights, dtype=np.float64),
                tuple(receivers),
                remembered(self.state, group),
                self.stream.child(group),
                flat(self.root[group], names) if group in self.root else None,
            ),
        )


def stepped(
    federation: Federation, group: str, before: Parameters, delta: np.ndarray, velocity: Parameters
) -> tuple[Parameters, Parameters]:
    """The parameters of an aggregation group after the server's step along a combined delta, (d,), and what is new of
    the velocity of its optimiser."""
    names = averaged(before)
    after = {name: value for name, value in before.items() if name not in names}
    new: Parameters = {}
    for name, part in zip(names, torch.from_numpy(delta).split([before[name].numel() for name in names]), strict=True):
        moved = part.view_as(before[name])
        if (server := federation.server_optimizer) is not None:
            entry = f"{group}/{name}"
            new[entry] = moved + server.momentum * velocity[entry] if entry in velocity else moved.clone()
            moved = server.lr * new[entry]
        after[name] = (before[name].double() + moved).float()
    return after, new


def averaged(parameters: Parameters) -> list[str]:
    """Names of what the server averages, sorted: a checkpoint does not keep another order, and what a rule remembers or
    draws depends on it. Counters, such as a batch normalisation's, stay as they are: a mean counts nothing."""
    return sorted(name for name, value in parameters.items() if value.is_floating_point())


def flat(parameters: Parameters, names: Iterable[str]) -> np.ndarray:
    """Parameters as one row, in this order."""
    return np.concatenate([parameters[name].numpy().ravel() for name in names])


def stacked(deltas: Iterable[Parameters], names: Sequence[str], count: int, like: Parameters) -> np.ndarray:
    """So many sets of parameters of one shape, each as a row; they may be made one after another."""
    size = sum(like[name].numel() for name in names)
    return np.fromiter((flat(delta, names) for delta in deltas), np.dtype((np.float32, size)), count)


def remembered(state: FederationState, group: str) -> dict[str, np.ndarray]:
    """What the rule of an aggregation group remembers of the round before."""
    return {
        path.removeprefix(f"{group}/"): value.numpy()
        for path, value in state.memory.items()
        if path.rpartition("/")[0] == group
    }


def aggregated(federation: Federation, group: str, updates: Updates) -> Aggregate:
    """What the group's rule makes of its updates, after the pre-aggregators, which write over the deltas.

    Raises:
        FederationError: there are fewer than the rule, or what comes before it, needs.
    """
    rule = federation.rule(group)
    if (found := too_few(rule, federation.pre_aggregators, len(updates.deltas))) is not None:
        step, count = found
        raise FederationError(
            step.lacks(f"'{group}' has {count} valid ones in this round", "raise federation.fraction")
        )
    # As in training: results must not depend on how many cores a machine has.
    with _blas().limit(limits=1, user_api="blas"):
        return combined(rule, federation.pre_aggregators, updates)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def fault(plan: Plan, state: FederationState, reply: Reply) -> str | None:
    """Why a reply cannot be used; None where it can."""
    receiver = plan.receivers[reply.receiver]
    own = {branch.key: state.decoders[owner(plan, receiver, branch)] for branch in plan.trained_branches(receiver)}
    if set(reply.decoders) != set(own) or set(reply.losses) != set(own):
        return "not the decoders and losses of its tasks"
    sent, known = [reply.delta, *reply.decoders.values()], [state.shared, *(own[key] for key in reply.decoders)]
    for parameters, expected in zip(sent, known, strict=True):
        if {k: v.shape for k, v in parameters.items()} != {k: v.shape for k, v in expected.items()}:
            return "parameters of other names or shapes"
    tensors = [value for parameters in sent for value in parameters.values()]
    if not all(map(math.isfinite, reply.losses.values())) or not all(bool(v.isfinite().all()) for v in tensors):
        return "NaN or infinite values"
    return None


def _count(plan: Plan, state: FederationState, record: RoundRecord, valid: Sequence[Reply]) -> None:
    shared = size(state.shared)

    def travelling(receiver: Receiver) -> int:
        # Local decoders never leave their receiver; the simulation's store only stands in for its disk.
        grouped = [state.decoders[owner(plan, receiver, branch)] for branch in plan.trained_branches(receiver)]
        return shared + (sum(size(decoder) for decoder in grouped) if receiver.decoder == "group" else 0)

    totals: dict[str, float] = {}
    examples: dict[str, int] = {}
    for reply in valid:
        for branch in plan.trained_branches(plan.receivers[reply.receiver]):
            totals[branch.key] = totals.get(branch.key, 0.0) + reply.losses[branch.key] * reply.examples
            examples[branch.key] = examples.get(branch.key, 0) + reply.examples
    record.losses.update({key: total / examples[key] for key, total in totals.items()})
    record.examples.update(examples)
    filtered = [reply.removed for reply in valid if reply.removed is not None]
    record.removed = [sum(counts) for counts in zip(*filtered, strict=True)]
    record.bytes_up = sum(travelling(plan.receivers[reply.receiver]) for reply in valid)
    record.bytes_down = sum(travelling(plan.receivers[number]) for number in record.asked)


def size(parameters: Parameters) -> int:
    """Bytes of a set of parameters."""
    return sum(value.numel() * value.element_size() for value in parameters.values())
