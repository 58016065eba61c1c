"""Names of things as the field writes them, for legends, axes and the report. Text only: nothing here draws."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["classification", "reconstruction", "sensing", "detection", "segmentation", "keypoints"]

CHANNELS = {"awgn": "AWGN", "rayleigh": "Rayleigh", "rician": "Rician", "sensing": "sensing channel"}
CSI = {"none": "no CSI", "phase": "phase CSI", "zf": "ZF", "mmse": "MMSE"}
NORMS = {"l2": "L2", "linf": "L∞"}
SITES = {"input": "at the input", "air": "over the air", "input+air": "at the input and over the air"}
SHORT_SITES = {"input": "input", "air": "air", "input+air": "input + air"}
ACRONYMS = {"fgsm", "pgd", "pgdl2", "eotpgd", "cw", "bim", "apgd", "fab", "uap", "mifgsm", "difgsm", "tifgsm"}
NC = "nc\u00a0=\u00a0{}"
SELECTIONS = {
    "score": "Scored patches",
    "random": "Random patches",
    "uniform": "Even grid of patches",
    "variance": "Patches of most variance",
    "oracle": "Greedy oracle (knows the loss)",
    "original": "Original image",
}
REFERENCES = {
    "energy_detector": "Energy detector (theory)",
    "matched_filter": "Matched filter (theory)",
    "pca": "Linear PCA coding, same channel",
    "mean_image": "Mean image",
    "other_image": "Another image",
    "majority_class": "Most common class",
    "chance": "Chance",
}


class Quantity(NamedTuple):
    """How a metric is shown.

    Attributes:
        label: for an axis, with its unit.
        short: for a table.
        scale: shown value = table value * scale.
        digits: decimals in tables.
        unit: unit behind a shown value, "" without.
        share: whether it is a share of examples, between 0 and 1 in the table.
    """

    label: str
    short: str
    scale: float
    digits: int
    unit: str
    share: bool


def quantity(metric: str, kind: Kind | None = None) -> Quantity:
    """How `metric` of a task of that kind is shown; an unknown metric under its own name."""
    endings = (
        ("_vs_noise", "{} beyond noise"),
        ("_vs_random", "{} beyond random"),
        ("_vs_variance", "{} beyond variance"),
        ("_vs_twin", "{} beyond unattacked"),
        ("_vs_undefended", "{} beyond undefended"),
        ("_vs_guess", "{} beyond a guess"),
        ("_vs_receiver", "{} beyond the receivers"),
        ("_change", "Change of {}"),
    )
    for ending, words in endings:
        if metric.endswith(ending):
            base = quantity(metric.removesuffix(ending), kind)
            unit = "points" if base.share else base.unit
            name = words.format(base.short if ending != "_change" else base.short[:1].lower() + base.short[1:])
            return Quantity(f"{name} ({unit})" if unit else name, name, base.scale, base.digits, unit, False)
    if metric == "reached" and kind == "reconstruction":
        return Quantity("MSE to the target picture", "MSE to target", 1, 4, "", False)
    known = {
        "accuracy": "Accuracy",
        "abstained": "Abstained",
        "misses": "Missed targets",
        "ghosts": "Ghost targets",
        "range_accuracy": "Range accuracy",
        "flagged": "Flagged receptions",
        "accuracy_passed": "Accuracy of what passes",
        "passed_right": "Right and not flagged",
        "undetected_error": "Wrong and not flagged",
        "reached": "Goal reached",
        "f1": "F1 at IoU 0.5",
        "detection_accuracy": "TP / (TP + FP + FN)",
        "iou": "IoU of matched boxes" if kind == "detection" else "IoU of the mask",
        "ap": "AP",
        "ap50": "AP50",
        "ap75": "AP75",
        "dice": "Dice",
        "pck": "Keypoints found (PCK)",
        "keypoint_precision": "Keypoint precision",
    }
    if (certified := metric.removeprefix("certified_")) != metric:
        base = quantity(certified, kind)
        return base._replace(label=f"Certified {base.label}", short=f"Certified {base.short}")
    if metric in known:
        return Quantity(f"{known[metric]} (%)", known[metric], 100, 1, "%", True)
    if alarms := re.fullmatch(r"detection_at_pfa_(\d*\.?\d+)", metric):
        name = f"Detection at PFA = {alarms[1]}"
        return Quantity(f"{name} (%)", name, 100, 1, "%", True)
    if metric == "mse":
        return Quantity("MSE (pixels in [0, 1])", "MSE", 1, 4, "", False)
    if metric == "mse_255":
        return Quantity("MSE (pixels from 0 to 255)", "MSE of 0 to 255", 1, 1, "", False)
    if metric == "psnr_db":
        return Quantity("PSNR (dB)", "PSNR", 1, 2, "dB", False)
    if metric == "gradient_distance":
        return Quantity("1 − cosine of the gradients", "1 − cosine of the gradients", 1, 4, "", False)
    if metric in ("ssim", "lpips"):
        return Quantity(metric.upper(), metric.upper(), 1, 3, "", False)
    return Quantity(plain(metric), plain(metric), 1, 3, "", False)


def sentence(text: str) -> str:
    """Text with a capital (but for nc, a symbol) and a full stop; empty for none."""
    if not text:
        return ""
    return f"{text}." if text.startswith("nc\u00a0") else f"{text[0].upper()}{text[1:]}."


def plain(name: str) -> str:
    """A name from a scenario or a table, its underscores as spaces."""
    return name.replace("_", " ")


def attack_name(name: str) -> str:
    """An attack as the scenario names it; acronyms in capitals."""
    return name.upper() if name.lower() in ACRONYMS else name


def decibel(value: float) -> str:
    """``-10 dB`` with a true minus sign, never broken over two lines."""
    return f"{number(value)}\u00a0dB"


def snr(value: float, sensing: bool) -> str:
    """``SNR 10 dB`` or ``sensing SNR 10 dB``."""
    return f"{'sensing ' if sensing else ''}SNR {decibel(value)}"


def number(value: float, digits: int | None = None) -> str:
    """A number with a true minus sign, to `digits` decimals or as short as it goes."""
    text = f"{value:g}" if digits is None else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(value):,}".replace(",", "\u202f")


def data_volume(value: float) -> str:
    """Bytes in decimal units: ``4.85 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s`` or ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def listed(items: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def fading(channel: str | None, name: str | None) -> str:
    """``block fading``; of a sensing channel ``Rayleigh hops``; empty where nothing fades."""
    if channel == "sensing":
        return "no fading" if name in (None, "none") else f"{CHANNELS.get(str(name), name)} hops"
    return "" if name in (None, "none") else f"{name} fading"


def csi(fading: str | None, name: str | None) -> str:
    """What the receiver does with its channel estimate; empty where nothing fades."""
    return "" if name is None or fading in (None, "none") else CSI.get(name, name)


def air(channel: str | None, fades: str | None, estimate: str | None) -> str:
    """A channel in words: ``Rayleigh (block fading, ZF)``, ``AWGN``, ``sensing channel (Rayleigh hops)``."""
    if channel is None:
        return ""
    details = [fading(channel, fades)] if channel == "sensing" else [fading(channel, fades), csi(fades, estimate)]
    name, said = CHANNELS.get(channel, channel), ", ".join(detail for detail in details if detail)
    return f"{name} ({said})" if said else name


def settings(cell: str) -> dict[str, str]:
    """Swept keys of the table's column `cell`, and what they were set to in words."""
    pairs = [setting.partition("=") for setting in cell.split("; ") if setting]
    return {key.strip(): _setting(key.strip(), value.strip()) for key, _, value in pairs}


def cell(text: str) -> str:
    """The table's column `cell` in short: ``nc = 20, down: Rayleigh, alpha = 0.1``."""
    return ", ".join(settings(text).values())


def _setting(key: str, value: str) -> str:
    parts = key.split(".")
    if len(parts) == 1:  # settings that the scenario names: "trained for picture"
        return f"{plain(key)} {plain(value)}"
    if key == "use.attacks":
        return " + ".join(map(str, json.loads(value))) or "no attack"
    if parts[-1] == "channel_uses":
        return NC.format(value)
    if parts[0] == "channels" and (len(parts) == 2 or parts[2:] == ["kind"]):
        return f"{parts[1]}: {CHANNELS.get(value, value)}"
    if parts[0] in ("attacks", "channels", "receivers", "tasks") and len(parts) > 2:
        # Each of these has several by names of the user's choice: whose fading it is must be said.
        return f"{parts[1]} {parts[-1]} = {value}"
    return f"{parts[-1]} = {value}"
