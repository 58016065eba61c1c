"""(j) What every defense that comes with fedsem costs: CPU time, and accuracy where nobody attacks.

It writes `results/reference/defense_costs.csv`, of which `python -m fedsem.catalogue` makes what stands beside each
defense: it runs only where it is named.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from fedsem import run
from fedsem.catalogue import COSTS, DEFENSES, hook, ours
from fedsem.evaluation.defended import defended
from fedsem.evaluation.evaluate import evaluate
from fedsem.evaluation.point import Point, load_points
from fedsem.evaluation.tabulate import rows as evaluation_rows
from fedsem.federation.engine import single_thread
from fedsem.federation.root import root_update
from fedsem.federation.rounds import combine, sample, tasks
from fedsem.hooks.repair import Repair
from fedsem.hooks.transform import Transform
from fedsem.hooks.vote import Vote
from fedsem.scenario import check_scenario
from fedsem.stages import Unit, plans_of, trained_link, units_of
from fedsem.store import Store, hardware, label_of
from fedsem.tasks.reconstruction import Reconstruction
from fedsem.training import train

OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "adversarial_training": ({"norm": "linf", "psr_db": -15}, {"norm": "linf", "psr_db": -15, "steps": 1}),
    "differential_privacy": ({"clip": 1.0, "noise": 0.1},),
    "ibp": ({"psr_db": -15},),
    "median_smoothing": ({"n": 50},),
    "noise_augmentation": ({"psr_db": -10},),
    "trades": ({"norm": "linf", "psr_db": -15},),
}
"""What is not left at its default, for each way in which a defense is measured."""
SEED, SNR_DB, CERTIFIED_PSR_DB = 0, 10, -20
RECEIVERS, EPOCHS, RESERVE = 10, 1, 100


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of the federated trainings; the first is not timed.
        noisy_epochs: of the training with noise.
        test_images: that are sent.
        draws: receptions of each image, over which accuracy is the mean.
        repeats: of what is timed after training; the least counts.
    """

    rounds: int = 40
    noisy_epochs: int = 8
    test_images: int = 359
    draws: int = 16
    repeats: int = 3


@dataclass(frozen=True)
class Case:
    """A way of using a defense.

    Attributes:
        group, kind: what it is called.
        options: what a scenario says of it.
    """

    group: str
    kind: str
    options: Mapping[str, Any]

    @property
    def written(self) -> dict[str, Any]:
        """As a scenario has it."""
        return {"kind": self.kind, **self.options}

    @property
    def cls(self) -> type[Any]:
        """The plug-in."""
        return ours(self.group)[self.kind]

    @property
    def columns(self) -> dict[str, Any]:
        """What names it in the table."""
        options = ", ".join(f"{name}: {value}" for name, value in self.options.items())
        return {
            "group": self.group,
            "kind": self.kind,
            "options": options,
            "hook": hook(self.cls).__module__.rpartition(".")[2],
        }


def cases() -> list[Case]:
    """All of them."""
    every = [(group, kind) for group in DEFENSES for kind in ours(group)]
    return [Case(group, kind, options) for group, kind in every for options in OPTIONS.get(kind, ({},))]


def measure() -> list[dict[str, Any]]:
    """Rows for the table of benchmarks: CPU seconds, and their ratio to the same without the defense."""
    table = costs(cases(), Size())
    table.to_csv(COSTS, index=False, float_format="%.5g")
    print(f"Written to {COSTS}\n")
    names = [" ".join(filter(None, both)) for both in zip(table["kind"], table["options"], strict=True)]
    return [
        {"benchmark": "j: costs of defenses", "variant": name, "cpu_s": seconds, "ratio": ratio}
        for name, seconds, ratio in zip(names, table["cpu_s"], table["time_ratio"], strict=True)
    ]


def costs(wanted: Sequence[Case], size: Size) -> pd.DataFrame:
    """A row for each case.

    `cpu_s` is the CPU time of what is `timed`, `time_ratio` that time over the same without the defense; of rules,
    `combining_ratio` is the time that the server combines updates for over FedAvg's. `change` is the task's metric
    minus the undefended link's, accuracy in points, paired over images and channel draws, with a 95 % interval. That
    holds the chance of images and channels, and not that of training: FedAvg's row, the same training with another
    seed, shows how much it is.
    """
    defenses = [case for case in wanted if case.group == "defense"]
    training = [case for case in defenses if case.cls.in_training]
    noisy = [case for case in defenses if issubclass(case.cls, Vote) and issubclass(case.cls, Transform)]
    after = [case for case in defenses if case not in training and case not in noisy]
    rules = [case for case in wanted if case.group == "aggregator" and case.kind != "fedavg"]
    before = [case for case in wanted if case.group == "pre_aggregator"]
    named = {f"d{number}": case.written for number, case in enumerate(training)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plain = _Scene(
            _federated(size),
            size,
            out,
            _told(size, f"{RECEIVERS} receivers with IID data, {size.rounds} rounds of {EPOCHS} epoch"),
        )
        votes = f"one learner, {size.noisy_epochs} epochs with noise"
        found = [
            *plain.tested(after),
            *_Scene(_with_noise(size), size, out, _told(size, votes)).tested(noisy),
            *plain.trained(rules, "federation.aggregator", ["fedavg", *(case.written for case in rules)]),
            *plain.trained(before, "federation.pre_aggregators", [[], *([case.written] for case in before)]),
            *plain.trained(training, "use.defenses", [[], *([name] for name in named)], named),
            *plain.trained_again([case for case in wanted if case.kind == "fedavg"]),
        ]
    machine = hardware()
    where = f"{machine['cpu']}, {machine['cores']} cores, Python {platform.python_version()}"
    table = pd.DataFrame(found).assign(machine=where)
    return table.sort_values(["group", "hook", "kind", "options"], kind="stable")


def _federated(size: Size) -> dict[str, Any]:
    """Ten receivers learn to classify digits."""
    return {
        "schema": 1,
        "name": "costs",
        "seeds": [SEED],
        "compute": {"engine": "local", "device": "cpu"},
        "data": {"kind": "digits", "test_images": size.test_images, "reserve": RESERVE},
        "link": {"encoder": {"kind": "dense", "hidden": [128, 64], "channel_uses": 20}},
        "channels": {"down": {"kind": "awgn"}},
        "tasks": {"label": {"kind": "classification"}},
        "receivers": {"all": {"count": RECEIVERS, "tasks": ["label"], "channel": "down", "decoder": "group"}},
        "train": {
            "epochs": EPOCHS,
            "batch": 16,
            "optimizer": {"kind": "adam", "lr": 3e-3, "schedule": "cosine"},
            "snr_db": SNR_DB,
        },
        "federation": {"rounds": size.rounds},
        "evaluation": {
            "draws": {"score": size.draws},
            "samples": 0,
            "baselines": False,
            "grids": [{"snr_db": [SNR_DB]}],
        },
    }


def _with_noise(size: Size) -> dict[str, Any]:
    """One learner of classes and pictures, from noisy images: what votes on noisy copies of an image need."""
    return _federated(size) | {
        "name": "costs_noisy",
        "tasks": {"label": {"kind": "classification"}, "picture": {"kind": "reconstruction"}},
        "receivers": {"all": {"count": 1, "tasks": ["label", "picture"], "channel": "down"}},
        "train": {**_federated(size)["train"], "epochs": 1},
        "federation": {"kind": "none", "rounds": size.noisy_epochs},
        "defenses": {"noisy": {"kind": "noise_augmentation", "psr_db": {"uniform": [-20, 0]}}},
        "use": {"defenses": ["noisy"]},
    }


def _told(size: Size, training: str) -> str:
    return (
        f"digits, {training}, dense encoder, nc 20, AWGN {SNR_DB} dB, {size.test_images} test images with {size.draws} "
        "receptions each, 1 seed"
    )


@dataclass(frozen=True)
class _Trained:
    """A training: CPU time of a round, and what the link decides."""

    round_s: float
    points: list[Point]


class _Scene:
    """A scenario without a defense, and what its runs with one are compared with.

    Args:
        tree: the scenario.
        size: how much is measured.
        out: folder of the runs.
        told: what it is, in the table.
    """

    def __init__(self, tree: dict[str, Any], size: Size, out: Path, told: str) -> None:
        self.tree, self.size, self.out, self.told = tree, size, out, told

    def run(self, tree: Mapping[str, Any], seed: int = SEED) -> tuple[Store, list[_Trained]]:
        """Run a scenario; its folder, and its trainings in the order of the sweep."""
        marks: dict[str, list[float]] = {}

        def progress(stage: str, label: str, done: int, total: int) -> None:
            if stage == "federate":
                marks.setdefault(label, []).append(time.process_time())

        store = Store.open(run(tree, out=self.out, seed=seed, progress=progress).folder)
        found = []
        for cell in range(len(marks)):
            ends = marks[label_of(cell, seed)]
            round_s = min(end - start for start, end in pairwise(ends))
            found.append(_Trained(round_s, load_points(store.evaluation(cell, seed))))
        return store, found

    def trained(
        self, cases: Sequence[Case], swept: str, values: Sequence[Any], defenses: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Trainings with each of these, beside one without."""
        if not cases:
            return
        tree = self.tree | {"defenses": dict(defenses or {}), "sweep": {swept: list(values)}}
        store, (plain, *others) = self.run(tree)
        combining = [None] * len(cases) if defenses else _combining(_units(tree, store), self.size.repeats)
        for case, one, ratio in zip(cases, others, combining, strict=True):
            yield self.row(case, "a round of training", one.round_s, plain.round_s) | {
                "combining_ratio": ratio,
                **_change(_clean(one.points), _clean(plain.points)),
            }

    def trained_again(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """The training without a defense, with this seed and with the next one."""
        for case in cases:
            (_, (plain,)), (_, (other,)) = self.run(self.tree), self.run(self.tree, SEED + 1)
            yield self.row(case, "a round of training", other.round_s, plain.round_s) | {
                "options": f"seed {SEED + 1} instead of {SEED}",
                "combining_ratio": 1.0,
                **_change(_clean(other.points), _clean(plain.points)),
            }

    def tested(self, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """One training, and each of these on what it has made."""
        if not cases:
            return
        named = {f"t{number}": case for number, case in enumerate(cases)}
        everything = self.tree.get("defenses", {}) | {name: case.written for name, case in named.items()}
        tree = self.tree | {"defenses": everything}
        grids = [_grid(["none", name], case) for name, case in named.items()]
        store, (plain,) = self.run(tree | {"evaluation": tree["evaluation"] | {"grids": grids}})
        undefended: dict[str, float] = {}
        for name, case in named.items():
            task, metric = _pays(case)
            if task not in undefended:
                undefended[task] = self.evaluation_s(tree, store, _grid(["none"], case))
            if issubclass(case.cls, Repair):
                link = trained_link(_units(tree, store)[0])
                with single_thread():
                    spent = _least(1, partial(defended, link, link.plan.scenario.defenses[name]))
                row = self.row(case, "the whole training", spent, plain.round_s * self.size.rounds)
            else:
                spent = self.evaluation_s(tree, store, _grid([name], case))
                row = self.row(case, "sending and decoding an image", spent, undefended[task])
            behind = [point for point in plain.points if point.columns.get("defense", "").split("+")[-1] == name]
            (clean,) = [
                point for point in behind if point.columns["stage"] == "evaluate" and point.columns["task"] == task
            ]
            assert clean.undefended is not None
            yield row | _change(clean, plain.points[clean.undefended], metric)

    def evaluation_s(self, tree: Mapping[str, Any], store: Store, grid: Mapping[str, Any]) -> float:
        """CPU time of sending every test image once and deciding, with all that a defense does for it."""
        evaluation = {**tree["evaluation"], "draws": {"score": 1}, "grids": [grid]}
        (unit,) = _units({**tree, "evaluation": evaluation}, store)
        link = trained_link(unit)
        with single_thread():
            return _least(3 * self.size.repeats, partial(evaluate, link, lambda done, total: None))

    def row(self, case: Case, timed: str, cpu_s: float, plain_s: float) -> dict[str, Any]:
        """What stands in the table of every case."""
        return {
            **case.columns,
            "timed": timed,
            "cpu_s": cpu_s,
            "undefended_cpu_s": plain_s,
            "time_ratio": cpu_s / plain_s,
            "size": self.told,
            "load": os.getloadavg()[0],
        }


def _pays(case: Case) -> tuple[str, str]:
    """The task that pays for a defense, and its metric."""
    serves: tuple[type[Any], ...] = getattr(case.cls, "serves", ())
    return ("picture", "psnr_db") if Reconstruction in serves else ("label", "accuracy")


def _grid(defenses: list[str], case: Case) -> dict[str, Any]:
    return {"snr_db": [SNR_DB], "psr_db": [CERTIFIED_PSR_DB], "defenses": defenses, "tasks": [_pays(case)[0]]}


def _units(tree: Mapping[str, Any], store: Store) -> list[Unit]:
    """The trainings of a run in the order of the sweep, to be evaluated as this scenario says."""
    scenario = check_scenario(tree)
    return units_of(scenario, plans_of(scenario), store)


def _combining(units: Sequence[Unit], repeats: int) -> list[float | None]:
    """CPU time that the server combines updates for, of every training but the first over that of the first: the same
    updates for all, which receivers learn after its last round."""
    first = units[0]
    state, partition = first.job.state(), first.plan.partition(SEED)
    asked = sample(first.plan, SEED, state.round + 1)
    with single_thread():
        replies = train(first.plan, tasks(first.plan, state, partition, SEED, asked))
    spent = []
    for unit in units:
        with single_thread():
            root = root_update(unit.plan, SEED, state)
        before = replace(state, memory=unit.job.state().memory)
        spent.append(_least(3 * repeats, partial(combine, unit.plan, SEED, before, asked, replies, root)))
    return [seconds / spent[0] for seconds in spent[1:]]


def _least(repeats: int, work: Callable[[], Any]) -> float:
    """CPU time, the least of several; what takes more than a second is done once."""
    spent: list[float] = []
    while len(spent) < repeats and (not spent or spent[-1] < 1):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def _clean(points: Sequence[Point]) -> Point:
    """The one point of a link that nobody attacks and nothing defends at test time."""
    (point,) = [point for point in points if point.columns["stage"] == "evaluate"]
    return point


def _change(defended: Point, plain: Point, metric: str = "accuracy") -> dict[str, Any]:
    """The undefended link's metric and by how much the defended one's differs, paired; and the share of clean
    receptions that a detector flags, in percent."""
    scale = 100 if metric == "accuracy" else 1
    (before,) = [row for row in _whole([plain]) if row["metric"] == metric]
    rows = {row["metric"]: row for row in _whole([plain, replace(defended, undefended=0)])}
    changed = rows[f"{metric}_vs_undefended"]
    return {
        "metric": metric,
        "undefended": scale * before["value"],
        "change": scale * changed["value"],
        "ci_low": scale * changed["ci_low"],
        "ci_high": scale * changed["ci_high"],
        "n": changed["n"],
        "flagged": 100 * rows["flagged"]["value"] if "flagged" in rows else None,
    }


def _whole(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Rows of the table over all seeds."""
    return [
        row for row in evaluation_rows([[replace(one, clean=None) for one in points]], [SEED]) if row["seed"] is None
    ]
