"""What ASHA saves over a full grid: `sweep` of `python jobs/benchmark.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from jobs import run_files, tracking
from jobs.seeds import ROOT

SPACE = ("optim.lr=0.0005,0.001,0.002,0.004", "masking.probability=0.15,0.3,0.5")
METRIC = "validation/t2v/mean_recall"
RUNS = "tiny --data.temporal-split None --data.max-evaluation-clips 200"


def sweep(storage: str = "runs/benchmark", num_steps: int = 90, evaluate_every: int = 10) -> dict[str, Any]:
    """Best score and steps of twelve trials with ASHA, and of the same twelve without. Finished ones are read."""
    steps = ["--optim.num-steps", str(num_steps), "--selection.evaluate-every", str(evaluate_every)]
    found, seconds = {}, {}
    for scheduler in ("none", "asha"):
        name = f"sweep-{scheduler}-{num_steps}"
        start = time.perf_counter()
        run_sweep(name, scheduler, [*RUNS.split(), *steps, "--placement.storage", storage])
        seconds[scheduler] = time.perf_counter() - start
        found[scheduler] = run_files.read_json(f"{storage}/{name}/sweep.json")
    grid, asha = (max(found[name], key=lambda row: row["score"] or -1.0) for name in ("none", "asha"))
    total = {name: sum(row["num_steps"] for row in rows) for name, rows in found.items()}
    (logged,) = tracking.read_runs(storage, "snps3", [grid["name"]], ())
    low, high = (logged.metrics.get(f"{METRIC}_{end}") for end in ("low", "high"))
    return {
        "asha_over_grid": asha["score"] - grid["score"],
        "steps_fraction": total["asha"] / total["none"],
        "grid_interval_of_the_last_evaluation": [low, high],
        "best_of_grid": grid["values"] | {"score": grid["score"]},
        "best_of_asha": asha["values"] | {"score": asha["score"]},
        "steps": total,
        "seconds": seconds,
        "rows": found,
    }


def run_sweep(name: str, scheduler: str, base: Sequence[str]) -> None:
    """A sweep of the grid in a process of its own. CalledProcessError if it fails."""
    command = [sys.executable, str(ROOT / "jobs/sweep.py"), "--name", name, "--vary", *SPACE]
    command += ["--search", "grid", "--scheduler", scheduler, "--", *base]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
