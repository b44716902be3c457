"""Read runs from MLflow: by name, by a filter, or by the scores of their checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.tracking.mlflow_runs import URI_VARIABLE, Tracker, client_of, find_runs, tracking_uri, without_password
from pipeline.nearest import did_you_mean


def run_of(storage_path: str, experiment: str, name: str) -> Tracker:
    """Return the newest MLflow run of this name. Raise ValueError if there is none."""
    (logged,) = read_runs(storage_path, experiment, [name], ())
    return Tracker(tracking_uri(storage_path), logged.run_id)


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run as logged in MLflow."""

    name: str
    run_id: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric."""
    curves: Mapping[str, list[tuple[int, float]]]
    """(step, value) of the requested metrics."""


def read_runs(storage_path: str, experiment: str, names: Sequence[str], curves: Sequence[str]) -> list[LoggedRun]:
    """Return the newest run of each of these names or ids, with the histories of `curves`.

    Raise ValueError, with the nearest name, if a run does not exist.
    """
    uri, client, experiment_id = experiment_of(storage_path, experiment)
    logged = []
    for name in names:
        runs = [
            run
            for key in (f"attributes.run_name = '{name}'", f"attributes.run_id = '{name}'")
            for run in client.search_runs([experiment_id], filter_string=key, max_results=1)
        ]
        if not runs:
            known = [run.info.run_name for run in client.search_runs([experiment_id], max_results=1000)]
            hint = did_you_mean(name, filter(None, known))
            raise ValueError(f"the experiment {experiment!r} has no run {name!r}; {hint}".rstrip("; "))
        logged.append(make_logged_run(uri, runs[0], curves))
    return logged


def search_runs(
    storage_path: str, experiment: str, query: str, order: str, curves: Sequence[str], num_curves: int
) -> list[LoggedRun]:
    """Return the runs that match an MLflow filter, sorted by the metric `order`, highest first; the first `num_curves`
    have the histories of `curves`. ValueError for an invalid filter."""
    uri, client, experiment_id = experiment_of(storage_path, experiment)
    runs = sorted(find_runs(client, experiment_id, query), key=lambda run: -run.data.metrics.get(order, -math.inf))
    return [make_logged_run(uri, run, curves if place < num_curves else ()) for place, run in enumerate(runs)]


def best_checkpoint(storage_path: str, experiment: str, score: str) -> tuple[str, str]:
    """Return run id and weights hash of the LoggedModel with the highest `score`. ValueError if none has this score."""
    _, client, experiment_id = experiment_of(storage_path, experiment)
    order = [{"field_name": f"metrics.{score}", "ascending": False}]
    models = client.search_logged_models([experiment_id], order_by=order, max_results=1)
    if not models or score not in {metric.key for metric in models[0].metrics or ()}:
        raise ValueError(f"no checkpoint of the experiment {experiment!r} has the score {score!r}")
    return str(models[0].source_run_id), models[0].tags["weights"]


def experiment_of(storage_path: str, experiment: str) -> tuple[str, Any, str]:
    """Return tracking URI, client and id of an experiment. ValueError if it does not exist."""
    uri = tracking_uri(storage_path)
    file = uri.removeprefix("sqlite:///")
    if file != uri and not os.path.exists(file):  # MLflow would create it
        raise ValueError(f"there is no {file}: no run was logged there, or {URI_VARIABLE} is not set")
    client = client_of(uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        names = ", ".join(sorted(other.name for other in client.search_experiments()))
        raise ValueError(f"{without_password(uri)} has no experiment {experiment!r}; it has {names}")
    return uri, client, known.experiment_id


def make_logged_run(uri: str, run: Any, curves: Sequence[str]) -> LoggedRun:
    """Return an MLflow run as `LoggedRun`, with the histories of `curves`."""
    tracker = Tracker(uri, run.info.run_id)
    return LoggedRun(
        name=run.info.run_name or tracker.run_id,
        run_id=tracker.run_id,
        status=run.info.status,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        curves={curve: tracker.history(curve) for curve in curves if curve in run.data.metrics},
    )
