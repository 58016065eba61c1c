"""Table, figures and report, on a made-up run whose numbers look like real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

SNRS = [-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0]
PSRS = [-40.0, -30.0, -20.0, -15.0, -10.0, -5.0, 0.0]
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"norm": "l2", "sites": "input", "targeted": False, "strength": 0.0},
    "pgd": {"norm": "l2", "sites": "input", "targeted": False, "strength": 6.0},
}
CLASSES = 10


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class MadeUp:
    """Rows of a run with three groups of receivers: `a` classifies (task `label`), `b` reconstructs (`picture`), `c`
    senses (`target`)."""

    def __init__(
        self,
        seeds: tuple[int, ...] = (0, 1, 2),
        sweep: dict[str, list[Any]] | None = None,
        snrs: list[float] = SNRS,
        psrs: list[float] = PSRS,
        attack_snrs: tuple[float, ...] = (10.0,),
        attacks: dict[str, dict[str, Any]] = ATTACKS,
        rounds: int = 12,
        intervals: bool = True,
    ) -> None:
        self.seeds, self.sweep, self.snrs, self.psrs = seeds, sweep or {}, snrs, psrs
        self.attack_snrs, self.attacks, self.rounds, self.intervals = attack_snrs, attacks, rounds, intervals
        self.generator = np.random.default_rng(7)

    def rows(self) -> list[dict[str, Any]]:
        return [row for cell in self.cells() for row in self.cell_rows(cell)]

    def cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = [{}]
        for key, values in self.sweep.items():
            cells = [{**cell, key: value} for cell in cells for value in values]
        return cells

    def cell_rows(self, cell: dict[str, Any]) -> Iterator[dict[str, Any]]:
        nc = cell.get("link.encoder.channel_uses", 20)
        down = cell.get("channels.down", "rayleigh")
        name = "; ".join(f"{key}={value}" for key, value in cell.items())
        base = {"scenario": "made_up", "run_id": "r1", "cell": name, "encoder": "cnn", "channel_uses": nc}
        base |= {"symbols": "real", "aggregator": "fedavg", "train_snr_db": "0 to 20", "defense": "none"}
        air = {"channel": down, "fading": "none", "csi": "none"}
        air = air | {"fading": "block", "csi": "zf"} if down == "rayleigh" else air
        radar = {"channel": "sensing", "fading": "rayleigh", "csi": "none"}
        yield from self.federate(base)
        for task, receiver, air_of in (("label", "a", air), ("picture", "b", air), ("target", "c", radar)):
            own = "sensing_snr_db" if task == "target" else "snr_db"
            here = base | air_of | {"stage": "evaluate", "receiver": receiver, "task": task, "draws": 32}
            here |= {"decoder": "local"}
            for snr in self.snrs:
                clean = self.metrics(task, snr, nc, down, None, 0.0)
                yield from self.measured(here | {own: snr, "attack": "none"}, clean)
                yield from self.references(base | air_of | {"task": task, own: snr}, task, snr, nc)
            for snr in self.attack_snrs:
                clean = self.metrics(task, snr, nc, down, None, 0.0)
                for psr in self.psrs:
                    power = {own: snr, "psr_db": psr, "pnr_db": psr + snr}
                    for attack, options in self.attacks.items():
                        shown = {key: value for key, value in options.items() if key != "strength"}
                        power["psr_achieved_db"] = psr - 2.1 * (psr > -10)
                        noise = self.metrics(task, snr, nc, down, psr, -25.0)
                        hurt = self.metrics(task, snr, nc, down, psr, options["strength"])
                        hurt |= {f"{key}_change": hurt[key] - clean[key] for key in clean}
                        hurt |= {f"{key}_vs_noise": hurt[key] - noise[key] for key in clean}
                        if options["targeted"]:
                            hurt["reached"] = 0.9 * sigmoid((psr + 15) / 4)
                        beside = {"attack": "noise", "attack_params": {"beside": attack}, "sites": options["sites"]}
                        yield from self.measured(here | power | beside, noise)
                        yield from self.measured(here | power | shown | {"attack": attack}, hurt)

    def metrics(
        self, task: str, snr: float, nc: int, down: str, psr: float | None, strength: float
    ) -> dict[str, float]:
        """What a link of that length achieves at that SNR, under an attack of that strength."""
        width = 3.0 if down == "awgn" else 7.0
        good = sigmoid((snr + 0.5 * nc - 4) / width)
        harm = 0.0 if psr is None else sigmoid((psr + 12 + strength) / 4)
        if task == "label":
            return {"accuracy": (0.1 + 0.88 * good) * (1 - harm) + 0.06 * harm}
        if task == "picture":
            mse = 0.07 - 0.05 * good * (1 - harm) + 0.03 * harm
            return {"mse": mse, "psnr_db": -10 * math.log10(mse)}
        sees = 0.5 + 0.48 * sigmoid((snr + 0.3 * nc - 6) / 5) * (1 - harm)
        return {
            "accuracy": sees,
            "misses": min(1, 1.2 * (1 - sees)),
            "ghosts": 0.8 * (1 - sees),
            "detection_at_pfa_0.1": min(1, sees * 1.01),
        }

    def measured(self, row: dict[str, Any], metrics: dict[str, float]) -> Iterator[dict[str, Any]]:
        for metric, value in metrics.items():
            half = 0.02 if metric in ("accuracy", "misses", "ghosts") or "accuracy" in metric else 0.03 * abs(value)
            noisy = value + 0.2 * half * self.generator.standard_normal()
            for seed in (*self.seeds, None):
                interval = {"ci_low": noisy - half, "ci_high": noisy + half} if self.intervals else {}
                examples = 359 * (len(self.seeds) if seed is None else 1)
                yield row | interval | {"seed": seed, "metric": metric, "value": noisy, "n": examples}

    def references(self, row: dict[str, Any], task: str, snr: float, nc: int) -> Iterator[dict[str, Any]]:
        row = row | {"stage": "reference", "attack": "none", "encoder": None}
        sure = lambda value: {"value": value, "ci_low": value, "ci_high": value}  # noqa: E731
        if task == "target":
            for decoder, shift in (("energy_detector", -1.0), ("matched_filter", 1.2)):
                sees = 0.5 + 0.49 * sigmoid((snr + 0.3 * nc - 6 + shift) / 5)
                yield row | {"decoder": decoder, "metric": "accuracy"} | sure(sees)
        if task == "picture":
            for decoder, mse in (("pca", 0.072 - 0.04 * sigmoid((snr + 0.4 * nc - 6) / 6)), ("mean_image", 0.068)):
                for metric, value in (("mse", mse), ("psnr_db", -10 * math.log10(mse))):
                    yield row | {"decoder": decoder, "metric": metric, "value": value, "n": 359}
        if task == "label":
            yield row | {"decoder": "chance", "metric": "accuracy"} | sure(1 / CLASSES)

    def federate(self, base: dict[str, Any]) -> Iterator[dict[str, Any]]:
        base = base | {"stage": "federate"}
        for seed in self.seeds:
            for number in range(1, self.rounds + 1):
                row = base | {"seed": seed, "round": number, "bytes_up": 48_500_000, "bytes_down": 48_500_000}
                for task, start in (("label", 2.3), ("picture", 0.07), ("target", 0.69)):
                    loss = start * (0.2 + 0.8 * math.exp(-number / 4)) * (1 + 0.04 * self.generator.standard_normal())
                    yield row | {"task": task, "metric": "train_loss", "value": loss, "n": 1437}
                failed, rejected = int(number == 4), int(number in (6, 7) and seed == 0)
                yield row | {"metric": "failed_receivers", "value": failed, "n": 10}
                yield row | {"metric": "rejected_updates", "value": rejected, "n": 10}


def samples(complex_symbols: bool = False, images: int = 4, label: str = "") -> list[dict[str, Any]]:
    """Pictures and symbols of a made-up run; `label` replaces the names of the classes."""
    generator = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    columns, lines = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32))
    for image in range(images):
        ring = np.exp(-8 * np.abs(np.hypot(columns, lines) - 0.25 - 0.13 * image))
        original = np.stack([ring, ring * (0.5 + 0.5 * lines), ring * (0.5 - 0.5 * columns)]).clip(0, 1)
        common = {"seed": 0, "cell": "", "image": image, "label": label or str(image)}
        rows.append(common | {"kind": "original", "attack": "none", "values": original})
        heard = common | {"snr_db": 10.0, "symbols": "complex" if complex_symbols else "real"}
        blurred = 0.8 * original + 0.1
        for attack, psr in (("none", None), ("fgsm", -10.0), ("pgd", -10.0)):
            power = {"attack": attack, "psr_db": psr}
            harm = 0.0 if psr is None else 0.12
            noise = harm * generator.standard_normal(original.shape)
            if psr is not None:
                rows.append(common | power | {"kind": "perturbed", "values": (original + noise).clip(0, 1)})
            rebuilt = (blurred + 1.5 * noise).clip(0, 1)
            rows.append(
                heard | power | {"kind": "reconstruction", "receiver": "b", "task": "picture", "values": rebuilt}
            )
            sent = np.random.default_rng(image).choice([-1.0, 1.0], 20) * 0.98 + harm * generator.standard_normal(20)
            rows.append(common | power | {"kind": "sent", "values": sent, "symbols": heard["symbols"]})
            said = label or (str(image) if psr is None else str(9 - image))
            arrived = sent + 0.32 * generator.standard_normal(20)
            rows.append(
                heard
                | power
                | {"kind": "received", "receiver": "a", "task": "label", "decision": said, "values": arrived}
            )
    return rows


SCENARIO = """\
schema: 1
name: made_up
description: A made-up run, to see what the report looks like; <script>alert("no")</script> & more.
seeds: [0, 1, 2]
compute: {engine: local, device: auto, precision: float32, execution: sequential}
data: {kind: digits, partition: {kind: dirichlet, alpha: 0.5}}
link: {encoder: {kind: cnn, channel_uses: 20}, symbols: real, power: per_example}
channels:
  down: {kind: rayleigh, fading: block, csi: zf}
  radar: {kind: sensing, geometry: bistatic, fading: rayleigh}
tasks:
  label: {kind: classification, weight: 1.0}
  picture: {kind: reconstruction, weight: 1.0}
  target: {kind: sensing, weight: 1.0}
receivers:
  a: {count: 4, tasks: [label], channel: down, decoder: local}
  b: {count: 4, tasks: [picture], channel: down, decoder: local}
  c: {count: 2, tasks: [target], channel: radar, decoder: group}
train: {epochs: 1, batch: 64, optimizer: {kind: adam, lr: 0.001}, snr_db: {uniform: [0, 20]}}
federation: {kind: flower, rounds: 12, fraction: 1.0, min_receivers: 8, aggregator: {kind: fedavg}}
attacks:
  fgsm: {kind: fgsm, sites: [input], norm: l2, objective: {label: 1.0}}
  pgd: {kind: pgd, sites: [input], norm: l2, steps: 20, objective: {label: 1.0}}
defenses: {}
sweep: {}
evaluation:
  draws: {attack: 8, score: 32}
  grids:
    - {attacks: [none], snr_db: [-10, -5, 0, 5, 10, 15, 20]}
    - {attacks: [none, noise, fgsm, pgd], snr_db: [10], psr_db: [-40, -30, -20, -15, -10, -5, 0]}
"""

MANIFEST: dict[str, Any] = {
    "fedsem": "0.1.0",
    "python": "3.11.9",
    "packages": {"torch": "2.15.0", "flwr": "1.41.0", "ray": "2.55.1", "numpy": "2.4.6"},
    "seeds": [0, 1, 2],
    "engine": "local",
    "device": "cpu",
    "hardware": {"cpu": "Intel(R) Xeon(R) <fast>", "cores": 2, "memory_gib": 15.6, "gpu": None},
    "git": "0123456789abcdef",
    "started": "2026-11-20T10:00:00+00:00",
    "finished": "2026-11-20T10:02:41+00:00",
    "status": "complete",
    "stages": [
        {"stage": stage, "cell": "", "seed": seed, "seconds": seconds}
        for seed in (0, 1, 2)
        for stage, seconds in (("federate", 31.5), ("evaluate", 18.25))
    ],
    "command": "fedsem run scenarios/made_up.yaml --set compute.engine=local",
}
