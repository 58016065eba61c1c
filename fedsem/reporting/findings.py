"""What an audit found, as a file in the run's folder and as tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from fedsem.errors import OutputError
from fedsem.files import replace_file
from fedsem.reporting import words

Verdict = Literal["failed", "suspicious", "passed", "not applicable"]
VERDICTS: tuple[Verdict, ...] = ("failed", "suspicious", "passed", "not applicable")
"""The worst first."""
FILE = "audit.json"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        verdict: what it makes of the evidence.
        evidence: the measured numbers, or why the check does not apply, as a sentence.
        family: the checks that it belongs to.
        cell, seed, defense: which link was looked at; `defense` acts on it at test time.
        target: task and site, of a check that attacks.
    """

    check: str
    verdict: Verdict
    evidence: str
    family: str
    cell: str = ""
    seed: int | None = None
    defense: str = "none"
    target: str = ""

    @property
    def link(self) -> str:
        """Which link was looked at, and where it was attacked."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        defense = "" if self.defense == "none" else f"behind {words.plain(self.defense)}"
        return ", ".join(part for part in (words.cell(self.cell), seed, defense, self.target) if part)


def write_findings(findings: Sequence[Finding], folder: Path) -> None:
    """Write ``audit.json``.

    Raises:
        OutputError: the folder cannot be written.
    """
    replace_file(folder / FILE, json.dumps([asdict(finding) for finding in findings], indent=1).encode())


def read_findings(folder: Path) -> list[Finding]:
    """What is in ``audit.json``; nothing where there is none.

    Raises:
        OutputError: it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = [Finding(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        if unknown := [one.verdict for one in found if one.verdict not in VERDICTS]:
            raise ValueError(f"a verdict '{unknown[0]}'")
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"'{path}' cannot be read ({error}); run 'fedsem audit {folder}' again.") from error
    return found


def counts(findings: Iterable[Finding]) -> str:
    """How many findings there are of each kind, in words."""
    told = [finding.verdict for finding in findings]
    return ", ".join(f"{told.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in told)


def digest(findings: Sequence[Finding]) -> list[list[str]]:
    """Verdict, check, link and evidence, the worst first: a line for each finding that failed or is suspicious, and of
    the others one for each check, with the evidence of the first link."""
    lines = []
    for verdict in VERDICTS:
        same = [finding for finding in findings if finding.verdict == verdict]
        if verdict in ("failed", "suspicious"):
            lines += [[verdict, words.plain(one.check), one.link, one.evidence] for one in same]
            continue
        order = list(dict.fromkeys(one.check for one in same))
        for check, members in groupby(sorted(same, key=lambda one: order.index(one.check)), lambda one: one.check):
            first, *rest = members
            link = first.link if not rest else f"{len(rest) + 1} links"
            lines.append([verdict, words.plain(check), link, first.evidence])
    return lines
