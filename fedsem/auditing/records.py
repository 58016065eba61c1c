"""Whether what a run has written down can be what it claims."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsem.auditing.finding import POINT, Family, Outcome, beaten, shown
from fedsem.data.dataset import Split
from fedsem.evaluation.tabulate import OVER_BUDGET
from fedsem.federation.state import FederationState
from fedsem.hooks.evasion import Evasion
from fedsem.plan import Plan
from fedsem.registry import find
from fedsem.reporting import verdicts
from fedsem.reporting.findings import Verdict
from fedsem.reporting.rows import groups

ROUNDING_DB = 0.01
"""How far a PSR may lie above its budget."""
FALLEN = 0.1
"""Accuracy that some attack of the run must take from the undefended link, for its PSRs to say anything."""
ENDS = (("value", "value"), ("ci_low", "ci_high"), ("ci_high", "ci_low"))
"""Columns of two rows whose differences are that of their values, its least and its most."""
PLACE = [
    "receiver",
    "task",
    "channel",
    "snr_db",
    "sensing_snr_db",
    "selection",
    "mask_ratio",
    "defense",
    "sites",
    "psr_db",
]
"""Columns in which a certificate and the attacks that it covers agree."""


@dataclass(frozen=True)
class Record:
    """What a run holds of one training.

    Attributes:
        plan: what was trained and measured.
        seed: of the training.
        state: what the training left.
        rows: of the table, those of this cell and seed.
        table: all of it.
    """

    plan: Plan
    seed: int
    state: FederationState
    rows: pd.DataFrame
    table: pd.DataFrame

    @property
    def measured(self) -> pd.DataFrame:
        """Rows of the evaluation."""
        return self.rows[self.rows["stage"] == "evaluate"]


RECORDS: Family[Record] = Family(
    "Records",
    "Read from the table, the checkpoints and the data alone, at the end of every run, and of every ablation for all "
    "of its runs together: nothing is computed again.",
)


@RECORDS.check("an evaluation")
def last_round(record: Record) -> Outcome:
    """Every figure is of the last round: the checkpoint that was evaluated, and all rows of the table. A best round,
    chosen by the test set, would be too good."""
    rounds = record.plan.scenario.federation.rounds
    told = sorted(int(number) for number in record.measured["round"].dropna().unique())
    if not told:
        return "not applicable", "Nothing was evaluated."
    right = record.state.round == rounds and told == [rounds]
    evidence = f"The checkpoint is of round {record.state.round} of {rounds}, the table of {', '.join(map(str, told))}."
    return ("passed" if right else "failed"), evidence


@RECORDS.check("data")
def disjoint(record: Record) -> Outcome:
    """No test image is, pixel by pixel, one of `data.reserve`, on which detectors set their thresholds, FLTrust trains
    its root and adversaries learn, or a training image. One fails; of training images fewer than one in a hundred, as
    some data sets have them, are suspicious."""
    data = record.plan.dataset
    test, train = _hashes(data.test), _hashes(data.train)
    reserve = frozenset() if data.reserve is None else _hashes(data.reserve)
    shared, held = len(test & train), len(test & reserve)
    evidence = f"Of {len(data.test)} test images {shared} are among {len(data.train)} training images"
    evidence += "." if data.reserve is None else f" and {held} among {len(data.reserve)} of the reserve."
    if held or shared >= len(data.test) / 100:
        return "failed", evidence
    return ("suspicious" if shared else "passed"), evidence


@RECORDS.check("attacks in training")
def poison_present(record: Record) -> Outcome:
    """Where an attack acts in training, updates of malicious receivers did arrive, and the table says how many
    (`malicious_updates`): a defense against none is no defense. A rule that assumes fewer than there were in some
    round, or is preceded by what does, is suspicious: nothing is promised for it."""
    if not record.plan.training_attacks:
        return "not applicable", "No attack acts in training."
    if record.plan.scenario.federation.kind != "flower":
        return "not applicable", "One learner holds all data; there are no updates."
    rows = record.rows[record.rows["metric"] == "malicious_updates"]
    present = rows[rows["value"] > 0]
    if present.empty:
        return "failed", "No update of a malicious receiver is recorded in any round."
    most, rounds = int(present["value"].max()), record.plan.scenario.federation.rounds
    evidence = f"{present['round'].nunique()} of {rounds} rounds hold malicious updates, up to {most} of one group"
    beyond = present[present["f_assumed"].notna() & (present["value"] > present["f_assumed"])]
    if beyond.empty:
        return "passed", f"{evidence}."
    return "suspicious", f"{evidence}, and {int(beyond['f_assumed'].min())} are assumed."


@RECORDS.check("attacks with a budget")
def achieved_psr(record: Record) -> Outcome:
    """No attack in the table achieved more than the PSR that stands beside it, neither on average over images nor,
    where its budget holds in every image, in any of them (`over_budget` in the table is the share of those that are
    above it, and stands there only where there are some)."""
    rows = record.measured[record.measured["psr_db"].notna() & record.measured["psr_achieved_db"].notna()]
    if rows.empty:
        return "not applicable", "No attack of the table has a budget."
    excess = float((rows["psr_achieved_db"] - rows["psr_db"]).max())
    count = len(rows[["attack", "psr_db", "defense"]].drop_duplicates())
    evidence = f"At most {excess:+.3f} dB beside the budget, of {count} attacks and PSRs."
    over = rows[(rows["metric"] == OVER_BUDGET) & (rows["value"] > 0)]
    if not over.empty:
        worst = _row(over, "value")
        where = f"'{worst['attack']}' at PSR {worst['psr_db']:g} dB"
        return "failed", f"{evidence} {worst['value']:.0%} of the images have more than their own under {where}."
    return ("failed" if excess > ROUNDING_DB else "passed"), evidence


@RECORDS.check("noise beside an attack on an accuracy")
def noise_of_equal_power(record: Record) -> Outcome:
    """No attack in the table takes less accuracy than Gaussian noise of the PSR that it achieved. More than a point
    less is suspicious, and an interval all above a point fails. Attacks that know neither the link nor the signal,
    which noise may well beat, are left out."""
    rows = record.measured[(record.measured["metric"] == "accuracy_vs_noise") & record.measured["norm"].notna()]
    if rows.empty:
        return "not applicable", "No noise stands beside an attack on an accuracy."
    sure = rows[rows["ci_low"] > POINT]
    worst = _row(rows if sure.empty else sure, "value")
    gain = (float(worst["value"]), float(worst["ci_low"]), float(worst["ci_high"]))
    where = f"'{worst['attack']}' at PSR {worst['psr_db']:g} dB"
    return beaten(gain), f"Noise of its power takes {shown(gain)} more than {where}; no other of {len(rows)} is worse."


@RECORDS.check("attacks on an accuracy, and an undefended link")
def undefended_falls(record: Record) -> Outcome:
    """What stands against the links of the run brings the undefended one down by ten points at least: else the PSRs are
    too small, or the attacks too weak, to show that anything was gained."""
    rows = record.table[(record.table["metric"] == "accuracy_change") & (record.table["stage"] == "evaluate")]
    aimed = rows[rows["norm"].notna() & rows["task"].isin(record.measured["task"].unique())]
    if aimed.empty:
        return "not applicable", "No attack on an accuracy is in the table."
    plain = aimed[(aimed["defense"] == "none") & (aimed["seed"] == record.seed)]
    if plain.empty:
        return "not applicable", "No link of the run is undefended; add a cell without defenses."
    most = _row(plain.assign(fall=-plain["value"]), "fall")
    fell = most["fall"] >= FALLEN and most["ci_high"] < 0
    evidence = f"'{most['attack']}' at PSR {most['psr_db']:g} dB takes {most['fall']:.3f} from it, the most of all."
    return ("passed" if fell else "suspicious"), evidence


@RECORDS.check("an attack that knows a defense, beside one that does not")
def adaptive_below_fixed(record: Record) -> Outcome:
    """Where attacks that know a link's defense stand beside others of the same budget (norm, sites and PSR, or share of
    malicious receivers) that do not, in whatever cells of the table, the strongest that knows leaves no more accuracy
    than the strongest that does not: else it is not adaptive enough to support a claim. More than a point more is
    suspicious; it fails where their two intervals, which are not paired, lie more than a point apart. Of planted
    triggers it is what they leave that counts: they do not mean to harm images without one."""
    if not verdicts.described(record.measured)["knows"].any():
        return "not applicable", "No attack knows a defense of this link."
    same_seed = record.table[(record.table["stage"] == "evaluate") & (record.table["seed"] == record.seed)]
    rows = verdicts.described(same_seed)
    rows = rows[rows["defended"] & (rows["column"] != verdicts.CLEAN) & (rows["metric"] == "accuracy")]
    planted = rows[rows["threat"].str.contains(" trigger")]
    meant = set(zip(planted["link"], planted["threat"].str.replace(" trigger", ""), strict=True))
    clean = [pair in meant for pair in zip(rows["link"], rows["threat"], strict=True)]
    rows = rows[~np.array(clean, dtype=bool)]
    pairs = []
    for _, same in groups(rows.sort_values("value", kind="stable"), verdicts.THREAT):
        knowing, fixed = same[same["knows"]].head(1), same[~same["knows"]].head(1)
        # What stands in several cells belongs to that of the attack that knows.
        if not fixed.empty and knowing.index.isin(record.rows.index).any():
            pairs.append((_gain(knowing.iloc[0], fixed.iloc[0]), knowing.iloc[0], fixed.iloc[0]))
    if not pairs:
        return "not applicable", "Beside none that knows a defense stands an attack of the same budget that does not."
    gain, knows, other = max(pairs, key=lambda pair: (pair[0][1] > POINT, pair[0][0]))
    evidence = (
        f"Of {knows['link']} '{knows['column']}', which knows the defense, leaves {shown(gain)} more accuracy than"
    )
    return beaten(gain), f"{evidence} '{other['column']}', which does not; no other of {len(pairs)} is worse."


def _gain(one: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """What one row's value is above another's, with the ends between which their intervals leave it."""
    value, low, high = (float(one[a]) - float(other[b]) for a, b in ENDS)
    return value, low, high


CERTIFIED = ("accuracy", "f1", "mse")
"""Metrics of which `certified_<metric>` is a bound; less of the last one is better."""
MORE_ERROR = 0.02
"""Share by which an error may be above its bound, a tenth of a dB: errors are small numbers."""


@RECORDS.check("certified and attacked figures of one link")
def certified_below_attacked(record: Record) -> Outcome:
    """The accuracy or F1 that is certified at a PSR, site and norm is no more than what any attack leaves of the same
    link there (of pictures, the certified error no less); in the L2 ball lies the L-inf cube of the same PSR. A point
    more is suspicious, of an error 2 %; it fails where the two intervals do not meet. Attacks whose budget holds on
    average over images only are not covered, and left out."""
    rows = record.rows.astype(dict.fromkeys(PLACE, "object"))
    bounded = rows["attack_params"].map(_bounded).astype(bool)
    attacked = rows[(rows["stage"] == "evaluate") & rows["norm"].notna() & bounded & (rows["attack"] != "none")]
    pairs = []
    for metric in CERTIFIED:
        certified = rows[rows["metric"] == f"certified_{metric}"]
        if certified.empty:
            continue
        alike = [name for name in PLACE if certified[name].notna().any()]
        both = certified.merge(attacked[attacked["metric"] == metric], on=alike, suffixes=("", "_under"))
        # How far it is above, in units of what may be.
        if metric == "mse":
            above = (both["value_under"] / both["value"] - 1) / MORE_ERROR
            pairs.append(both.assign(above=above, apart=both["ci_low_under"] > both["ci_high"]))
        else:
            above = (both["value"] - both["value_under"]) / POINT
            pairs.append(both.assign(above=above, apart=both["ci_low"] > both["ci_high_under"]))
    if not pairs:
        return "not applicable", "Nothing is certified."
    both = pd.concat(pairs, ignore_index=True)
    both = both[(both["norm"] == both["norm_under"]) | (both["norm"] == "l2")]
    if both.empty:
        return "not applicable", "No attack was measured where something is certified."
    apart: pd.DataFrame = both.loc[both["apart"].astype(bool)]
    worst = _row(both if apart.empty else apart, "above")
    verdict: Verdict = "failed" if not apart.empty else "suspicious" if worst["above"] > 1 else "passed"
    told = f"{worst['metric_under']} {worst['value']:.3g} is certified and '{worst['attack_under']}' leaves"
    return verdict, f"At PSR {worst['psr_db']:g} dB {told} {worst['value_under']:.3g}, the closest of {len(both)}."


def _bounded(params: Any) -> bool:
    """Whether an attack with these options keeps its budget in every image; triggers have none."""
    options = json.loads(params) if isinstance(params, str) else {}
    cls = find("attack", options["kind"]) if "kind" in options else None
    return cls is not None and issubclass(cls, Evasion) and not cls.mean_power


def _row(rows: pd.DataFrame, most: str) -> dict[Hashable, Any]:
    """The row in which a column is largest."""
    return rows.sort_values(most, ascending=False, kind="stable").iloc[0].to_dict()


def _hashes(split: Split) -> frozenset[bytes]:
    """Of every image."""
    return frozenset(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images)
