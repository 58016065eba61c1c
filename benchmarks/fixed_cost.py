"""(b) From command to the end of a minimal run, against a bare Flower + Ray app; and `fedsem --help`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scenario import scenario

GRID = {"snr_db": [10]}


def measure() -> list[dict[str, Any]]:
    """Rows: wall seconds of each command; each variant is run twice and the quicker run counts."""
    quiet = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        bare = [sys.executable, "-c", "from benchmarks.bare_flower import simulate; simulate()"]
        rows = [_timed("bare Flower + Ray app", bare, quiet)]
        for engine, goal in (("ray", "at most 1.2"), ("local", "under 0.33")):
            tree = scenario({"kind": "digits"}, engine, rounds=1)
            tree["data"] |= {"train_images": 100, "test_images": 50}
            tree["evaluation"] = {"grids": [GRID], "samples": 1, "draws": {"attack": 1, "score": 1}}
            file = Path(folder) / f"{engine}.yaml"
            file.write_text(json.dumps(tree))
            command = [sys.executable, "-m", "fedsem", "run", str(file), "--out", folder]
            rows.append({**_timed(f"fedsem run, engine: {engine}", command, quiet), "goal": goal})
        rows.append(
            {**_timed("fedsem --help", [sys.executable, "-m", "fedsem", "--help"], quiet), "goal": "under 0.5 s"}
        )
    for row in rows[:3]:
        row["ratio"] = row["wall_s"] / rows[0]["wall_s"]
    return rows


def _timed(variant: str, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return {"benchmark": "b: fixed cost", "variant": variant, "wall_s": min(seconds)}
