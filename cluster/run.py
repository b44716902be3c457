"""Run one function on every rank of a Ray Train worker group.

DatasetsForRanks ──number of ranks──► datasets built for it, from the last committed step
fit() ──► controller ──► worker group ──► function(config, runtime) on every rank
              ▲   │ lost worker or node, resize: a new group          │ report(checkpoint)
              │   └──────────── on_loss(causes by rank)               │ upload in a thread, one at a time
              └──────────── committed ◄───────────────────────────────┘
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.util
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from cluster import network, ray_internals
from cluster.connection import ADDRESS
from cluster.rank_datasets import NOT_DATA_NODES, DatasetsForRanks, Workers, grows, has_data_nodes, no_rows
from cluster.worker_lines import say_warnings
from cluster.world import World, make_world

CHECKPOINT_METRIC = "score"
log = logging.getLogger(__name__)


class LostError(RuntimeError):
    """The run has lost its workers more often than `max_failures` allows."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where Ray Train writes a run's folder."""

    path: str
    """Path inside `filesystem`."""
    upload: Callable[[str, str], None]
    """Upload a local folder to the named folder of the run."""
    filesystem: Any = None
    """A file system of Arrow; None: local disk, which all nodes share."""


class Runtime:
    """The function's only interface to Ray on a rank."""

    def __init__(self, world: World, upload: Callable[[str, str], None]) -> None:
        self.world, self.upload = world, upload
        self._is_uploaded = threading.Event()
        self._is_uploaded.set()

    def open(self, datasets: Sequence[str]) -> None:
        """Start the split process of each dataset now: at first use they would start one by one, each taking seconds.

        A barrier over all ranks.
        """
        for name in datasets:
            shard(name)

    def tables(self, dataset: str, share: int) -> Iterator[pa.Table]:
        """Yield this rank's share of a dataset, `share` rows per step."""
        ray_internals.throttle_batch_metrics()
        # only 1: before the first batch, Ray waits for one more block than it prefetches
        yield from shard(dataset).iter_batches(batch_size=share, batch_format="pyarrow", prefetch_batches=1)

    def report(self, score: float, step: int, write: Callable[[str], None] | None, probes: Mapping[str, float]) -> None:
        """Commit the folder that `write` fills (None on all ranks but the first) and report `probes` to the watchers.

        A barrier over all ranks. Return when the checkpoint is written on this machine. The upload runs in the
        background and commits the checkpoint at its end; the next one waits for it, so at most one copy is kept here.
        """
        metrics = {CHECKPOINT_METRIC: score, "step": step, **probes}
        if write is None:
            ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        self._is_uploaded.wait()
        folder = tempfile.mkdtemp(prefix="checkpoint-")
        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._is_uploaded.clear()
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._uploaded,
            delete_local_checkpoint_after_upload=True,
        )

    def _uploaded(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Upload the local folder `checkpoint` as the folder `name` of the run; return the uploaded checkpoint."""
        try:
            self.upload(checkpoint.path, name)
        except BaseException as error:
            log.warning("the upload of %s failed, so the one before it counts: %s", name, error)
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            raise
        finally:
            self._is_uploaded.set()
        return ray_internals.stored_checkpoint(name)

    def is_preempted(self) -> bool:
        """Return whether Ray has announced to this rank the preemption of a node of its group."""
        return ray_internals.is_preempted()

    @contextlib.contextmanager
    def restored(self) -> Iterator[str | None]:
        """Yield a local folder with the last committed checkpoint, or None at the start of a run."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield folder


def shard(dataset: str) -> ray.data.DataIterator:
    """Return the iterator over this rank's part of a dataset."""
    iterator = ray.train.get_dataset_shard(dataset)
    assert iterator is not None, f"no dataset named {dataset} was handed to the trainer"
    return iterator


@dataclass(frozen=True)
class OnLoss(UserCallback):
    """Call `listener` with the exceptions of lost ranks, in the process that restarts them."""

    listener: Callable[[Mapping[int, Exception]], None]

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self.listener(worker_exceptions)


def run(
    function: Callable[[Any, Runtime], None],
    config: Any,
    *,
    storage: Storage,
    name: str,
    datasets: Mapping[str, Callable[[int], ray.data.Dataset]],
    workers: Workers,
    on_loss: Callable[[Mapping[int, Exception]], None] | None = None,
    watchers: Sequence[UserCallback] = (),
) -> None:
    """Run `function(config, runtime)` on every rank; restart from the last checkpoint when a worker is lost.

    `datasets`: builders by name; each returns, for a number of ranks, the dataset that the ranks share.
    `on_loss`: called with the exceptions of lost ranks, by rank. `watchers`: called with each report.
    Raise LostError when workers are lost more than `workers.max_failures` times, or cannot be started at all.
    """
    refuse_without_cpus(workers)
    ray_internals.propagate_to_train(ADDRESS)

    def on_each_rank(_: dict[str, Any]) -> None:
        say_warnings()
        torch.set_num_threads(workers.threads_each)
        world = make_world(f"cuda:{ray.train.get_context().get_local_rank()}" if workers.use_gpu else "cpu")
        function(config, Runtime(world, storage.upload))

    trainer = TorchTrainer(
        on_each_rank,
        torch_config=ray_internals.torch_config("nccl" if workers.use_gpu else "gloo", bind_to_rays_interface),
        scaling_config=ScalingConfig(
            num_workers=workers.fewest if workers.fewest == workers.most else (workers.fewest, workers.most),
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_each} | ({"GPU": 1} if workers.use_gpu else {}),
            elastic_resize_monitor_interval_s=workers.resize_seconds,
            label_selector=NOT_DATA_NODES if has_data_nodes() and not workers.use_gpu else None,
        ),
        dataset_config=DatasetsForRanks(datasets, workers),
        datasets=dict.fromkeys(datasets, no_rows),
        run_config=run_config(name, storage, workers, [*([OnLoss(on_loss)] if on_loss else []), *watchers]),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = "; ".join(f"rank {rank}: {last_line(cause)}" for rank, cause in error.worker_failures.items())
        raise LostError(
            f"workers were lost more than {workers.max_failures} times, at last {causes}. The same command goes on "
            "from the last checkpoint"
        ) from error


def run_config(name: str, storage: Storage, workers: Workers, callbacks: list[UserCallback]) -> RunConfig:
    """Return the configuration of Ray Train: where it writes, how often it restarts, which checkpoints it keeps."""
    return RunConfig(
        name=name,
        storage_path=storage.path,
        storage_filesystem=storage.filesystem,
        logging_config=LoggingConfig(log_level="WARNING"),
        failure_config=FailureConfig(max_failures=workers.max_failures),
        callbacks=callbacks,
        checkpoint_config=CheckpointConfig(
            num_to_keep=workers.num_kept_checkpoints, checkpoint_score_attribute=CHECKPOINT_METRIC
        ),
    )


def bind_to_rays_interface() -> None:
    """Exchange gradients over the interface through which Ray reaches this rank."""
    network.bind_to_interface_of(ray.util.get_node_ip_address())


def last_line(error: BaseException) -> str:
    """Return the last line of an exception, without the traceback that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def refuse_without_cpus(workers: Workers) -> None:
    """Raise ValueError with the sum if training would leave no CPU for decoding: Ray would hang.

    Skip the check on a cluster that grows, whose present nodes are not its limit.
    """
    if grows():
        return
    have = ray.cluster_resources()
    training, total = workers.fewest * workers.cpus_each, have.get("CPU", 0)
    if training + workers.decode_cpus > total:
        raise ValueError(
            f"{workers.fewest} train workers × {workers.cpus_each:g} CPU + {workers.decode_cpus} CPU for decoding = "
            f"{training + workers.decode_cpus:g} CPUs, but the cluster has {total:g}. Lower placement.num_workers, "
            "placement.cpus_per_worker or placement.decode_cpus, or add CPUs; on a cluster that grows, submit with "
            "cluster/runtime_env.yaml"
        )
    if workers.use_gpu and workers.fewest > have.get("GPU", 0):
        raise ValueError(
            f"{workers.fewest} train workers need as many GPUs, but the cluster has {have.get('GPU', 0):g}; "
            "lower placement.num_workers or set placement.use_gpu to False"
        )
