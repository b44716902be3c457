"""Runs beside each other on one page: `python jobs/compare.py RUN RUN …`, by their names or ids in MLflow.

What differs in their configurations, their scores with intervals, their curves, and what they cost. Reads an SQLite
file or a tracking server (MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from markupsafe import Markup

from jobs.reports import figures
from jobs.reports.run_report import template
from jobs.tracking import mlflow_runs
from jobs.tracking.mlflow_runs import Logged
from pipeline import storage
from snps3_model.loss_table import PAPER_ORDER

CURVES = (
    "loss/total",
    *(f"loss/{loss.name}" for loss in PAPER_ORDER),
    "loss/answering",
    "loss/choosing",
    "validation/t2v/mean_recall",
    "validation/masked_word_accuracy",
    "validation/accuracy",
    "clips_per_second",
)
SCORES = ("test/", "temporal/", "validation/")
MEMORY = ("memory_mib", "gpu_memory_mib")
LOW_IS_GOOD = ("rank",)
MOST = len(figures.SERIES) * len(figures.DASHES)
"""More lines in one chart nobody can tell apart."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of runs, the newest of each name, or their ids in MLflow."""
    storage: str = "runs"
    """Where the runs lie; its mlflow.db is read unless MLFLOW_TRACKING_URI names a server."""
    experiment: str = "snps3"
    out: str = "compare.html"
    """The page."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.runs) <= MOST:
            raise ValueError(f"two to {MOST} runs can be compared, got {len(self.runs)}")
        if odd := [name for name in self.runs if "'" in name]:
            raise ValueError(f"{odd[0]!r} cannot be looked for: MLflow's filters know no quotes; take the run's id")


def compare(config: CompareConfig) -> str:
    """Path of the page. ValueError for a run that is not there, or twice."""
    mlflow_runs.refuse_unreachable(config.storage)
    runs = mlflow_runs.read_runs(config.storage, config.experiment, config.runs, CURVES)
    for number, run in enumerate(runs):
        if any(run.run_id == other.run_id for other in runs[:number]):
            raise ValueError(f"the run {run.name!r} ({run.run_id}) is named twice; name others to compare it with")
    path = storage.absolute(config.out)
    storage.write_bytes_atomic(path, page(runs).encode())
    return path


def page(runs: Sequence[Logged]) -> str:
    """The page; every text is escaped."""
    shown = [
        {
            "name": run.name,
            "status": run.status,
            "run_id": run.run_id,
            "colour": figures.COLOURS[figures.SERIES[number % len(figures.SERIES)]],
            "dash": ("—", "- -", "···")[number // len(figures.SERIES)],
        }
        for number, run in enumerate(runs)
    ]
    return template("compare.html").render(
        runs=shown,
        differences=differences(runs),
        scores=scores(runs),
        charts=charts(runs),
        costs=costs(runs),
        films=Markup(),
    )


def differences(runs: Sequence[Logged]) -> list[dict[str, Any]]:
    """A line per field of the configuration whose value is not the same in all runs."""
    names = sorted({name for run in runs for name in run.params} - {"name"})
    lines = [(name, [run.params.get(name, "–") for run in runs]) for name in names]
    return [{"name": name, "cells": [cell(text) for text in texts]} for name, texts in lines if len(set(texts)) > 1]


def scores(runs: Sequence[Logged]) -> list[dict[str, Any]]:
    """A line per score that any run has, with intervals."""
    names = sorted({name for run in runs for name in run.metrics if name.startswith(SCORES)})
    names = [name for name in names if not name.endswith(("_low", "_high")) and "/num_" not in name]
    names.sort(key=lambda name: SCORES.index(name.partition("/")[0] + "/"))
    lines = []
    for name in names:
        values = [run.metrics.get(name) for run in runs]
        there = [value for value in values if value is not None]
        best = min(there) if name.endswith(LOW_IS_GOOD) else max(there)
        cells = []
        for run, value in zip(runs, values, strict=True):
            bounds = [run.metrics.get(f"{name}_{end}") for end in ("low", "high")]
            text = "" if None in bounds else f"{bounds[0]:.3f} – {bounds[1]:.3f}"
            cells.append(cell("–" if value is None else f"{value:.3f}", text, is_best=value == best and len(there) > 1))
        lines.append({"name": name, "cells": cells})
    return lines


def costs(runs: Sequence[Logged]) -> list[dict[str, Any]]:
    """What the time of the first rank went to, how fast the run was and what it held."""
    names = sorted({name for run in runs for name in run.metrics if name.startswith("seconds/")})
    lines = []
    for name in [*names, "clips_per_second", "num_steps", "num_rejected", "num_parameters", *MEMORY]:
        values = [run.metrics.get(name) for run in runs]
        if any(value is not None for value in values):
            cells = [cell("–" if value is None else f"{value:,.0f}") for value in values]
            lines.append({"name": name, "cells": cells})
    return lines


def charts(runs: Sequence[Logged]) -> list[dict[str, Any]]:
    """A chart per curve that any run has; runs of one name are told apart by their ids."""
    names = [run.name for run in runs]
    keys = [run.name if names.count(run.name) == 1 else run.run_id for run in runs]
    drawn = []
    for curve in CURVES:
        curves = {key: run.curves.get(curve, []) for key, run in zip(keys, runs, strict=True)}
        if any(curves.values()):
            drawn.append({"name": curve, "svg": Markup(figures.runs_chart(curve, curves))})
    return drawn


def cell(text: str, interval: str = "", *, is_best: bool = False) -> dict[str, Any]:
    """Of a table."""
    return {"text": text, "interval": interval, "is_best": is_best}
