"""Every use of Ray's private or developer API, each with its reason and with what happens without it.

Written for Ray 2.60. Ray promises none of this, so tests/cluster/test_ray_internals.py fails when the pinned Ray no
longer has it. What only tunes Ray is optional: where it is missing, one warning is logged and the run goes on.

Ray is imported inside the functions: every process that reads a run's folder imports this file.
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
"""File in a run's folder that Ray Train rewrites with each commit. Ray has no API that tells a process outside of the
run what was committed: without this file a run could not say where it resumes, and could not clean up."""
SNAPSHOT_RAY = "2.60."
"""How the versions of Ray begin whose snapshots are understood well enough to delete by them."""
RESULT_VERSION = 0
"""Ray raises it when the schema of a checkpoint's entry changes."""


class UnknownSnapshotError(ValueError):
    """A snapshot is not as Ray 2.60 writes it."""


def latest_checkpoint(snapshot: Any) -> str | None:
    """Return the folder name of the last committed checkpoint, None before the first commit.

    Raise UnknownSnapshotError when the snapshot does not say.
    """
    latest = _entry(snapshot, "latest_checkpoint_result")
    return None if latest is None else _folder(latest)


def referenced_checkpoints(snapshot: Any) -> frozenset[str]:
    """Return the folder names of all checkpoints that Ray Train still knows.

    Raise UnknownSnapshotError unless every key and version is as expected: what is not named here may be deleted.
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
    """Return the snapshot in a file's content. Raise UnknownSnapshotError where it was cut off."""
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
    """Return, on a rank, the checkpoint that lies as the folder `name` in the run's folder.

    `TrainContext.get_storage` is a developer API. `checkpoint_upload_fn` has to return a path in Ray's own file system,
    and nothing else says what it is: without this, Ray Train would have to upload, without our client and its retries.
    """
    from ray.train import Checkpoint, get_context

    storage: Any = get_context().get_storage()
    return Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)


def torch_config(backend: str, before_start: Callable[[], None]) -> ray.train.torch.TorchConfig:
    """Return how ranks form a process group with `backend`; each rank first calls `before_start`.

    `backend_cls` of a config and `on_start` of a backend are developer API. The process group is made before a rank's
    function is called, and nothing public runs on the ranks before that: without this gloo could not be told which
    interface to bind to.
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
"""Pause between two reports to Ray Data's statistics actor, which keeps some kilobytes of each for ever; Ray's is 5."""
STEP_SECONDS, STEPS_AT_ONCE = 0.05, 8
"""Ray Data's scheduling loop may step so often on average, and so many times at once: a finished block takes several
steps."""


@functools.cache
def _note_absence(name: str, consequence: str) -> None:
    log.warning("this Ray has no %s: %s", name, consequence)


@contextlib.contextmanager
def _optional(name: str, consequence: str) -> Iterator[None]:
    """Within it, a missing module or attribute is logged once per process and otherwise ignored."""
    try:
        yield
    except (ImportError, AttributeError):
        _note_absence(name, consequence)


def throttle_batch_metrics() -> None:
    """Let the batch iterators of this process report their metrics every `METRICS_SECONDS`.

    Without it the statistics actor of a long run grows with each report: megabytes a day.
    """
    with _optional("BatchIterator.UPDATE_METRICS_INTERVAL_S", "the memory of Ray Data's statistics actor will grow"):
        from ray.data._internal.block_batching.iter_batches import BatchIterator

        _ = BatchIterator.UPDATE_METRICS_INTERVAL_S  # a new attribute would throttle nothing
        BatchIterator.UPDATE_METRICS_INTERVAL_S = METRICS_SECONDS


def is_preempted() -> bool:
    """Return, in a rank, whether Ray has told it that a node of its worker group is about to be preempted.

    `ray.train.get_preemption_info`, which is asked where this is missing, is a barrier over all ranks.
    """
    import ray.train

    with _optional("preemption_context", "ranks wait for each other when they ask whether a node is taken away"):
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    return ray.train.get_preemption_info() is not None


class ThrottleMetrics:
    """Let a dataset's executor report its metrics every `METRICS_SECONDS`, as `throttle_batch_metrics` does."""

    def before_execution_starts(self, executor: Any) -> None:
        with _optional("StreamingExecutor.UPDATE_METRICS_INTERVAL_S", "Ray Data's statistics actor will grow"):
            _ = executor.UPDATE_METRICS_INTERVAL_S
            executor.UPDATE_METRICS_INTERVAL_S = METRICS_SECONDS


class ThrottleScheduler:
    """Pause in Ray Data's scheduling loop when it steps faster than there is anything to do.

    While no task runs, because what is decoded has not been asked for yet, the loop of Ray 2.60 steps without waiting
    for anything: without this it takes a core from training.
    """

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=STEPS_AT_ONCE)

    def on_execution_step(self, executor: Any) -> None:
        del executor
        if len(self.steps) == STEPS_AT_ONCE:
            time.sleep(max(0.0, self.steps[0] + STEPS_AT_ONCE * STEP_SECONDS - time.monotonic()))
        self.steps.append(time.monotonic())


def throttle(dataset: ray.data.Dataset) -> None:
    """Have the execution of `dataset` throttled by `ThrottleScheduler` and `ThrottleMetrics`."""
    with _optional("ExecutionCallback", "Ray Data's scheduling loop will take a core, and its statistics will grow"):
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        # the hooks inherit Ray's empty ones only here; a new list, since contexts may share theirs
        hooks = [type(hook.__name__, (hook, ExecutionCallback), {}) for hook in (ThrottleScheduler, ThrottleMetrics)]
        context = dataset.context
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, *hooks]


def propagate_to_train(variable: str) -> None:
    """Have the environment variable set in the processes of the Ray Train runs that this process starts.

    Without it Ray Train's placement-group cleaner, which frees what a killed driver held, asks the newest Ray of the
    machine whether the driver's controller is alive, and never frees anything where that is another Ray.
    """
    with _optional(
        "ENV_VARS_TO_PROPAGATE", "what a killed driver held may stay taken where a machine has several Rays"
    ):
        from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

        ENV_VARS_TO_PROPAGATE.add(variable)


def hand_worker_lines_to(listener: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
    """Have `listener` called with what workers and raylets print, where Ray would print it; return what undoes that.

    To be called before `ray.init`. Ray prints all of it to the driver's streams, or nothing: without this the lines of
    progress scroll away among those of Ray's own actors.
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
    """Return what the autoscaler tells people in lines of its log: machines that come, and such as cannot be had.

    Ray picks them out where it prints; without this they would stand in the log alone. Nothing outside of a Ray.
    """
    import ray

    if not ray.is_initialized():  # the way of the log is asked of the cluster
        return []
    with _optional("filter_autoscaler_events", "what the autoscaler says stands in the log alone"):
        from ray._private.worker import filter_autoscaler_events

        return [event for event in filter_autoscaler_events(list(lines)) if not event.startswith("Tip:")]
    return []


def silence_progress() -> None:
    """Keep Ray Data from warning, in each dataset, that its progress bars are off. Cosmetic."""
    importlib.import_module("ray.data")  # which resets the levels of its loggers when it is imported
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


# --- Ray Tune ---------------------------------------------------------------------------------------------------------

HEAD = {"node:__internal_head__": 0.001}
"""Resource of the head node alone. Without it the drivers of trials could run on spot nodes, and be lost with them."""
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints a table of all trials every few seconds
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # else a trial begun after the last snapshot is unknown to the next driver
}
"""Environment variables of Tune, for which it has no arguments."""


def apply_tune_settings() -> None:
    """Set `TUNE_SETTINGS` where the user has not."""
    for name, value in TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)


def can_resume_search(files: Collection[str]) -> bool:
    """Return whether Tune can resume a search that has these files in its folder.

    `Tuner.can_restore` looks for tuner.pkl alone, and Tune takes a search that was lost before its first snapshot for a
    finished one: without the second file the sweep would end with no trials.
    """
    return "tuner.pkl" in files and any(name.startswith("experiment_state-") for name in files)


def measurement_callback(metric: str) -> ray.train.UserCallback:
    """Return, in a trial, the callback by which a run of Ray Train reports to Tune what has `metric` in it.

    `TuneReportCallback` is a developer API and forwards all reports. Tune ends a search at a report without its metric,
    and a checkpoint before the first evaluation (a node is about to be preempted) is one.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    class ReportMeasurements(TuneReportCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if metric in metrics[0]:
                super().after_report(run_context, metrics, checkpoint)

    return ReportMeasurements()


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """What Tune itself keeps of a trial."""

    highest: Mapping[str, float]
    """The highest value of each metric that it reported."""
    is_finished: bool


def trial_states(path: str, filesystem: Any) -> dict[str, TrialState]:
    """Return the state of each trial, by its id, of the search in the folder `path`.

    From `Trial`, which `ExperimentAnalysis` hands out and does not document. The public results read the files of
    reports, which begin anew where a search is resumed in another Ray: without this, earlier scores would be lost.
    """
    from ray.tune import ExperimentAnalysis

    return {
        trial.trial_id: TrialState(
            highest={name: float(values["max"]) for name, values in trial.metric_analysis.items()},
            is_finished=trial.is_finished(),
        )
        for trial in ExperimentAnalysis(path, storage_filesystem=filesystem).trials or ()
    }
