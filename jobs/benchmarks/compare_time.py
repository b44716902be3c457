"""Time of a page that compares runs of a full store: `compare` of `python jobs/benchmark.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.reports.comparison import CURVES, CompareConfig, compare
from jobs.run.fields import as_dict, flat
from jobs.run.presets import tiny
from jobs.tracking import logged_runs, mlflow_runs


def compare_runs(num_runs: int = 300, num_compared: int = 10, num_points: int = 10) -> dict[str, Any]:
    """Return the seconds for a page of `num_compared` of the `num_runs` runs in a store, with `num_points` per curve;
    for a page of all runs by a filter; and for the best of their LoggedModels."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_runs):
            fill(folder, number, num_points)
        chosen = tuple(f"run-{number}" for number in np.linspace(0, num_runs - 1, num_compared).round().astype(int))
        page = f"{folder}/page.html"
        named = timed("", lambda: compare(CompareConfig(runs=chosen, storage=folder, out=page)))
        page_bytes = Path(page).stat().st_size
        every = CompareConfig(filter="metrics.`test/t2v/r1` >= 0", storage=folder, out=page)
        passing = timed("filter_", lambda: compare(every))
        best = timed("best_", lambda: logged_runs.best_checkpoint(folder, "snps3", "test/t2v/r1"))
    sizes = {"num_runs": num_runs, "num_compared": num_compared, "num_points": num_points, "page_bytes": page_bytes}
    return named | passing | best | sizes


def timed(prefix: str, call: Callable[[], object]) -> dict[str, float]:
    """Return the seconds and the CPU seconds of a call."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {f"{prefix}seconds": wall, f"{prefix}cpu_seconds": cpu}


def fill(folder: str, number: int, num_points: int) -> None:
    """Log a run to the store, with the parameters of `tiny` and curves of noise."""
    rng = np.random.default_rng(number)
    params = flat(as_dict(tiny())) | {"seed": number}
    tracker = mlflow_runs.open_run(folder, experiment="snps3", name=f"run-{number}", identity_hash="x", params=params)
    for step in range(num_points):
        tracker.log(dict(zip(CURVES, rng.random(len(CURVES)), strict=True)), step)
    scores = {
        f"test/{way}/{score}r{k}": rng.random() for way in ("t2v", "v2t") for score in ("", "dual_") for k in (1, 5)
    }
    ends = {f"{name}_{end}": value for name, value in scores.items() for end in ("low", "high")}
    tracker.log_checkpoint(f"run-{number}", f"{number:032}", scores, num_points)
    tracker.log(scores | ends | {"seconds/step": 100.0, "num_steps": num_points}, num_points)
    tracker.finish("FINISHED")
