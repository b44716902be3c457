"""All uses of Ray's private or developer API, each with its reason and the consequence of its absence.

Written for Ray 2.60. Ray guarantees none of this, so tests/cluster/test_ray_internals.py fails when the pinned Ray no
longer has it. Parts that only tune Ray are optional: if one is missing, the run logs one warning and continues.

Functions import Ray themselves, since every process that reads a run's folder imports this file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray.data
    import ray.train
    import ray.train.torch

log = logging.getLogger(__name__)

# --- the snapshot of Ray Train's checkpoint manager -------------------------------------------------------------------

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""File in a run's folder that Ray Train rewrites with each commit. Ray has no API that tells a process outside the
run which checkpoints are committed: without this file a run could not tell where it resumes, nor clean up."""
SNAPSHOT_RAY = "2.60."
"""Prefix of the Ray versions whose snapshots are understood well enough to delete checkpoints by them."""
RESULT_VERSION = 0
"""Ray increases it when the schema of a checkpoint's entry changes."""


class UnknownSnapshotError(ValueError):
    """A snapshot differs from the format of Ray 2.60."""


def latest_checkpoint(snapshot: Any) -> str | None:
    """Return the folder name of the last committed checkpoint, None before the first commit.

    Raise UnknownSnapshotError if the snapshot lacks the entry.
    """
    latest = _entry(snapshot, "latest_checkpoint_result")
    return None if latest is None else _folder(latest)


def referenced_checkpoints(snapshot: Any) -> frozenset[str]:
    """Return the folder names of all checkpoints that Ray Train still references.

    Raise UnknownSnapshotError unless every key and version is as expected, since callers delete all other checkpoints.
    """
    version = _entry(snapshot, "ray_version")
    if not str(version).startswith(SNAPSHOT_RAY):
        raise UnknownSnapshotError(f"ray_version {SNAPSHOT_RAY}* was expected, got {version!r}")
    lists = [_entry(snapshot, key) for key in ("checkpoint_results", "pending_training_results")]
    if not all(isinstance(results, list) for results in lists):
        raise UnknownSnapshotError("lists of checkpoints were expected")
    latest = _entry(snapshot, "latest_checkpoint_result")
    if latest is None:
        raise UnknownSnapshotError("a committed checkpoint was expected, and it names none")
    results = [*lists[0], *lists[1], latest]
    if unknown := [result for result in results if _entry(result, "version") != RESULT_VERSION]:
        raise UnknownSnapshotError(f"checkpoints of version {RESULT_VERSION} were expected, got {unknown[0]!r}")
    return frozenset(_folder(result) for result in results)


def read_snapshot(data: bytes) -> Any:
    """Parse a snapshot file's content. Raise UnknownSnapshotError if it is not JSON, such as a truncated file."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise UnknownSnapshotError(f"JSON was expected: {error}") from error


def _entry(value: Any, key: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise UnknownSnapshotError(f"the key {key!r} was expected and is missing")
    return value[key]


def _folder(result: Any) -> str:
    name = _entry(result, "checkpoint_dir_name")
    if not isinstance(name, str) or not name:
        raise UnknownSnapshotError(f"a folder name was expected as 'checkpoint_dir_name', got {name!r}")
    return name


def stored_checkpoint(name: str) -> ray.train.Checkpoint:
    """Return, on a rank, the checkpoint in the folder `name` of the run's folder.

    `TrainContext.get_storage` is a developer API. `checkpoint_upload_fn` must return a path in Ray's own file system,
    which no public API gives: without this, Ray Train would have to upload, without our client and its retries.
    """
    from ray.train import Checkpoint, get_context

    storage: Any = get_context().get_storage()
    return Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)


def torch_config(backend: str, before_start: Callable[[], None]) -> ray.train.torch.TorchConfig:
    """Return the configuration of a process group with `backend`; each rank first calls `before_start`.

    `backend_cls` of a config and `on_start` of a backend are developer API. Ray creates the process group before it
    calls a rank's function, and has no public hook on the ranks before that: without this we could not set the
    interface for gloo.
    """
    from ray.train.torch import TorchConfig

    class PreparedBackend(TorchConfig().backend_cls):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(before_start)
            super().on_start(worker_group, backend_config)

    class PreparedTorchConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return PreparedBackend

    return PreparedTorchConfig(backend=backend)


# --- tuning: optional at run time -------------------------------------------------------------------------------------

METRICS_SECONDS = 60.0
"""Pause between two reports to Ray Data's statistics actor, which keeps some kilobytes per report forever; Ray's
default is 5."""
STEP_SECONDS, STEPS_AT_ONCE = 0.05, 8
"""Ray Data's scheduling loop may step once per `STEP_SECONDS` on average, in bursts of `STEPS_AT_ONCE`: a finished
block takes several steps."""


@functools.cache
def _note_absence(name: str, consequence: str) -> None:
    log.warning("this Ray has no %s: %s", name, consequence)


@contextlib.contextmanager
def _optional(name: str, consequence: str) -> Iterator[None]:
    """Ignore a missing module or attribute within the context, and log it once per process."""
    try:
        yield
    except (ImportError, AttributeError):
        _note_absence(name, consequence)


def throttle_batch_metrics() -> None:
    """Make the batch iterators of this process report their metrics every `METRICS_SECONDS`.

    Without this the statistics actor of a long run grows by megabytes a day.
    """
    with _optional("BatchIterator.UPDATE_METRICS_INTERVAL_S", "the memory of Ray Data's statistics actor will grow"):
        from ray.data._internal.block_batching.iter_batches import BatchIterator

        _ = BatchIterator.UPDATE_METRICS_INTERVAL_S  # fails if missing: setting a new attribute would have no effect
        BatchIterator.UPDATE_METRICS_INTERVAL_S = METRICS_SECONDS


def is_preempted() -> bool:
    """Return, on a rank, whether Ray has announced the preemption of a node of its worker group.

    The fallback, `ray.train.get_preemption_info`, is a barrier over all ranks.
    """
    import ray.train

    with _optional("preemption_context", "ranks wait for each other when they ask whether a node is taken away"):
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    return ray.train.get_preemption_info() is not None


class ThrottleMetrics:
    """Make a dataset's executor report its metrics every `METRICS_SECONDS`, for the reason of
    `throttle_batch_metrics`."""

    def before_execution_starts(self, executor: Any) -> None:
        with _optional("StreamingExecutor.UPDATE_METRICS_INTERVAL_S", "Ray Data's statistics actor will grow"):
            _ = executor.UPDATE_METRICS_INTERVAL_S
            executor.UPDATE_METRICS_INTERVAL_S = METRICS_SECONDS


class ThrottleScheduler:
    """Pause in Ray Data's scheduling loop when it steps faster than necessary.

    While no task runs, because no rank has consumed the decoded blocks yet, the loop of Ray 2.60 spins without waiting:
    without this it takes a core from training.
    """

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=STEPS_AT_ONCE)

    def on_execution_step(self, executor: Any) -> None:
        del executor
        if len(self.steps) == STEPS_AT_ONCE:
            time.sleep(max(0.0, self.steps[0] + STEPS_AT_ONCE * STEP_SECONDS - time.monotonic()))
        self.steps.append(time.monotonic())


def throttle(dataset: ray.data.Dataset) -> None:
    """Throttle the execution of `dataset` with `ThrottleScheduler` and `ThrottleMetrics`."""
    with _optional("ExecutionCallback", "Ray Data's scheduling loop will take a core, and its statistics will grow"):
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        # subclass Ray's callback only here, where Ray is imported; a new list, since contexts may share theirs
        hooks = [type(hook.__name__, (hook, ExecutionCallback), {}) for hook in (ThrottleScheduler, ThrottleMetrics)]
        context = dataset.context
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, *hooks]


def propagate_to_train(variable: str) -> None:
    """Set the environment variable in the processes of the Ray Train runs that this process starts.

    Without it Ray Train's placement-group cleaner, which frees the resources of a killed driver, asks the newest Ray on
    the machine whether the driver's controller is alive, and never frees them if that is another Ray.
    """
    with _optional(
        "ENV_VARS_TO_PROPAGATE", "what a killed driver held may stay taken where a machine has several Rays"
    ):
        from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

        ENV_VARS_TO_PROPAGATE.add(variable)


def hand_worker_lines_to(listener: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
    """Pass the output of workers and raylets to `listener` instead of printing it; return a function that undoes this.

    Call it before `ray.init`. Ray prints all of it to the driver's streams, or nothing: without this the progress lines
    get lost among the output of Ray's own actors.
    """
    undo = contextlib.ExitStack()
    with _optional("print_to_stdstream", "what workers print is shown as Ray shows it"):
        from ray._private import worker

        def hand_over(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
            del ignore_prefix
            listener(data)

        undo.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
        worker.print_to_stdstream = hand_over
    return undo.close


def autoscaler_events(lines: Sequence[str]) -> list[str]:
    """Return the autoscaler's events for users among lines of its log: added machines, and unavailable ones.

    Ray filters them when it prints; without this they would only be in the log. Empty if Ray is not connected.
    """
    import ray

    if not ray.is_initialized():  # Ray asks the cluster for the version of its autoscaler
        return []
    with _optional("filter_autoscaler_events", "what the autoscaler says stands in the log alone"):
        from ray._private.worker import filter_autoscaler_events

        return [event for event in filter_autoscaler_events(list(lines)) if not event.startswith("Tip:")]
    return []


def silence_progress() -> None:
    """Stop Ray Data from warning, for each dataset, that its progress bars are off. Cosmetic."""
    importlib.import_module("ray.data")  # first, since the import resets the levels of its loggers
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


# --- Ray Tune ---------------------------------------------------------------------------------------------------------

HEAD = {"node:__internal_head__": 0.001}
"""Resource that only the head node has. Without it, drivers of trials could run on spot nodes and be lost with them."""
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints a table of all trials every few seconds
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # else the next driver does not know trials begun after the last snapshot
}
"""Environment variables for settings of Tune that have no arguments."""


def apply_tune_settings() -> None:
    """Set `TUNE_SETTINGS`, except those that the user has set."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)


def can_resume_search(files: Collection[str]) -> bool:
    """Return whether Tune can resume a search with these files in its folder.

    `Tuner.can_restore` checks tuner.pkl only, and Tune treats a search that was lost before its first snapshot as
    finished: without the second file the sweep would end with no trials.
    """
    return "tuner.pkl" in files and any(name.startswith("experiment_state-") for name in files)


def measurement_callback(metric: str) -> ray.train.UserCallback:
    """Return, in a trial, the callback with which a run of Ray Train forwards reports that contain `metric` to Tune.

    `TuneReportCallback` is a developer API and forwards all reports. Tune aborts a search at a report without its
    metric, such as a checkpoint before the first evaluation when a node is about to be preempted.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    class ReportMeasurements(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metric in metrics[0]:
                super().after_report(run_context, metrics, checkpoint)

    return ReportMeasurements()


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """Tune's own state of a trial."""

    highest: Mapping[str, float]
    """The highest reported value of each metric."""
    is_finished: bool


def trial_states(path: str, filesystem: Any) -> dict[str, TrialState]:
    """Return the state of each trial of the search in the folder `path`, by trial id.

    It comes from the `Trial` objects of `ExperimentAnalysis`, which are undocumented. The public results read the
    report files, which start over when a search resumes in another Ray: without this, earlier scores would be lost.
    """
    from ray.tune import ExperimentAnalysis

    return {
        trial.trial_id: TrialState(
            highest={name: float(values["max"]) for name, values in trial.metric_analysis.items()},
            is_finished=trial.is_finished(),
        )
        for trial in ExperimentAnalysis(path, storage_filesystem=filesystem).trials or ()
    }
