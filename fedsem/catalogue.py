"""The catalogue of plug-ins and of the audit's checks: Markdown pages, written from their own docstrings and fields.

`python -m fedsem.catalogue` writes the pages in `docs/` anew; a test compares them with what the plug-ins say now.
"""

from __future__ import annotations

import csv
import inspect
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedsem.auditing.finding import Family
from fedsem.auditing.gradients import GRADIENTS
from fedsem.auditing.records import RECORDS
from fedsem.auditing.strength import STRENGTH
from fedsem.errors import FedsemError, shown
from fedsem.registry import Options, names
from fedsem.strict import attributes

ROOT = Path(__file__).parents[1]
HOOKS = "fedsem.hooks."
DEFENSES = ("defense", "aggregator", "pre_aggregator")
"""Groups of plug-ins that stand against an adversary."""
COSTS = ROOT / "results" / "reference" / "defense_costs.csv"
"""What `python -m benchmarks costs` measured. An installed copy of fedsem has no such file: there, as for a defense
that it does not name, the page says that costs are not measured."""
METRICS = {"accuracy": ("accuracy", "%", "points"), "psnr_db": ("PSNR", "dB", "dB")}
"""Metrics of `COSTS`: what they are called, their units, and those of their changes."""

PAGES = {
    "attacks.md": (
        ("attack",),
        """# Attacks

The attacks that come with fedsem, by the hook at which they act. A scenario gives one a name and says of what kind it
is:

```yaml
attacks:
  mine: {kind: pgd, sites: [input], norm: l2, steps: 20, objective: {label: 1}}
```

Attacks at test time are then named in `evaluation.grids`, attacks in training in `use.attacks`. What the server can do
against malicious updates is on [another page](defenses.md).""",
    ),
    "defenses.md": (
        DEFENSES,
        """# Defenses

The defenses that come with fedsem, by the hook at which they act: how the server combines the receivers' updates, what
it does to them before, what receivers train on, and what they minimise; then what repairs a trained link, transforms
its signals, watches it, lets receptions vote, or certifies it. What each costs stands beside it, and
[in a table](#what-they-cost).

```yaml
federation:
  rounds: 12
  pre_aggregators: [{kind: nnm, f: 2}]
  aggregator: {kind: trimmed_mean, f: 2}
defenses:
  hard: {kind: adversarial_training, norm: linf, psr_db: -15}
  squeezed: {kind: feature_squeezing}
use: {defenses: [hard]}                                       # in training
evaluation:
  grids: [{snr_db: [10], defenses: [none, squeezed]}]         # on the trained link
```

Updates are differences from the weights that the receivers got, of each group apart: the shared encoder, and the
decoders of each task. NaN and infinite updates are dropped before any rule sees them, and f is the number of malicious
updates that a rule assumes, not the number that there are.

Several defenses can be in use at once where they act at different hooks. Secure aggregation is not here: fedsem runs on
Flower's message API, which does not have it in version 1.41; SecAgg+ (Bell et al., Secure Single-Server Aggregation
with (Poly)Logarithmic Overhead, 2020) is a workflow of Flower's older API. It would also hide single updates from every
rule that looks at them: only averages go together with it. A scenario that asks for it is refused.""",
    ),
    "audit.md": (
        (),
        """# Audit

A robustness figure is worth what the attack behind it is worth. `fedsem audit RUN_DIR` looks for the ways in which such
figures are known to be wrong, link by link: every cell and seed, behind every defense at test time, at every task and
site that an attack of the scenario aims at; of an ablation the links of all runs that finished. Each check says
`failed` (the figure cannot be trusted), `suspicious` (look closer before you do), `passed`, or `not applicable`, with
the numbers that it measured; they stand in `audit.json` and in the report, and the exit code is 1 where one failed.

Behind a defense at test time an attack knows what the scenario's best informed attack knows (`knowledge.defense`).
With `exact` it differentiates the defense as it is, so that what squeezes, rounds or compresses images is found to
mask their gradient; with `adaptive` it goes by the defense's own stand-in, works around the detector, or averages over
the noise of copies. Where no attack of the scenario knows the defense, nothing is attacked: what it leaves supports no
claim. Detectors that no attack works around, and interval bounds of decoders, change nothing that an attack meets, and
are not looked at beside the link without them.""",
    ),
}
"""Groups and opening of each page, by its file in `docs/`; the audit's checks are no plug-ins."""


def page(name: str) -> str:
    """A page as Markdown, by the name of its file.

    Raises:
        FedsemError: there is no such page.
    """
    if name not in PAGES:
        raise FedsemError(f"There is no page '{name}'; choose one of {', '.join(PAGES)}.")
    groups, opening = PAGES[name]
    sections: dict[type[Options], list[type[Options]]] = {}
    for cls in (cls for group in groups for cls in ours(group).values()):
        sections.setdefault(hook(cls), []).append(cls)
    parts = ["<!-- Written by `python -m fedsem.catalogue`: change the docstrings instead. -->", opening]
    for base, members in sorted(sections.items(), key=lambda item: (item[0].__module__, item[0].__qualname__)):
        title, _, sentence = _opening(base).partition(": ")
        # Hooks that share a module share its opening: each is told apart by what a scenario calls its plug-ins.
        if sum(one.__module__ == base.__module__ for one in sections) > 1:
            title += f": `{members[0].group}`"
        parts += [f"## {title}", f"{sentence[:1].upper()}{sentence[1:]}", summary(base)]
        own = {cls: _below(cls, base) for cls in members}
        # Written as they stand in a plug-in that keeps them: a hook's class itself has no kind, and so no schema.
        shared = {name: [cls for cls in members if name not in own[cls]] for name in base.model_fields}
        if lines := [_written(keeping[0], name) for name, keeping in shared.items() if keeping]:
            parts += ["Options of all of them:", "\n".join(lines)]
        for cls in members:
            lines = [_written(cls, name) for name in cls.model_fields if name in own[cls]]
            parts += [f"### `{cls.kind}`", summary(cls), known(cls)]
            parts += ["Options:", "\n".join(lines)] if lines else []
            parts += costs(cls) if cls.group in DEFENSES else []
    if groups == DEFENSES:
        parts += _cost_table()
    if not groups:
        parts += [text for family in (RECORDS, GRADIENTS, STRENGTH) for text in _checks(family)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _checks(family: Family[Any]) -> list[str]:
    """What the audit asks, family by family."""
    told = [f"## {family.name}", family.opening]
    for check in family.checks:
        told += [f"### `{check.name}`", check.paragraph, f"It needs {check.needs}."]
    return told


def ours(group: str) -> dict[str, type[Options]]:
    """The plug-ins of a group that come with fedsem, by name; strangers' may be installed beside them."""
    return {name: cls for name, cls in names(group).items() if cls.__module__.partition(".")[0] == "fedsem"}


def hook(cls: type[Options]) -> type[Options]:
    """The class that says when a plug-in acts: the first of the module of `fedsem.hooks` that it builds on; the plug-in
    itself where it builds on none."""
    found = [base for base in _bases(cls) if base.__module__.startswith(HOOKS)]
    return [base for base in found if base.__module__ == found[0].__module__][-1] if found else cls


def summary(cls: type[Options]) -> str:
    """What a plug-in's docstring says before its attributes, and then those of what it shares with its neighbours."""
    # A plug-in that builds on another one speaks for itself.
    shared = [base for base in _bases(cls)[1:] if not base.__module__.startswith(HOOKS) and "kind" not in vars(base)]
    texts = [_doc(base).partition("Attributes:\n")[0].strip() for base in (cls, *shared)]
    return "\n\n".join(text for text in texts if text)


def meanings(cls: type[Options]) -> dict[str, str]:
    """What the docstrings of a plug-in and of its bases say of its options."""
    told: dict[str, str] = {}
    for base in _bases(cls):
        for name, text in attributes(_doc(base)):
            told.setdefault(name, " ".join(text.split()))
    return {name: told.get(name, "") for name in cls.model_fields}


def known(cls: type[Options]) -> str:
    """What an adversary must know for this attack; empty for what has no levels of knowledge."""
    levels: Mapping[str, tuple[str, ...]] = getattr(cls, "knows", {})
    told = [f"{what} {' or '.join(f'`{level}`' for level in some)}" for what, some in levels.items()]
    return f"What it knows (the first of each is its default): {', '.join(told)}." if told else ""


def measured() -> dict[tuple[str, str], list[dict[str, str]]]:
    """Rows of `COSTS` by group and name of the plug-in; none where the file is not there."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    if COSTS.is_file():
        with COSTS.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["group"], row["kind"]), []).append(row)
    return found


def costs(cls: type[Options]) -> list[str]:
    """What a defense costs, a paragraph for each way in which it was measured."""
    told = []
    for row in measured().get((cls.group, cls.kind), []):
        options = f" ({row['options']})" if row["options"] else ""
        what = f"{_times(row['time_ratio'])} times the CPU time of {row['timed']}"
        if row["combining_ratio"]:
            what += f" (the server's part: {_times(row['combining_ratio'])} times FedAvg's)"
        told.append(f"[Costs](#what-they-cost){options}: {what}; {_paid(row)}.")
    return told or ["Costs: not measured."]


def _cost_table() -> list[str]:
    """All costs in a table, with what they were measured on."""
    every = [row for rows in measured().values() for row in rows]
    if not every:
        return []
    loads = sorted(float(row["load"]) for row in every)
    opening = (
        "`python -m benchmarks costs` measures CPU time over that of the same without the defense, and what becomes of "
        "the link where nobody attacks: its accuracy (`median_smoothing`: PSNR) minus that of the undefended link, "
        "with a 95 % interval, paired over images and channel draws. It holds the chance of images and channels, not "
        "that of training: `fedavg`'s row, the same training with another seed, shows how much that is, and smaller "
        "differences mean little. Trainings are short, and a defense with which a link learns more slowly pays for "
        "that: adversarial training loses far less in the longer one, of a CNN, in "
        "`results/reference/adversarial_training`. The server's part is the time that it combines updates for, over "
        "FedAvg's. Beside a larger encoder, what defenses at test time add weighs less; votes take as many "
        "transmissions as receptions besides. Options are the defaults where none are told. "
        f"Machine: {every[0]['machine']}; load average {loads[0]:.1f} to {loads[-1]:.1f}, of which the benchmark is 1. "
        "Measured on:"
    )
    sizes: dict[str, dict[str, str]] = {}
    for row in every:
        name, unit, _ = METRICS[row["metric"]]
        sizes.setdefault(row["size"], {})[name] = f"{name} {float(row['undefended']):.1f} {unit}"
    where = [f"- {size}; undefended: {', '.join(found.values())}" for size, found in sizes.items()]
    lines = [
        "| defense | options | CPU time over that of | ratio | server's part | clean link |",
        "|---|---|---|---|---|---|",
    ]
    for row in every:
        server = _times(row["combining_ratio"]) if row["combining_ratio"] else ""
        cells = (f"`{row['kind']}`", row["options"], row["timed"], _times(row["time_ratio"]), server, _paid(row))
        lines.append(f"| {' | '.join(cells)} |")
    return ["## What they cost", opening, "\n".join(where), "\n".join(lines)]


def _paid(row: Mapping[str, str]) -> str:
    """What becomes of the link."""
    name, unit, of_change = METRICS[row["metric"]]
    change, low, high = (float(row[key]) for key in ("change", "ci_low", "ci_high"))
    # Plus zero: a change that is rounded to zero has no sign.
    told = f"{name} {round(change, 1) + 0:+.1f} {of_change} [{low:.1f}, {high:.1f}]"
    told += f" from {float(row['undefended']):.1f} {unit}"
    if change == low == high == 0:
        told = f"{name} as it is"
    return told + (f", {float(row['flagged']):.1f} % of clean receptions flagged" if row["flagged"] else "")


def _times(ratio: str) -> str:
    """A ratio with as many digits as it is worth."""
    value = float(ratio)
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.1g}"


def write(folder: Path) -> list[Path]:
    """Write all pages into a folder; where they now lie."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name in PAGES:
        paths.append(folder / name)
        paths[-1].write_text(page(name), encoding="utf-8")
    return paths


def _bases(cls: type[Options]) -> list[type[Options]]:
    """A plug-in and the classes between it and `Options`."""
    return [base for base in cls.__mro__ if issubclass(base, Options) and base is not Options]


def _doc(cls: type[Options]) -> str:
    """A class's own docstring, not one that it inherits."""
    return inspect.cleandoc(vars(cls).get("__doc__") or "")


def _opening(base: type[Options]) -> str:
    """The first paragraph of the docstring of a hook's module."""
    return " ".join((sys.modules[base.__module__].__doc__ or "").partition("\n\n")[0].split())


def _below(cls: type[Options], base: type[Options]) -> set[str]:
    """Options that a plug-in adds to its hook, or declares anew."""
    added = [one for one in _bases(cls) if cls is base or not issubclass(base, one)]
    return {name for one in added for name in vars(one).get("__annotations__", {}) if name in cls.model_fields}


def _written(cls: type[Options], name: str) -> str:
    """Name, type, default and meaning of an option."""
    schema = _schema(cls)
    option = schema["properties"][name]
    default = f"default `{_yaml(option['default'])}`" if "default" in option else "required"
    return f"- `{name}` ({_kind(option, schema.get('$defs', {}))}; {default}): {meanings(cls)[name]}"


@cache
def _schema(cls: type[Options]) -> dict[str, Any]:
    return cls.model_json_schema()


def _kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type of an option in words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_kind(one, definitions) for one in schema[choice]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{_yaml(value)}`" for value in schema["enum"])
    match schema.get("type"):
        case "integer" | "number" as number:
            return f"{'whole number' if number == 'integer' else 'number'}{_bounds(schema)}"
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "null":
            return "`null`"
        case "array":
            return f"list of {_kind(schema['items'], definitions)}" if "items" in schema else "list"
        case "object":
            keys = list(schema.get("properties", {}))
            return f"mapping with {', '.join(f'`{key}`' for key in keys)}" if keys else "mapping"
    return "any value"


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    told = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return f" {' and '.join(told)}" if told else ""


def _yaml(value: Any) -> str:
    """A default as a scenario would have it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    return value if isinstance(value, str) else shown(value)


def main() -> None:
    """Write the pages of this checkout."""
    if not (ROOT / "pyproject.toml").is_file():
        raise SystemExit("Error: the pages belong to a checkout of fedsem, and this is an installed copy.")
    for path in write(ROOT / "docs"):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
