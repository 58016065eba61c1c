"""Shared by all tests: one link that is trained through the real path, small untrained links, and toy problems."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsem.channels.symbols import Symbols
from fedsem.checks import resolve
from fedsem.evaluation.average_precision import Ranking
from fedsem.evaluation.point import Tally
from fedsem.evaluation.trained import TrainedLink
from fedsem.federation.engine import federated
from fedsem.federation.job import Job
from fedsem.federation.state import FederationState, owner
from fedsem.hooks.evasion import Perturbation, SiteState
from fedsem.link import Transmitter
from fedsem.plan import Plan, scenario_text
from fedsem.scenario import check_scenario, dump_scenario
from fedsem.training import initial_parameters

SHARED_LINK: dict[str, Any] = {
    "schema": 1,
    "name": "shared-link",
    "compute": {"engine": "local", "device": "cpu"},
    "data": {"kind": "digits"},
    "link": {"encoder": {"kind": "cnn", "channel_uses": 20}},
    "channels": {"down": {"kind": "awgn"}, "radar": {"kind": "sensing", "geometry": "bistatic", "fading": "rayleigh"}},
    "tasks": {
        "label": {"kind": "classification"},
        "picture": {"kind": "reconstruction"},
        "target": {"kind": "sensing"},
    },
    "receivers": {
        "all": {
            "count": 1,
            "tasks": ["label", "picture", "target"],
            "channel": {"label": "down", "picture": "down", "target": "radar"},
        }
    },
    "train": {
        "batch": 32,
        "draws": 4,
        "optimizer": {"kind": "adam", "lr": 2e-3, "schedule": "one_cycle"},
        "snr_db": 10,
    },
    "federation": {"kind": "none", "rounds": 12},
    "evaluation": {"draws": {"attack": 4, "score": 8}, "batch": 128, "baselines": False, "samples": 0},
}
"""The scenario of `trained_link`, as a person would write it in Python."""


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of their own: what another version of fedsem left in the user's must not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSEM_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained_link(tmp_path_factory: pytest.TempPathFactory) -> TrainedLink:
    """Digits over AWGN at 10 dB and a bistatic radar, three tasks, trained centrally (about 35 CPU seconds, once).

    Change it only through `dataclasses.replace` or `changed`: all tests share it.
    """
    folder = tmp_path_factory.mktemp("shared-link")
    plan = resolve(check_scenario(SHARED_LINK))
    job = Job(scenario_text(plan.scenario), 0, folder)
    with federated([job], plan.scenario.compute, folder / "run.log", lambda number, done: None):
        pass
    return assemble(plan, 0, job.state())


def assemble(plan: Plan, seed: int, state: FederationState) -> TrainedLink:
    """The link of a federation's state, as `fedsem.runner` puts it together."""
    owners = {(one.id, branch): owner(plan, one, branch) for one in plan.receivers for branch in one.branches}
    return TrainedLink.build(plan, seed, state.shared, {k: (who, state.decoders[who]) for k, who in owners.items()})


def small_plan(**changes: Any) -> Plan:
    """The plan of `SHARED_LINK` on a few digits, with other top-level keys."""
    return resolve(check_scenario({**SHARED_LINK, "data": {"kind": "digits", "train_images": 60}, **changes}))


def fresh_link(
    channel: Mapping[str, Any],
    task: str = "classification",
    symbols: str = "real",
    images: int = 6,
    seed: int = 0,
    **changes: Any,
) -> TrainedLink:
    """An untrained link of one task over one channel, with a few test images; nothing of it is cached."""
    keys: dict[str, Any] = {
        "data": {"kind": "digits", "train_images": 60, "test_images": images},
        "link": {"encoder": {"kind": "cnn", "channel_uses": 8}, "symbols": symbols},
        "channels": {"air": dict(channel)},
        "tasks": {"job": {"kind": task}},
        "receivers": {"all": {"count": 1, "tasks": ["job"], "channel": "air"}},
    }
    plan = small_plan(**{**keys, **changes})
    shared, decoders = initial_parameters(plan, seed)
    owned = {(one.id, b): (owner(plan, one, b), decoders[b.key]) for one in plan.receivers for b in one.branches}
    return TrainedLink.build(plan, seed, shared, owned)


def changed(link: TrainedLink, **keys: Any) -> TrainedLink:
    """The same trained link under a scenario with other top-level keys, such as `evaluation` or `attacks`."""
    tree = {**dump_scenario(link.plan.scenario), **keys}
    return replace(link, plan=replace(link.plan, scenario=check_scenario(tree)))


def head(link: TrainedLink, images: int) -> TrainedLink:
    """The same link with the first test images only."""
    return replace(link, examples=link.examples.at(slice(0, images)))


def with_images(link: TrainedLink, images: Tensor) -> TrainedLink:
    """The same link with other test images of the same labels."""
    return replace(link, examples=replace(link.examples, images=images))


class DoubleTransmitter(Transmitter):
    """The transmitter without its cast to float32."""

    def encode(self, images: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(images)
        return encoded


def double_precision(link: TrainedLink) -> TrainedLink:
    """A copy of a link that computes in float64."""
    old = link.transmitter
    transmitter = DoubleTransmitter(copy.deepcopy(old.encoder).double(), old.symbols, old.power, old.precision).eval()
    transmitter.gain = old.gain
    listeners = tuple(replace(one, decoder=copy.deepcopy(one.decoder).double()) for one in link.listeners)
    return with_images(replace(link, transmitter=transmitter, listeners=listeners), link.images.double())


@dataclass
class ToyProblem:
    """A `fedsem.hooks.evasion.Problem` on any function, for attacks without a link.

    Attributes:
        network: perturbed signals by site -> class scores (B, classes).
        sites, psr: see `Problem`.
        labels: true classes.
        forced: gradients by step that are returned instead of the true ones.
    """

    network: Callable[[Mapping[str, Tensor], slice], Tensor]
    sites: Mapping[str, SiteState]
    psr: float | Tensor
    labels: Tensor
    forced: Callable[[int], Perturbation] | None = None
    steps: list[int] = field(default_factory=list)
    symbols: Symbols = "real"

    def objective(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        return F.cross_entropy(self.logits(delta, step, index), self.labels[index], reduction="none")

    def gradient(self, delta: Perturbation, step: int) -> Perturbation:
        self.steps.append(step)
        if self.forced is not None:
            return self.forced(step)
        leaves = {name: value.detach().requires_grad_(True) for name, value in delta.items()}
        found = torch.autograd.grad(self.objective(leaves, step).sum(), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def logits(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        return self.scores(delta, step, index).log_softmax(-1)[0]

    def scores(self, delta: Perturbation, step: int, index: slice = slice(None)) -> Tensor:
        signals = {name: self.sites[name].clean[index] + value for name, value in delta.items()}
        return self.network(signals, index).unsqueeze(0)

    @property
    def classifies(self) -> bool:
        return True

    def failures(self, delta: Perturbation, step: int, draws: int) -> Tensor:
        with torch.no_grad():
            return (self.logits(delta, step).argmax(-1) != self.labels).float()

    def select(self, rows: Tensor) -> ToyProblem:
        sites = {n: SiteState(s.clean[rows], s.energy[rows], s.bounded) for n, s in self.sites.items()}
        psr = self.psr[rows] if isinstance(self.psr, Tensor) else self.psr
        return replace(self, sites=sites, psr=psr, labels=self.labels[rows])

    def quiet(self) -> ToyProblem:
        return self

    @property
    def own(self) -> int:
        return len(self.labels)

    def imagine(self, images: Tensor) -> ToyProblem:
        return self.select(images)

    def surrogate(self) -> None:
        return None

    def alarm(self, delta: Perturbation, step: int, index: slice = slice(None)) -> float:
        return 0.0

    @property
    def watched(self) -> bool:
        return False

    def avoiding(self, penalty: float) -> ToyProblem:
        return self

    def batches(self) -> Sequence[slice]:
        return [slice(0, len(self.labels))]


def tally(metrics: Mapping[str, Tally | Ranking], name: str) -> Tally:
    """A metric that is a ratio of sums."""
    found = metrics[name]
    assert isinstance(found, Tally)
    return found


def site(clean: Tensor, bounded: bool = True) -> SiteState:
    """A site with its energy in the clean signal's own precision."""
    return SiteState(clean, clean.flatten(1).square().sum(1), bounded)


def toy_classifier(pixels: int, classes: int = 5, seed: int = 0) -> nn.Module:
    """A small random network on flattened signals."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.Tanh(), nn.Linear(32, classes))
    return net.requires_grad_(False)


def energy64(signal: Tensor) -> np.ndarray:
    """Squared norm of each example in double precision, by NumPy."""
    return np.square(signal.detach().double().numpy().reshape(len(signal), -1)).sum(1)
