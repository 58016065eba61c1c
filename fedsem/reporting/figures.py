"""All figures by name: what each shows, when there is one, and how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from fedsem.errors import FedsemError, closest
from fedsem.reporting import (
    attack_matrix,
    attacked_training,
    certified,
    constellation,
    leaks,
    over_mask_ratio,
    over_psr,
    over_snr,
    patches,
    pictures,
    tradeoffs,
    training_curves,
)
from fedsem.reporting.style import Drawing
from fedsem.reporting.words import Kind


@dataclass(frozen=True)
class FigureKind:
    """One of the figures.

    Attributes:
        title: heading in the report.
        hint: how to read it, one sentence.
        lacks: (table, samples) -> why it cannot be drawn; empty where it can.
        draw: (table, samples) -> figure.
    """

    title: str
    hint: str
    lacks: Callable[[pd.DataFrame, pd.DataFrame], str]
    draw: Callable[[pd.DataFrame, pd.DataFrame], Drawing]


METRICS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "accuracy_vs_snr": ("classification", ("accuracy",)),
    "accuracy_vs_psr": ("classification", ("accuracy", "accuracy_vs_noise", "reached")),
    "reconstruction_vs_snr": ("reconstruction", ("mse", "psnr_db", "ssim", "lpips")),
    "reconstruction_vs_psr": ("reconstruction", ("mse", "psnr_db", "psnr_db_vs_noise", "reached")),
    "reconstruction_vs_mask_ratio": ("reconstruction", ("mse_255", "psnr_db", "ssim", "lpips")),
    "detection_vs_mask_ratio": ("detection", ("f1", "ap50", "ap")),
    "detection_vs_snr": ("detection", ("f1", "ap50", "ap")),
    "detection_vs_psr": ("detection", ("f1", "f1_vs_noise", "reached")),
    "segmentation_vs_mask_ratio": ("segmentation", ("dice", "iou")),
    "segmentation_vs_snr": ("segmentation", ("dice",)),
    "segmentation_vs_psr": ("segmentation", ("dice", "dice_vs_noise", "reached")),
    "keypoints_vs_mask_ratio": ("keypoints", ("pck", "keypoint_precision")),
    "keypoints_vs_snr": ("keypoints", ("pck",)),
    "keypoints_vs_psr": ("keypoints", ("pck", "pck_vs_noise", "reached")),
    "accuracy_vs_mask_ratio": ("classification", ("accuracy",)),
    "sensing_vs_snr": ("sensing", ("accuracy", "detection_at_pfa_0.1", "range_accuracy")),
    "sensing_vs_psr": ("sensing", ("accuracy", "detection_at_pfa_0.1", "misses", "ghosts", "reached")),
    "alarms_vs_psr": ("classification", ("undetected_error", "flagged")),
    "sensing_alarms_vs_psr": ("sensing", ("undetected_error", "flagged")),
}
"""Figure over SNR, PSR or mask ratio -> the kind of task that it shows, and the metrics, a panel each."""


def accuracy_vs_snr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Accuracy of classification over SNR."""
    return over_snr.draw(table, *METRICS["accuracy_vs_snr"])


def accuracy_vs_psr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Accuracy of classification over PSR, what attacks take beyond equal noise, and how often goals are reached."""
    return over_psr.draw(table, *METRICS["accuracy_vs_psr"])


def reconstruction_vs_snr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """MSE and PSNR of reconstruction over SNR, beside linear coding and the mean image."""
    return over_snr.draw(table, *METRICS["reconstruction_vs_snr"])


def reconstruction_vs_psr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """MSE and PSNR of reconstruction over PSR, and the PSNR lost beyond equal noise."""
    return over_psr.draw(table, *METRICS["reconstruction_vs_psr"])


def certified_vs_psr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """What is certified over PSR, and what attacks leave."""
    return certified.draw(table)


def sensing_vs_snr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Accuracy and detection of sensing over sensing SNR, beside two detectors' theory."""
    return over_snr.draw(table, *METRICS["sensing_vs_snr"])


def sensing_vs_psr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Accuracy, detection, misses and ghosts of sensing over PSR."""
    return over_psr.draw(table, *METRICS["sensing_vs_psr"])


def task_matrix(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Every link of a sweep with names at every task."""
    return tradeoffs.draw_matrix(table)


def task_fronts(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """The same, two tasks at a time."""
    return tradeoffs.draw_fronts(table)


def beside_twins(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Success of triggers and clean figures, beside the twin without attack."""
    return attacked_training.draw(table)


def attack_by_defense(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """What every attack leaves of every defended link."""
    return attack_matrix.draw(table)


def training(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Losses over rounds, and updates that were lost."""
    return training_curves.draw(table)


def sample_pictures(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Original, perturbed and reconstructed pictures."""
    return pictures.draw(samples)


def sample_patches(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Kept patches, painted pictures and detections, for each mask ratio and way of choosing."""
    return patches.draw(samples)


def symbols(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Symbols sent and received."""
    return constellation.draw(samples)


def leakage_vs_snr(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Eavesdroppers over their SNR, beside the receivers over theirs."""
    return leaks.draw(table)


def leaked_pictures(table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """Private pictures and what leaked of them."""
    return leaks.draw_pictures(samples)


def _over(name: str, title: str, hint: str) -> FigureKind:
    """A figure of `METRICS` over what its name says."""
    kind, metrics = METRICS[name]
    module = {"snr": over_snr, "psr": over_psr, "mask_ratio": over_mask_ratio}[name.partition("_vs_")[2]]
    return FigureKind(
        title,
        hint,
        lambda table, samples: module.lacks(table, kind, metrics),
        lambda table, samples: module.draw(table, kind, metrics),
    )


RATIO_HINT = (
    "The further to the right, the fewer patches are sent: a good choice keeps its curve up, and the gap to random "
    "patches is what the scorer gains. Beside it stand a greedy choice that knows the tasks' loss, and the original "
    "image."
)
PATCH_SNR_HINT = (
    "The better the channel, the more patches fit into the latency budget; the gap between scored and random patches "
    "is what the scorer gains."
)
ALARM_HINT = (
    "What an attack gets past a detector are receptions that are decided wrongly and not flagged: a detector is worth "
    "what it keeps that curve low by, under the attack that works around it. Without attack the flagged are false "
    "alarms."
)
PATCH_PSR_HINT = "Damage counts as adversarial where it goes beyond that of noise of equal power, the line beside it."


FIGURES: dict[str, FigureKind] = {
    "accuracy_vs_snr": FigureKind(
        "Accuracy over SNR",
        "How often the receivers name the right class on a good or bad channel: higher is better, and curves that stay "
        "high to the left need little power.",
        lambda table, samples: over_snr.lacks(table, *METRICS["accuracy_vs_snr"]),
        accuracy_vs_snr,
    ),
    "accuracy_vs_psr": FigureKind(
        "Accuracy under attack",
        "The gap between an attack and the dashed noise beside it is what the adversary gains from knowing the model; "
        "where they meet, only the power of the perturbation matters.",
        lambda table, samples: over_psr.lacks(table, *METRICS["accuracy_vs_psr"]),
        accuracy_vs_psr,
    ),
    "certified_vs_psr": FigureKind(
        "Certified and under attack",
        "No attack of that power, known or not, takes accuracy below the dashed curve; the distance to the solid one "
        "of the same colour is what a better attack or a better bound could close.",
        lambda table, samples: certified.lacks(table),
        certified_vs_psr,
    ),
    "reconstruction_vs_snr": FigureKind(
        "Reconstruction over SNR",
        "Lower MSE and higher PSNR are better; a decoder that has learned something lies clear of the mean image, and "
        "one that beats linear coding of equal length lies above PCA in PSNR.",
        lambda table, samples: over_snr.lacks(table, *METRICS["reconstruction_vs_snr"]),
        reconstruction_vs_snr,
    ),
    "reconstruction_vs_psr": FigureKind(
        "Reconstruction under attack",
        "Damage counts as adversarial where PSNR falls below that of noise of equal power: below zero in the panel "
        "beyond equal noise.",
        lambda table, samples: over_psr.lacks(table, *METRICS["reconstruction_vs_psr"]),
        reconstruction_vs_psr,
    ),
    "sensing_vs_snr": FigureKind(
        "Sensing over sensing SNR",
        "A detector that knows nothing of the waveform reaches the energy detector's theory, one that knows all of it "
        "the matched filter's, and none does better.",
        lambda table, samples: over_snr.lacks(table, *METRICS["sensing_vs_snr"]),
        sensing_vs_snr,
    ),
    "sensing_vs_psr": FigureKind(
        "Sensing under attack",
        "Misses are targets that the attack hides, ghosts are targets that it makes up; detection is at the threshold "
        "that gives 10 % false alarms without attack.",
        lambda table, samples: over_psr.lacks(table, *METRICS["sensing_vs_psr"]),
        sensing_vs_psr,
    ),
    "alarms_vs_psr": _over("alarms_vs_psr", "Attacks past a detector", ALARM_HINT),
    "sensing_alarms_vs_psr": _over("sensing_alarms_vs_psr", "Attacks on sensing past a detector", ALARM_HINT),
    "accuracy_vs_mask_ratio": _over("accuracy_vs_mask_ratio", "Accuracy over mask ratio", RATIO_HINT),
    "reconstruction_vs_mask_ratio": _over("reconstruction_vs_mask_ratio", "Reconstruction over mask ratio", RATIO_HINT),
    "detection_vs_mask_ratio": _over("detection_vs_mask_ratio", "Detection over mask ratio", RATIO_HINT),
    "segmentation_vs_mask_ratio": _over("segmentation_vs_mask_ratio", "Segmentation over mask ratio", RATIO_HINT),
    "keypoints_vs_mask_ratio": _over("keypoints_vs_mask_ratio", "Keypoints over mask ratio", RATIO_HINT),
    "detection_vs_snr": _over("detection_vs_snr", "Detection over SNR", PATCH_SNR_HINT),
    "segmentation_vs_snr": _over("segmentation_vs_snr", "Segmentation over SNR", PATCH_SNR_HINT),
    "keypoints_vs_snr": _over("keypoints_vs_snr", "Keypoints over SNR", PATCH_SNR_HINT),
    "detection_vs_psr": _over("detection_vs_psr", "Detection under attack", PATCH_PSR_HINT),
    "segmentation_vs_psr": _over("segmentation_vs_psr", "Segmentation under attack", PATCH_PSR_HINT),
    "keypoints_vs_psr": _over("keypoints_vs_psr", "Keypoints under attack", PATCH_PSR_HINT),
    "attacked_training": FigureKind(
        "Attacked training",
        "Each link stands beside its twin of the same seed that nobody attacked: the distance is what the attack did. "
        "A backdoor goes unnoticed where the two agree without the trigger.",
        lambda table, samples: attacked_training.lacks(table),
        beside_twins,
    ),
    "attack_matrix": FigureKind(
        "Attacks and defenses",
        "A defense is worth its last column, the least that any attack left of it. Hatched cells support no claim: no "
        "attack of that budget knew the defense, and one that does not may fail for reasons that a real adversary "
        "would find a way around.",
        lambda table, samples: attack_matrix.lacks(table),
        attack_by_defense,
    ),
    "leakage_vs_snr": FigureKind(
        "What an eavesdropper learns over its SNR",
        "Where the eavesdropper's curve lies on the level of a guess, nothing leaks; read the receivers at their SNR "
        "against the eavesdropper at its own.",
        lambda table, samples: leaks.lacks(table),
        leakage_vs_snr,
    ),
    "leaks": FigureKind(
        "What leaks of pictures",
        "A picture leaks where its own details appear, not only those that all pictures of its class share.",
        lambda table, samples: leaks.lacks_pictures(samples),
        leaked_pictures,
    ),
    "task_matrix": FigureKind(
        "What each link does at each task",
        "Along the diagonal links do what they were trained for; a pale row is a link that has learnt nothing for the "
        "other tasks, and a row that is dark throughout serves all of them.",
        lambda table, samples: tradeoffs.lacks(table),
        task_matrix,
    ),
    "task_fronts": FigureKind(
        "Trade-offs between tasks",
        "Up and to the right is better at both tasks; links below the line are beaten at both by another one.",
        lambda table, samples: tradeoffs.lacks(table),
        task_fronts,
    ),
    "training": FigureKind(
        "Training",
        "Losses should have flattened by the last round; otherwise the run was too short for its figures to be final.",
        lambda table, samples: training_curves.lacks(table),
        training,
    ),
    "samples": FigureKind(
        "Examples",
        "Compare what changed for the eye with what changed for the decoders: a strong attack of small power does much "
        "to the latter and little to the former.",
        lambda table, samples: pictures.lacks(samples),
        sample_pictures,
    ),
    "patches": FigureKind(
        "What is sent and what becomes of it",
        "Grey patches were not sent: a good choice keeps what the tasks need; the rest is painted from them.",
        lambda table, samples: patches.lacks(samples),
        sample_patches,
    ),
    "constellation": FigureKind(
        "Symbols on air",
        "The wider the received cloud is around what was sent, the more the channel (or the adversary) has added.",
        lambda table, samples: constellation.lacks(samples),
        symbols,
    ),
}
"""Name -> figure, in the order of the report."""


def available(table: pd.DataFrame, samples: pd.DataFrame) -> list[str]:
    """Names of the figures that there are rows for."""
    return [name for name, kind in FIGURES.items() if not kind.lacks(table, samples)]


def draw(name: str, table: pd.DataFrame, samples: pd.DataFrame) -> Drawing:
    """The figure of that name, from the table and the saved examples alone.

    Raises:
        FedsemError: there is no such figure, or this run has no rows for it.
    """
    if name not in FIGURES:
        raise FedsemError(f"There is no figure '{name}'.{closest(name, FIGURES)}")
    if why := FIGURES[name].lacks(table, samples):
        has = ", ".join(available(table, samples)) or "none"
        raise FedsemError(f"This run has no figure '{name}': {why}. It has: {has}.")
    return FIGURES[name].draw(table, samples)
