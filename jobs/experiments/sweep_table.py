"""The trials of a sweep as a table, and the command that repeats the best one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from cluster import trials
from cluster.trials import Trial
from jobs.command_line import parsing
from jobs.experiments.child_runs import Status
from jobs.run.config import SelectionConfig
from jobs.run.run_identity import config_of
from pipeline import storage


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial in the table of a sweep."""

    name: str
    """Name of the trial's run."""
    values: Mapping[str, Any]
    score: float | None
    """The best reported score; None if the trial diverged or failed."""
    num_steps: int
    status: Status
    error: str = ""


def run_name(sweep_name: str, trial_id: str) -> str:
    """Return the name of the run of a trial."""
    return f"{sweep_name}-{trial_id}"


def row_of(trial: Trial, sweep_name: str, metric: str) -> Row:
    """Return a trial as a row of the table."""
    status = "diverged" if trial.highest.get("diverged") else "failed" if trial.error else "stopped"
    if status == "stopped" and trial.highest.get("finished"):
        status = "finished"
    return Row(
        name=run_name(sweep_name, trial.trial_id),
        values=trial.values,
        score=trial.highest.get(metric) if status in ("stopped", "finished") else None,
        num_steps=int(trial.highest.get(trials.STEP, 0)),
        status=status,
        error=trial.error,
    )


def place(row: Row) -> tuple[float, str]:
    """Return the sort key: the best trial first, those without a score last."""
    return (1.0 if row.score is None else -row.score), row.name


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Return counts of trials by status, their total steps, and the best score."""
    counts = {f"num_{status}": float(sum(row.status == status for row in rows)) for status in get_args(Status)}
    best = [row.score for row in rows if row.score is not None]
    return counts | {"num_steps": float(sum(row.num_steps for row in rows))} | ({"best": best[0]} if best else {})


def describe(
    rows: Sequence[Row], sweep_name: str, metric: str, base: Sequence[str], selection: Mapping[str, Any]
) -> str:
    """Return the table, and the command that repeats the best trial.

    `base`: preset and fields of all trials, as words of a command; `selection`: fields that the sweep set in all
    trials, needed since they decide which evaluations can be the best one.
    """
    lines = [f"{metric}, trials by their best:"]
    for row in rows:
        score = "     -" if row.score is None else f"{row.score:6.3f}"
        values = " ".join(f"{name}={shown(value)}" for name, value in row.values.items())
        lines.append(f"{score}  {row.status:9s} {row.num_steps:6d} steps  {row.name}  {values}  {row.error}".rstrip())
    if rows and rows[0].score is not None:
        preset, *fields = base
        words = [preset, "--name", f"{sweep_name}-best", *fields]
        values = {**selection, **rows[0].values}
        words += [word for name, value in values.items() for word in parsing.option(name, value)]
        lines.append(f"the best once more: python jobs/pretrain.py {shlex.join(words)}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Format a value for the table."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def changed_selection(storage_path: str, selection: SelectionConfig, best: Row) -> dict[str, Any]:
    """Return the fields of `selection` that the sweep changed, since an evaluation that it added may be the best
    one."""
    if best.score is None:
        return {}
    changed = config_of(storage.absolute(f"{storage_path}/{best.name}")).selection
    return {
        f"selection.{name}": getattr(changed, name)
        for name in ("metric", "evaluate_also")
        if getattr(changed, name) != getattr(selection, name)
    }
