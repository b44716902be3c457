"""A page that compares runs: `python jobs/compare.py RUN RUN …`, by their names or ids in MLflow.

It shows differing fields of the configurations, scores with intervals (which MLflow's comparison lacks), losses and
recalls over steps, and costs. Reads an SQLite file or a tracking server (MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from markupsafe import Markup

from jobs.reports import figures
from jobs.reports.page import template
from jobs.tracking import logged_runs, mlflow_runs
from jobs.tracking.logged_runs import LoggedRun
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
)
SCORES = ("test/", "temporal/", "validation/")
COSTS = ("clips_per_second", "num_steps", "num_rejected", "num_parameters", "memory_mib", "gpu_memory_mib")
LOW_IS_GOOD = ("rank",)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which runs are compared."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of runs, the newest of each name, or their ids in MLflow."""
    filter: str | None = None
    """Instead of names: a filter of MLflow, such as "metrics.`test/t2v/r1` > 0.3"; any number of runs."""
    order: str = "test/t2v/r1"
    """Score by which the runs of a filter are sorted, highest first."""
    storage: str = "runs"
    """Folder of the runs, whose mlflow.db is read unless MLFLOW_TRACKING_URI names a server."""
    experiment: str = "snps3"
    out: str = "compare.html"
    """Path of the page."""

    def __post_init__(self) -> None:
        if self.filter is not None and self.runs:
            raise ValueError(f"give either names of runs or --filter, got {self.runs} and {self.filter!r}")
        if self.filter is None and not 2 <= len(self.runs) <= figures.MAX_LINES:
            raise ValueError(f"two to {figures.MAX_LINES} runs can be compared, got {len(self.runs)}")
        if odd := [name for name in self.runs if "'" in name]:
            raise ValueError(f"{odd[0]!r} cannot be looked for: MLflow's filters know no quotes; take the run's id")


def compare(config: CompareConfig) -> str:
    """Write the page and return its path. Raise ValueError if a run does not exist or is named twice, or if fewer than
    two match the filter."""
    mlflow_runs.refuse_unreachable(config.storage)
    if config.filter is None:
        runs = logged_runs.read_runs(config.storage, config.experiment, config.runs, CURVES)
    else:
        runs = logged_runs.search_runs(
            config.storage, config.experiment, config.filter, config.order, CURVES, figures.MAX_LINES
        )
        if len(runs) < 2:
            raise ValueError(f"{len(runs)} runs pass --filter {config.filter!r}, and two or more can be compared")
    for number, run in enumerate(runs):
        if any(run.run_id == other.run_id for other in runs[:number]):
            raise ValueError(f"the run {run.name!r} ({run.run_id}) is named twice; name others to compare it with")
    path = storage.absolute(config.out)
    overview_table, runs = overview(runs), runs[: figures.MAX_LINES]
    tables = {"differences": differences(runs), "scores": scores(runs), "costs": costs(runs), "charts": charts(runs)}
    shown = [(run, figures.line_style(number)) for number, run in enumerate(runs)]
    page = template("compare.html").render(runs=shown, every=overview_table, films=Markup(), **tables)
    storage.write_bytes_atomic(path, page.encode())
    return path


def overview(runs: Sequence[LoggedRun]) -> dict[str, Any] | None:
    """Return a table with a row per run, of scores and differing fields; None if all runs fit as columns."""
    if len(runs) <= figures.MAX_LINES:
        return None
    columns = scores(runs) + differences(runs)
    rows = [{"run": run, "cells": [column["cells"][place] for column in columns]} for place, run in enumerate(runs)]
    return {"names": [column["name"] for column in columns], "rows": rows}


def differences(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return a line per field of the configuration whose value differs between runs."""
    names = sorted({name for run in runs for name in run.params} - {"name"})
    lines = [(name, [run.params.get(name, "–") for run in runs]) for name in names]
    return [{"name": name, "cells": [cell(text) for text in texts]} for name, texts in lines if len(set(texts)) > 1]


def scores(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return a line per score that at least one run has, with intervals."""
    names = sorted({name for run in runs for name in run.metrics if name.startswith(SCORES)})
    names = [name for name in names if not name.endswith(("_low", "_high")) and "/num_" not in name]
    names.sort(key=lambda name: SCORES.index(name.partition("/")[0] + "/"))
    lines = []
    for name in names:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        best = min(values) if name.endswith(LOW_IS_GOOD) else max(values)
        cells = []
        for run in runs:
            value, *bounds = (run.metrics.get(name + end) for end in ("", "_low", "_high"))
            interval = "" if None in bounds else "{:.3f} – {:.3f}".format(*bounds)
            text = "–" if value is None else f"{value:.3f}"
            cells.append(cell(text, interval, is_best=value == best and len(values) > 1))
        lines.append({"name": name, "cells": cells})
    return lines


def costs(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return a line per part of the first rank's time, and per measure of `COSTS`."""
    names = sorted({name for run in runs for name in run.metrics if name.startswith("seconds/")})
    names += [name for name in COSTS if any(name in run.metrics for run in runs)]
    values = {name: [run.metrics.get(name) for run in runs] for name in names}
    return [
        {"name": name, "cells": [cell("–" if value is None else f"{value:,.0f}") for value in line]}
        for name, line in values.items()
    ]


def charts(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return a chart per curve that at least one run has, with a line per run."""
    lines = {curve: [run.curves.get(curve, []) for run in runs] for curve in CURVES}
    return [
        {"name": curve, "svg": figures.line_chart(points, width=500, height=280)}
        for curve, points in lines.items()
        if any(points)
    ]


def cell(text: str, interval: str = "", *, is_best: bool = False) -> dict[str, Any]:
    """Return a cell of a table."""
    return {"text": text, "interval": interval, "is_best": is_best}
