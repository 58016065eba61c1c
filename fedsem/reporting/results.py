"""What a run leaves behind, for Python and notebooks."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsem.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Results:
    """A run's folder. Everything is read when it is first asked for, and drawn from the table and the samples alone.

    ::

        results = fedsem.run("scenarios/quickstart.yaml")
        results.table                      # pandas, the columns of fedsem.reporting.table.COLUMNS
        results.plot("accuracy_vs_psr")    # matplotlib figure; results.figures lists the names
        results.report()                   # figures/ and report.html once more

    Attributes:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run's folder.

        Raises:
            OutputError: it is none.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise OutputError(f"There is no run folder '{folder}'; runs lie in results/SCENARIO/RUN_ID.")
        if not any((self.folder / name).is_file() for name in ("scenario.yaml", "manifest.json", "table.parquet")):
            raise OutputError(
                f"'{folder}' is no run folder: it holds no scenario.yaml; runs lie in results/SCENARIO/RUN_ID."
            )

    @cached_property
    def table(self) -> pd.DataFrame:
        """All numbers of the run (design section 5).

        Raises:
            OutputError: there is no table yet, or it cannot be read.
        """
        from fedsem.reporting.table import read

        return read(self.folder)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Example pictures and symbols; empty where the run kept none.

        Raises:
            OutputError: they cannot be read.
        """
        from fedsem.reporting.sample_table import read_samples

        return read_samples(self.folder)

    @cached_property
    def scenario(self) -> dict[str, Any]:
        """The resolved scenario; empty where the folder holds none.

        Raises:
            OutputError: it cannot be read.
        """
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        path = self.folder / "scenario.yaml"
        if not path.is_file():
            return {}
        try:
            content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise OutputError(f"The scenario '{path}' of this run cannot be read ({_first_line(error)}).") from error
        return content if isinstance(content, dict) else {}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Versions, seeds, hardware and wall times; empty where the folder holds none.

        Raises:
            OutputError: it cannot be read.
        """
        path = self.folder / "manifest.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"The manifest '{path}' cannot be read ({_first_line(error)}).") from error
        return content if isinstance(content, dict) else {}

    @property
    def lost(self) -> list[dict[str, Any]]:
        """Runs of an ablation that did not finish, as its manifest tells of them; none where there is no ablation."""
        runs = [one for one in self.manifest.get("cells") or [] if isinstance(one, dict)]
        return [one for one in runs if one.get("status") not in ("finished", "left out")]

    @property
    def figures(self) -> list[str]:
        """Names of the figures that this run has rows for."""
        from fedsem.reporting.figures import available

        return available(self.table, self.samples)

    def plot(self, name: str) -> Figure:
        """Draw a figure.

        Args:
            name: one of `figures`.

        Raises:
            FedsemError: there is no such figure, or this run has no rows for it; the message says which.
        """
        from fedsem.reporting.figures import draw

        return draw(name, self.table, self.samples)

    def save_figures(self) -> list[Path]:
        """Draw all figures into ``figures/`` as PNG and PDF, and return their paths.

        Raises:
            OutputError: the folder cannot be written.
        """
        from fedsem.reporting.report import write_figures

        return [self.folder / "figures" / f"{name}.{kind}" for name in write_figures(self) for kind in ("png", "pdf")]

    def report(self) -> Path:
        """Draw all figures and write ``report.html`` from the run's files alone, and return its path.

        Raises:
            OutputError: there is no table yet, or the folder cannot be written.
        """
        from fedsem.reporting.report import write_report

        return write_report(self)

    def summary(self) -> str:
        """A few lines that sum the run up, with intervals."""
        from fedsem.reporting.summary import headlines

        lines = [f"{what}: {value} {interval}".rstrip() for what, value, interval in headlines(self.table)]
        return "\n".join(line.replace("\u00a0", " ") for line in lines)

    def warnings(self) -> list[str]:
        """What the run went through that a user should know: receivers that failed, updates that were rejected, and
        decoders that are scored as they were initialised."""
        from fedsem.reporting.summary import federation

        sentences = []
        for training in federation(self.table):
            cell = f" ({training.cell})" if training.cell else ""
            for count, what in ((training.failed, "did not answer"), (training.rejected, "sent a rejected update")):
                if count:
                    times = "once" if count == 1 else f"{count} times"
                    sentences.append(f"Receivers {what} {times} in training{cell}; see '{self.folder / 'run.log'}'.")
            if training.untrained:
                sentences.append(
                    f"Receivers with a decoder that was never trained: {training.untrained}{cell}; they count in what "
                    "was measured. Use more rounds, a larger federation.fraction or decoder: group."
                )
        return sentences + self.unmeasured()

    def unmeasured(self) -> list[str]:
        """Which metrics the scenario asked for that could not be measured, and why."""
        tasks = self.scenario.get("tasks") or {}
        wanted = [name for name, task in tasks.items() if isinstance(task, dict) and task.get("lpips")]
        if not wanted or (self.table["metric"] == "lpips").any():
            return []
        return [
            f"LPIPS of '{wanted[0]}' was not measured: it needs torchvision's AlexNet weights in torch's cache, where "
            "calling torchvision.models.alexnet(weights='DEFAULT') once puts them if there is a network."
        ]

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """A short summary for notebooks."""
        from html import escape

        from fedsem.reporting.summary import headlines

        lines = [f"<b>{escape(str(self.scenario.get('name', 'run')))}</b> <code>{escape(str(self.folder))}</code>"]
        if (self.folder / "table.parquet").is_file():
            lines += [
                f"{escape(what)}: <b>{escape(value)}</b> {escape(ci)}" for what, value, ci in headlines(self.table)
            ]
            lines.append(f"{len(self.table):,} rows; figures: {escape(', '.join(self.figures) or 'none')}")
        else:
            lines.append("No table yet.")
        return f"<div>{'<br>'.join(lines)}</div>"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")
