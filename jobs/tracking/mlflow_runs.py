"""The MLflow runs that metrics go to. Only this file imports MLflow, and only in functions, because that is slow."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import http.client
import importlib.metadata
import json
import logging
import math
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jobs import ROOT
from jobs.tracking.machine import DIRTY, git_commit
from pipeline import storage
from pipeline.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the driver shows the address

URI_VARIABLE = "MLFLOW_TRACKING_URI"
PARENT = "mlflow.parentRunId"
"""Tag with the id of a run's parent, below which MLflow shows it."""
GIT_COMMIT, GIT_DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"
"""Tags that MLflow shows as the version of the code."""
REACH_SECONDS = 5.0
POINTS_AT_ONCE = 1000
"""MLflow's limit of metrics, or of runs, per request."""
MODEL_REQUIREMENTS = ("torch", "transformers", "pillow", "safetensors", "numpy")
"""Packages that an exported folder requires; it contains the code of its network."""
Point = tuple[str, float, int, int]
"""Name, value, time in ms, step."""


class SilentServerError(TimeoutError):
    """The tracking server does not answer, or rejects metrics."""


def client_of(uri: str) -> MlflowClient:
    """Return a client of the tracking server or file at `uri`."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Lock the SQLite file at `uri` against other processes of this machine within this context. MLflow fails if two
    processes create its tables or an experiment at the same time."""
    file = uri.removeprefix("sqlite:///")
    if file == uri:
        yield
        return
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with open(f"{file}.lock", "ab") as lock:
        with contextlib.suppress(OSError):  # some shared file systems cannot lock
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tracking_uri(storage_path: str) -> str:
    """Return the URI in MLFLOW_TRACKING_URI, or that of an SQLite file in the local storage folder."""
    given = os.environ.get(URI_VARIABLE)
    if given:
        if given.startswith("file:") or "://" not in given:
            folder = given.removeprefix("file:").removeprefix("//")
            raise ValueError(
                f"{URI_VARIABLE}={given} is a folder, which MLflow 3 no longer writes to; move it with "
                f"`mlflow migrate-filestore --source {folder} --target sqlite:///mlflow.db` and set sqlite:///…"
            )
        return given
    if storage.is_remote(storage_path):
        raise ValueError(
            f"placement.storage={storage_path} is not on this machine, and MLflow keeps metrics in a file or a server: "
            f"set {URI_VARIABLE} to https://…, or to sqlite:///mlflow.db for runs of this machine alone"
        )
    return f"sqlite:///{storage.absolute(storage_path)}/mlflow.db"


def refuse_unreachable(storage_path: str) -> None:
    """Raise ValueError, with the address, if the tracking server does not answer."""
    uri = tracking_uri(storage_path)
    if error := probe_server(uri):
        raise ValueError(
            f"the tracking server {without_password(uri)} of {URI_VARIABLE} does not answer "
            f"({type(error).__name__}); start it, or unset {URI_VARIABLE} for a file in placement.storage"
        ) from error


def refuse_silent(uri: str, run_folder: str) -> None:
    """Raise SilentServerError if the results of a run cannot be sent because the tracking server does not answer."""
    if error := probe_server(uri):
        raise SilentServerError(
            f"{run_folder} is trained and evaluated, but the tracking server {without_password(uri)} does not answer "
            f"({type(error).__name__}): start it and give the same command again, which sends what is missing there"
        ) from error


def probe_server(uri: str) -> Exception | None:
    """Return the error of a request to the tracking server; None if it answers, or if metrics go to a file."""
    if uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(health_request(uri), timeout=REACH_SECONDS).close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            return error
    return None


def health_request(uri: str) -> urllib.request.Request:
    """Return the health request to a tracking server, with user and password of its address in the header, if any."""
    parts = urllib.parse.urlsplit(f"{uri.rstrip('/')}/health")
    login, _, host = parts.netloc.rpartition("@")
    encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
    headers = {"Authorization": f"Basic {encoded}"} if login else {}
    return urllib.request.Request(parts._replace(netloc=host).geturl(), headers=headers)


def refuse_local(storage_path: str) -> None:
    """Raise ValueError if metrics go to a local file, for a run on several machines: each would write its own."""
    uri = tracking_uri(storage_path)
    if uri.startswith("sqlite:"):
        raise ValueError(
            f"this cluster has several machines, or will, and {uri} is a file on one of them; set {URI_VARIABLE} to a "
            "server"
        )


def without_password(uri: str) -> str:
    """Return an address without its user and password, for display."""
    secret = urllib.parse.urlsplit(uri).netloc.rpartition("@")[0]
    return uri.replace(f"{secret}@", "", 1) if secret else uri


def end_open(uri: str, parent_run_id: str, trial_id: str | None = None, *, has_failed: bool = False) -> None:
    """Mark the open runs below `parent_run_id` as KILLED: those of a stopped trial, or all.

    `has_failed`: also runs that are FAILED, because a driver that is stopped at the wrong moment marks its run so.
    """
    client = client_of(uri)
    selection = f"tags.`{PARENT}` = '{parent_run_id}'" + (f" and tags.trial = '{trial_id}'" if trial_id else "")
    experiment = client.get_run(parent_run_id).info.experiment_id
    for status in ("RUNNING", "FAILED") if has_failed else ("RUNNING",):
        for run in client.search_runs([experiment], filter_string=f"{selection} and attributes.status = '{status}'"):
            client.set_terminated(run.info.run_id, status="KILLED")


class Tracker:
    """One MLflow run. The driver creates it or finds it by its tag; the first rank writes to it too."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id

    @functools.cached_property
    def client(self) -> MlflowClient:
        """Return the client, created on first use: every rank has a tracker, but only the first rank uses it."""
        return client_of(self.uri)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the finite values at `step`."""
        now = int(time.time() * 1000)
        self.send([(name, float(value), now, step) for name, value in metrics.items() if math.isfinite(value)])

    def send(self, points: Sequence[Point]) -> None:
        """Send metric points. SilentServerError if the server does not accept them."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        for start in range(0, len(points), POINTS_AT_ONCE):
            batch = [Metric(*point) for point in points[start : start + POINTS_AT_ONCE]]
            try:
                self.client.log_batch(self.run_id, metrics=batch)
            except MlflowException as error:
                raise SilentServerError(f"{without_password(self.uri)} takes no metrics: {error}") from error

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a metric, by step. For a step logged twice, the last value counts."""
        values = {metric.step: metric.value for metric in self.client.get_metric_history(self.run_id, name)}
        return sorted(values.items())

    @contextlib.contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log CPU, memory, disk, network and GPUs of this machine every ten seconds within this context."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Log the training data by its hash. Logging the same data again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(
            name=name, digest=digest, source_type="manifest", source=json.dumps({"uri": without_secrets(source)})
        )
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def log_checkpoint(self, name: str, weights: str, scores: Mapping[str, float], step: int) -> str:
        """Log the best checkpoint as a LoggedModel with its finite scores, by which `search_logged_models` sorts, and
        return its id. `weights`: hash of the weights; logging the same weights again changes nothing."""
        from mlflow.entities import LoggedModelOutput, Metric

        run = self.client.get_run(self.run_id)
        for output in run.outputs.model_outputs if run.outputs else ():
            if self.client.get_logged_model(output.model_id).tags.get("weights") == weights:
                return output.model_id
        datasets = [given.dataset for given in run.inputs.dataset_inputs] if run.inputs else []
        data = {"dataset_name": datasets[0].name, "dataset_digest": datasets[0].digest} if datasets else {}
        tags = {"weights": weights, GIT_COMMIT: run.data.tags.get(GIT_COMMIT, "")}
        model = self.client.create_logged_model(
            run.info.experiment_id, name, self.run_id, tags=tags, params=dict(run.data.params), model_type="snps3"
        )
        now = int(time.time() * 1000)
        finite = {key: float(value) for key, value in scores.items() if math.isfinite(value)}
        metrics = [Metric(key, value, now, step, model_id=model.model_id, **data) for key, value in finite.items()]
        for start in range(0, len(metrics), POINTS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + POINTS_AT_ONCE])
        self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def log_file(self, path: str | Path) -> None:
        """Log a file as an artifact of the run."""
        self.client.log_artifact(self.run_id, str(path))

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED. A run that is already KILLED does not become FAILED."""
        if status == "FAILED" and self.client.get_run(self.run_id).info.status == "KILLED":
            return
        self.client.set_terminated(self.run_id, status=status)


def open_run(
    storage_path: str,
    *,
    experiment: str,
    name: str,
    identity_hash: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] = MappingProxyType({}),
) -> Tracker:
    """Return the MLflow run of (experiment, name, identity), or create it: a resumed run stays one MLflow run."""
    from mlflow.entities import Param

    uri = tracking_uri(storage_path)
    location = None if os.environ.get(URI_VARIABLE) else f"file://{storage.absolute(storage_path)}/mlflow-artifacts"
    with sqlite_lock(uri):
        client = client_of(uri)
        known_experiment = client.get_experiment_by_name(experiment)
        experiment_id = (
            known_experiment.experiment_id if known_experiment else client.create_experiment(experiment, location)
        )
    key = f"tags.run_key = '{name}@{identity_hash}'"
    if known := client.search_runs([experiment_id], filter_string=key, max_results=1):
        (run,) = known
        client.update_run(run.info.run_id, status="RUNNING")
    else:
        code = git_commit()
        known_tags = {
            "run_key": f"{name}@{identity_hash}",
            GIT_COMMIT: code.removesuffix(DIRTY),
            GIT_DIRTY: str(code.endswith(DIRTY)).lower(),
            **tags,
        }
        # tags at creation: a driver killed before it sets them would leave a run that no search by tag finds
        run = client.create_run(experiment_id, run_name=name, tags=known_tags)
    left = [
        Param(key, without_secrets(str(value))[:500]) for key, value in params.items() if key not in run.data.params
    ]
    client.log_batch(run.info.run_id, params=left)
    return Tracker(uri, run.info.run_id)


def log_model(tracker: Tracker, folder: str, hidden: int, registered_name: str | None) -> str:
    """Log the model in an exported folder to the run, as code and files without pickle; return its URI.

    `hidden`: width of its vectors. `registered_name`: registered model that gets a new version; None registers nothing.
    """
    import mlflow.pyfunc
    import numpy as np
    import pandas
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    before = {URI_VARIABLE: os.environ[URI_VARIABLE]} if URI_VARIABLE in os.environ else {}
    mlflow.set_tracking_uri(tracker.uri)
    os.environ.pop(URI_VARIABLE, None)  # `set_tracking_uri` sets it, and would redirect later runs of this process
    os.environ |= before
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text")]), outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, hidden))])
    )
    with mlflow.start_run(run_id=tracker.run_id):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(ROOT / "jobs" / "inference" / "mlflow_model.py"),
            artifacts={"model": folder},
            signature=signature,
            input_example=pandas.DataFrame({"text": ["a red ring rises"]}),
            registered_model_name=registered_name,
            pip_requirements=model_requirements(),
        )
    return logged.model_uri


def model_requirements() -> list[str]:
    """Return the requirements of an exported folder, pinned to the installed versions without local builds such as
    `+cpu`, which a package index does not have."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in MODEL_REQUIREMENTS}
    return [f"{name}=={version}" for name, version in versions.items()]


def find_runs(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    """Return the runs of an experiment that match an MLflow filter. ValueError for an invalid filter."""
    from mlflow.exceptions import MlflowException

    runs, page = [], ""
    try:
        while page is not None:
            part = client.search_runs([experiment_id], query, max_results=POINTS_AT_ONCE, page_token=page or None)
            runs, page = [*runs, *part], part.token or None
    except MlflowException as error:
        raise ValueError(
            f"--filter {query!r} is none that MLflow reads ({error.message}); write, say, "
            "\"metrics.`test/t2v/r1` > 0.3 and params.`optim.lr` = '0.001'\""
        ) from error
    return runs
