"""Savings of ASHA over a full grid: `sweep` of `python jobs/benchmark.py`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from cluster.trials import STEP, Search, scheduler
from jobs.experiments import sweeps
from jobs.experiments.sweeps import SweepConfig, rungs_of
from jobs.run import presets, run_files
from jobs.run.run_identity import with_values
from jobs.tracking import logged_runs

SPACE = ("optim.lr=0.0005,0.001,0.002,0.004", "masking.ratio=0.15,0.3,0.5")
METRIC, TRAINED = "validation/t2v/mean_recall", "loss/total"
RUNS = {
    "data.temporal_split": None,
    "data.max_evaluation_clips": 200,
    "optim.global_batch": 32,
    "selection.rerank": 20,
    "placement.log_every": 1,
}
ASHA = SweepConfig(name="sweep", vary=SPACE)
NUM_ORDERS = 200
Curve = Sequence[tuple[int, float]]
"""(step, score) of a trial."""


def sweep(storage: str = "runs/benchmark", num_steps: int = 96) -> dict[str, Any]:
    """Return best score and steps of twelve trials with ASHA, and of the same twelve without. Finished sweeps are
    reused.

    Steps include those trained after the report at which a trial was stopped. On two cores trials run sequentially, and
    the savings of ASHA depend on their order: so ASHA also replays the curves of the grid in `NUM_ORDERS` random
    orders. `seconds` only cover reading if a sweep was already finished.
    """
    steps = {
        "optim.num_steps": num_steps,
        "optim.warmup_steps": num_steps // 10,  # with `tiny`'s longer warm-up all trials would score at chance
        "selection.evaluate_every": num_steps,
        "selection.evaluate_also": rungs_of(ASHA, num_steps),  # also without ASHA, for its replay
    }
    base = with_values(presets.tiny(), {**RUNS, **steps, "placement.storage": storage}, name="sweep-base")
    rows, seconds, total, logged = {}, {}, {}, {}
    schedulers: tuple[Literal["none", "asha"], ...] = ("none", "asha")
    for how in schedulers:
        name = f"sweep-{how}-{num_steps}"
        start = time.perf_counter()
        sweeps.sweep(dataclasses.replace(ASHA, name=name, search="grid", scheduler=how), base)
        seconds[how] = time.perf_counter() - start
        rows[how] = run_files.read_json(f"{storage}/{name}/sweep.json")
        names = [row["name"] for row in rows[how] if row["score"] is not None]
        logged[how] = logged_runs.read_runs(storage, "snps3", names, (METRIC, TRAINED))
        total[how] = sum(run.curves[TRAINED][-1][0] for run in logged[how])
    grid, asha = (max(rows[name], key=lambda row: row["score"] or -1.0) for name in ("none", "asha"))
    best = next(run for run in logged["none"] if run.name == grid["name"])
    return {
        "asha_over_grid": asha["score"] - grid["score"],
        "steps_fraction": total["asha"] / total["none"],
        "half_interval_of_a_score": (best.metrics[f"{METRIC}_high"] - best.metrics[f"{METRIC}_low"]) / 2,
        "best_of_grid": grid["values"] | {"score": grid["score"]},
        "best_of_asha": asha["values"] | {"score": asha["score"]},
        "in_random_orders": in_random_orders([run.curves[METRIC] for run in logged["none"]], num_steps),
        "steps": total,
        "seconds": seconds,
        "rows": rows,
    }


def in_random_orders(curves: Sequence[Curve], num_steps: int) -> dict[str, Any]:
    """Return the score that ASHA would have lost and the steps it would have trained in other orders of these trials:
    mean and range."""
    rng = np.random.default_rng(0)
    shown = [shown_to_asha([curves[i] for i in rng.permutation(len(curves))], num_steps) for _ in range(NUM_ORDERS)]
    best, whole = max(score for curve in curves for _, score in curve), sum(curve[-1][0] for curve in curves)
    over = np.array([[score - best, steps / whole] for score, steps in shown])
    return {
        name: {"mean": float(values.mean()), "range": [float(values.min()), float(values.max())]}
        for name, values in zip(("asha_over_grid", "steps_fraction"), over.T, strict=True)
    }


def shown_to_asha(curves: Sequence[Curve], num_steps: int) -> tuple[float, int]:
    """Replay trials with these curves in sequence, each until ASHA stops it; return the best score and all steps."""
    asha: Any = scheduler(Search(space={}, metric=METRIC, num_steps=num_steps, rungs=rungs_of(ASHA, num_steps)))
    best, steps = -1.0, 0
    for number, curve in enumerate(curves):
        trial, step = SimpleNamespace(trial_id=str(number), last_result=None), 0
        asha.on_trial_add(None, trial)
        for step, score in curve:
            best = max(best, score)
            if asha.on_trial_result(None, trial, {STEP: step, METRIC: score}) == asha.STOP:
                break
        steps += step
    return best, steps
