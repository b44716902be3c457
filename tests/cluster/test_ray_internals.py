"""What cluster/ray_internals.py uses of Ray is in the pinned Ray and has its effect; what only tunes may be absent."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import pickle
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data
from ray import cloudpickle, tune
from ray._common import constants
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray.autoscaler.v2 import utils as autoscaler_utils
from ray.data._internal.block_batching.iter_batches import BatchIterator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
    _CheckpointManagerState,
    _TrainingResultState,
)
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.train.v2.api.context import TrainContext
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.experimental import output
from ray.tune.impl import tuner_internal
from ray.tune.integration.ray_train import TuneReportCallback

from cluster import ray_internals
from cluster.ray_internals import METRICS_SECONDS, UnknownSnapshotError
from jobs.run import run_files


def written_by_ray(**changes: Any) -> Any:
    """A snapshot as the pinned Ray writes it."""
    first, second, pending = (
        _TrainingResultState(checkpoint_dir_name=f"checkpoint_{number}", metrics={"score": 0.1}) for number in range(3)
    )
    state = _CheckpointManagerState(
        checkpoint_results=[second, first],
        checkpoint_report_indices=[1, 0],
        latest_checkpoint_result=second,
        pending_training_results=[pending],
        pending_validation_specs=[True],
        current_report_index=2,
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    return json.loads(state.model_dump_json()) | changes


def test_the_snapshot_of_the_pinned_ray_is_understood() -> None:
    assert train_constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME == ray_internals.SNAPSHOT == run_files.SNAPSHOT
    assert ray_internals.latest_checkpoint(written_by_ray()) == "checkpoint_1"
    assert ray_internals.referenced_checkpoints(written_by_ray()) == {f"checkpoint_{number}" for number in range(3)}
    assert ray_internals.latest_checkpoint(written_by_ray(latest_checkpoint_result=None)) is None
    name = StorageContext.make_default_checkpoint_dir_name()
    assert name.startswith(run_files.CHECKPOINT_PREFIX)
    assert name != StorageContext.make_default_checkpoint_dir_name()  # no leftover is written to again


@pytest.mark.parametrize("key", ["ray_version", "checkpoint_results", "pending_training_results"])
def test_a_snapshot_without_a_key_says_nothing_of_what_may_go(key: str) -> None:
    snapshot = written_by_ray()
    del snapshot[key]
    with pytest.raises(UnknownSnapshotError, match=f"the key '{key}' was expected and is missing"):
        ray_internals.referenced_checkpoints(snapshot)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ray_version": "2.61.0"}, r"ray_version 2\.60\.\* was expected, got '2\.61\.0'"),
        ({"checkpoint_results": {}}, "lists of checkpoints were expected"),
        ({"latest_checkpoint_result": None}, "it names none"),
        ({"checkpoint_results": [{"version": 0, "path": "x"}]}, "the key 'checkpoint_dir_name' was expected"),
        (
            {"checkpoint_results": [{"version": 1, "checkpoint_dir_name": "x"}]},
            "checkpoints of version 0 were expected",
        ),
        ({"checkpoint_results": ["x"]}, "the key 'version' was expected"),
        ({"checkpoint_results": [{"version": 0, "checkpoint_dir_name": ""}]}, "a folder name was expected"),
    ],
)
def test_a_snapshot_of_another_shape_says_nothing_of_what_may_go(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownSnapshotError, match=words):
        ray_internals.referenced_checkpoints(written_by_ray(**changes))


def test_a_snapshot_without_the_last_checkpoint_or_cut_off_is_refused() -> None:
    with pytest.raises(UnknownSnapshotError, match="'latest_checkpoint_result' was expected"):
        ray_internals.latest_checkpoint({})
    with pytest.raises(UnknownSnapshotError, match="JSON was expected"):
        ray_internals.read_snapshot(json.dumps(written_by_ray())[:50].encode())


def test_a_rank_can_ask_where_its_checkpoints_lie() -> None:
    assert callable(TrainContext.get_storage)
    assert callable(StorageContext.build_checkpoint_path_from_name)
    assert "storage_filesystem" in inspect.getsource(StorageContext.__init__)


def test_a_rank_reads_what_it_was_told_of_its_nodes_without_asking_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(preemption_context=PreemptionContext())
    monkeypatch.setattr(train_context, "_train_context", context)
    assert "preemption_context" in inspect.getsource(RayTrainWorker.mark_preempt)
    assert not ray_internals.is_preempted()
    context.preemption_context.preemption_info = SimpleNamespace()
    assert ray_internals.is_preempted()
    monkeypatch.delattr(context, "preemption_context")
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    assert not ray_internals.is_preempted()


def test_ranks_prepare_before_their_process_group_is_made() -> None:
    config = ray_internals.torch_config("gloo", before_start=breakpoint)
    assert isinstance(config, TorchConfig)
    assert (config.backend, config.timeout_s) == ("gloo", TorchConfig().timeout_s)
    config = pickle.loads(cloudpickle.dumps(config))  # as it comes to the controller

    class Ranks:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def execute(self, function: Any, **_: Any) -> None:
            self.calls.append(function.__name__)
            if len(self.calls) > 1:
                raise RuntimeError("far enough")

        def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
            del rank, function
            return "10.0.0.1", 29500

    ranks = Ranks()
    with pytest.raises(RuntimeError, match="far enough"):
        config.backend_cls().on_start(ranks, config)
    assert ranks.calls == ["breakpoint", "set_env_vars"]


def test_batch_metrics_are_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchIterator, "UPDATE_METRICS_INTERVAL_S", 5.0)  # which fails if there is no such attribute
    ray_internals.throttle_batch_metrics()
    assert BatchIterator.UPDATE_METRICS_INTERVAL_S == METRICS_SECONDS
    assert "self.UPDATE_METRICS_INTERVAL_S" in inspect.getsource(BatchIterator)
    assert "self.UPDATE_METRICS_INTERVAL_S" in inspect.getsource(StreamingExecutor)


@pytest.mark.ray
def test_both_throttles_run_where_a_dataset_is_executed(local_ray: None) -> None:
    dataset = ray.data.range(4, override_num_blocks=4)
    before = list(ray.data.DataContext.get_current().custom_execution_callback_classes)
    ray_internals.throttle(dataset)
    hooks = dataset.context.custom_execution_callback_classes
    assert [hook.__name__ for hook in hooks[-2:]] == ["ThrottleScheduler", "ThrottleMetrics"]
    assert all(issubclass(hook, ExecutionCallback) for hook in hooks)
    assert ray.data.DataContext.get_current().custom_execution_callback_classes == before
    (scheduler, metrics) = (pickle.loads(cloudpickle.dumps(hook))() for hook in hooks[-2:])  # as they come to an actor
    executor = StreamingExecutor(dataset.context, "throttled")
    metrics.before_execution_starts(executor)
    assert executor.UPDATE_METRICS_INTERVAL_S == METRICS_SECONDS
    start = time.monotonic()
    for _ in range(2 * ray_internals.STEPS_AT_ONCE):
        scheduler.on_execution_step(executor)
    assert time.monotonic() - start > 0.9 * ray_internals.STEPS_AT_ONCE * ray_internals.STEP_SECONDS
    assert sorted(row["id"] for row in dataset.iter_rows()) == [0, 1, 2, 3]


def test_a_variable_is_propagated_to_the_processes_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        train_constants, "ENV_VARS_TO_PROPAGATE", set(train_constants.ENV_VARS_TO_PROPAGATE) - {"RAY_ADDRESS"}
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_ADDRESS" not in train_constants.get_env_vars_to_propagate()
    ray_internals.propagate_to_train("RAY_ADDRESS")
    assert train_constants.get_env_vars_to_propagate()["RAY_ADDRESS"] == "10.0.0.1:6379"


def test_what_only_tunes_may_be_absent_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray_internals._note_absence.cache_clear()
    monkeypatch.delattr(BatchIterator, "UPDATE_METRICS_INTERVAL_S")
    for module in ("ray.data._internal.execution.execution_callback", "ray.train.v2._internal.constants"):
        monkeypatch.setitem(sys.modules, module, None)
    dataset: Any = SimpleNamespace(context=SimpleNamespace(custom_execution_callback_classes=[]))
    for _ in range(2):
        ray_internals.throttle_batch_metrics()
        ray_internals.throttle(dataset)
        ray_internals.propagate_to_train("RAY_ADDRESS")
        ray_internals.ThrottleMetrics().before_execution_starts(SimpleNamespace())
    assert dataset.context.custom_execution_callback_classes == []
    assert not hasattr(BatchIterator, "UPDATE_METRICS_INTERVAL_S")
    words = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(":")[0].removeprefix("this Ray has no ") for text in words] == [
        "BatchIterator.UPDATE_METRICS_INTERVAL_S",
        "ExecutionCallback",
        "ENV_VARS_TO_PROPAGATE",
        "StreamingExecutor.UPDATE_METRICS_INTERVAL_S",
    ]


def test_what_workers_and_raylets_print_is_handed_over() -> None:
    heard: list[Any] = []
    printed = ray_worker.print_to_stdstream  # the name that the dispatcher and the listener for errors look up
    assert "partial(print_to_stdstream, ignore_prefix" in inspect.getsource(ray_worker.connect)
    assert "print_to_stdstream(" in inspect.getsource(ray_worker.listen_error_messages)
    undo = ray_internals.hand_worker_lines_to(heard.append)
    batch = {"lines": ["a line"], "pid": 7, "is_err": True}
    functools.partial(ray_worker.print_to_stdstream, ignore_prefix=False)(batch)
    ray_worker.print_to_stdstream(batch, ignore_prefix=False)
    undo()
    assert heard == [batch, batch]
    assert ray_worker.print_to_stdstream is printed


def test_what_the_autoscaler_tells_people_is_picked_out_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(autoscaler_utils, "is_autoscaler_v2", lambda: False)
    lines = ["== status ==", f"now {ray_constants.LOG_PREFIX_EVENT_SUMMARY}Resized to 8 CPUs.", "idle"]
    assert ray_internals.autoscaler_events(lines) == ["Resized to 8 CPUs."]
    assert ray_internals.autoscaler_events(["nothing"]) == []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert ray_internals.autoscaler_events(lines) == []


def test_the_logger_of_the_progress_bars_is_silenced() -> None:
    from ray.data._internal import progress

    progress.logger.setLevel(logging.NOTSET)
    ray_internals.silence_progress()
    assert progress.logger.level == logging.ERROR


def test_what_is_used_of_tune_is_there() -> None:
    assert {constants.HEAD_NODE_RESOURCE_NAME} == ray_internals.HEAD.keys()
    assert 'os.environ.get("RAY_AIR_NEW_OUTPUT"' in inspect.getsource(output)
    assert 'os.getenv("TUNE_GLOBAL_CHECKPOINT_S"' in inspect.getsource(tune_controller)
    assert tuner_internal._TUNER_PKL == "tuner.pkl"
    assert tune_controller.TuneController.CKPT_FILE_TMPL.startswith("experiment_state-")
    assert ray_internals.can_resume_search([tuner_internal._TUNER_PKL, "experiment_state-2026.json"])
    assert not ray_internals.can_resume_search([tuner_internal._TUNER_PKL])
    assert issubclass(TuneReportCallback, UserCallback)
    assert list(inspect.signature(TuneReportCallback.after_report).parameters)[1:] == [
        "run_context",
        "metrics",
        "checkpoint",
    ]
    assert "self.trials" in inspect.getsource(tune.ExperimentAnalysis)
    assert isinstance(Trial.metric_analysis, property)
    assert callable(Trial.is_finished)
