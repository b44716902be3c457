"""Run one function on every rank of a Ray Train worker group. The only file that imports ray.train."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.train
import torch
from ray.train import CheckpointConfig, DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.world import World, make_world

DATA_NODES = {"ray-subcluster": "data"}
"""Label of the nodes that decode, on clusters that have such nodes."""
AUTOSCALING = "SNPS3_AUTOSCALING"
"""Environment variable that is 1 where nodes come when they are asked for: what is there at the start then says nothing
(cluster/runtime_env.yaml)."""
CHECKPOINT_METRIC = "score"
WORKER_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
"""Of every process of a run: one line of progress of our own, and nobody is told. The features of a batch are megabytes
each and live for a moment; glibc would ask the kernel for fresh pages each time, about a tenth of a step on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The worker group that is asked for."""

    count: int
    use_gpu: bool
    cpus_each: float
    threads_each: int
    decode_cpus: int
    max_failures: int
    num_kept_checkpoints: int


@dataclass(frozen=True)
class Runtime:
    """What the function on a rank gets from Ray, and all it knows of it."""

    world: World

    def tables(self, dataset: str, share: int) -> Iterator[pa.Table]:
        """This rank's shares of a dataset, step by step."""
        iterator = ray.train.get_dataset_shard(dataset)
        assert iterator is not None, f"no dataset named {dataset} was handed to the trainer"
        yield from iterator.iter_batches(batch_size=share, batch_format="pyarrow", prefetch_batches=2)

    def report(self, score: float, step: int, folder: str | None) -> None:
        """Commit the checkpoint in `folder` (None on all ranks but the first). A barrier over all ranks."""
        checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report({CHECKPOINT_METRIC: score, "step": step}, checkpoint=checkpoint)

    @contextlib.contextmanager
    def restored(self) -> Iterator[str | None]:
        """A local folder with the last committed checkpoint, or None at the start of a run."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield folder


def run(
    function: Callable[[Any, Runtime], None],
    config: Any,
    *,
    storage: str,
    name: str,
    datasets: Mapping[str, Callable[[], ray.data.Dataset]],
    workers: Workers,
) -> None:
    """`function(config, runtime)` on every rank, started again from the last checkpoint when a worker is lost."""
    refuse_without_cpus(workers)

    def on_each_rank(_: dict[str, Any]) -> None:
        torch.set_num_threads(workers.threads_each)
        world = make_world(f"cuda:{ray.train.get_context().get_local_rank()}" if workers.use_gpu else "cpu")
        function(config, Runtime(world))

    TorchTrainer(
        on_each_rank,
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_each} | ({"GPU": 1} if workers.use_gpu else {}),
        ),
        dataset_config=DataConfig(execution_options=ingest_options(workers)),
        datasets=dict(datasets),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=workers.num_kept_checkpoints, checkpoint_score_attribute=CHECKPOINT_METRIC
            ),
        ),
    ).fit()


def ingest_options(workers: Workers) -> ray.data.ExecutionOptions:
    """In order, on `decode_cpus` CPUs, on the data nodes where there are some."""
    options = ray.data.ExecutionOptions(preserve_order=True)
    options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=workers.decode_cpus)
    if grows() or any(DATA_NODES.items() <= node.get("Labels", {}).items() for node in ray.nodes()):
        options.label_selector = DATA_NODES
    return options


def grows() -> bool:
    """Whether nodes come when they are asked for; Ray itself does not tell a job."""
    return os.environ.get(AUTOSCALING) == "1"


def refuse_without_cpus(workers: Workers) -> None:
    """ValueError with the sum when training would leave no CPU for decoding, which Ray answers with a hang.

    A cluster that grows is not judged by the nodes it has now.
    """
    if grows():
        return
    have = ray.cluster_resources()
    training, total = workers.count * workers.cpus_each, have.get("CPU", 0)
    if training + workers.decode_cpus > total:
        raise ValueError(
            f"{workers.count} train workers × {workers.cpus_each:g} CPU + {workers.decode_cpus} CPU for decoding = "
            f"{training + workers.decode_cpus:g} CPUs, but the cluster has {total:g}. Lower placement.num_workers, "
            "placement.cpus_per_worker or placement.decode_cpus, or add CPUs; on a cluster that grows, submit with "
            "cluster/runtime_env.yaml"
        )
    if workers.use_gpu and workers.count > have.get("GPU", 0):
        raise ValueError(
            f"{workers.count} train workers need as many GPUs, but the cluster has {have.get('GPU', 0):g}; "
            "lower placement.num_workers or set placement.use_gpu to False"
        )
