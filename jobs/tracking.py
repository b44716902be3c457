"""Where metrics go. The only file that imports MLflow."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline import storage

URI_VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(storage_path: str) -> str:
    """The server that MLFLOW_TRACKING_URI names, or an SQLite file in the storage folder of this machine."""
    given = os.environ.get(URI_VARIABLE)
    if given:
        if given.startswith("file:") or "://" not in given:
            raise ValueError(
                f"{URI_VARIABLE}={given} is a folder, which MLflow 3 no longer writes to; move it with "
                f"`mlflow migrate-filestore --source {given} --target sqlite:///mlflow.db` and set sqlite:///…"
            )
        return given
    if storage.is_remote(storage_path):
        raise ValueError(
            f"placement.storage={storage_path} is not on this machine, so metrics need a server: set {URI_VARIABLE}"
        )
    return f"sqlite:///{storage.absolute(storage_path)}/mlflow.db"


class Tracker:
    """One MLflow run, created by the driver and written to from the first rank too; found again by its tag."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = MlflowClient(tracking_uri=uri)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Finite values under their names, at `step`."""
        now = int(time.time() * 1000)
        values = [Metric(name, float(v), now, step) for name, v in metrics.items() if math.isfinite(v)]
        self.client.log_batch(self.run_id, metrics=values)

    def history(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step; a step logged twice counts as it was logged last."""
        values = {metric.step: metric.value for metric in self.client.get_metric_history(self.run_id, name)}
        return sorted(values.items())

    def metric_names(self) -> list[str]:
        """Every metric logged so far."""
        return sorted(self.client.get_run(self.run_id).data.metrics)

    def log_file(self, path: str | Path) -> None:
        """A file as an artefact of the run."""
        self.client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status=status)


def open_run(
    storage_path: str, *, experiment: str, name: str, identity_hash: str, params: Mapping[str, Any]
) -> Tracker:
    """The MLflow run of (experiment, name, identity), made if there is none: a run that goes on stays one run."""
    uri = tracking_uri(storage_path)
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    location = None if os.environ.get(URI_VARIABLE) else f"file://{storage.absolute(storage_path)}/mlflow-artifacts"
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, location)
    key = f"tags.run_key = '{name}@{identity_hash}'"
    known = client.search_runs([experiment_id], filter_string=key, max_results=1)
    if known:
        client.update_run(known[0].info.run_id, status="RUNNING")
        return Tracker(uri, known[0].info.run_id)
    run = client.create_run(experiment_id, run_name=name)
    tags = [RunTag("run_key", f"{name}@{identity_hash}"), RunTag("mlflow.source.git.commit", commit())]
    kept = [Param(key, str(value)[:500]) for key, value in params.items()]
    client.log_batch(run.info.run_id, params=kept, tags=tags)
    return Tracker(uri, run.info.run_id)


def commit() -> str:
    """The commit of the code, with a mark if it was changed since; `unknown` outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"
