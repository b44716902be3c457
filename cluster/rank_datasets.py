"""The datasets that the ranks of a worker group share, and the nodes that decode them.

Ray Train builds them in a separate process for each worker group. Nothing here imports torch, which would cost that
process more than all its work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.train import DataConfig

from cluster import ray_internals

DATA_NODES = {"ray-subcluster": "data"}
"""Label of the nodes for decoding, on clusters that have such nodes."""
AUTOSCALING = "SNPS3_AUTOSCALING"
"""Environment variable that is 1 on an autoscaling cluster, whose nodes at the start say nothing about its capacity
(cluster/runtime_env.yaml)."""
NOT_DATA_NODES = {key: f"!{value}" for key, value in DATA_NODES.items()}
"""Label selector that keeps workers which train on CPUs off the data nodes: they would leave no CPU for decoding."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The worker group to start."""

    fewest: int
    most: int
    """If more than `fewest`, the group is elastic: it has as many workers as fit, and restarts when that changes."""
    use_gpu: bool
    cpus_each: float
    threads_each: int
    decode_cpus: int
    max_failures: int
    num_kept_checkpoints: int
    resize_seconds: float = 60.0
    """Pause between two checks of whether to resize an elastic group."""


class DatasetsForRanks(DataConfig):
    """Build the datasets when a worker group starts, for as many ranks as it has, and throttle their execution."""

    def __init__(self, builders: Mapping[str, Callable[[int], ray.data.Dataset]], workers: Workers) -> None:
        super().__init__(execution_options=ingest_options(workers.decode_cpus))
        self.builders = dict(builders)

    def configure(self, datasets: dict[str, Any], world_size: int, *rest: Any, **options: Any) -> list[dict[str, Any]]:
        built = {name: self.builders[name](world_size) for name in datasets}
        for dataset in built.values():
            ray_internals.throttle(dataset)
        return super().configure(built, world_size, *rest, **options)


def no_rows() -> ray.data.Dataset:
    """Return a placeholder for a dataset until the number of ranks is known."""
    return ray.data.range(0)


def ingest_options(decode_cpus: int) -> ray.data.ExecutionOptions:
    """Return options to decode in order, on `decode_cpus` CPUs, on the data nodes if there are any."""
    options = ray.data.ExecutionOptions(preserve_order=True)
    options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=decode_cpus)
    if has_data_nodes():
        options.label_selector = DATA_NODES
    return options


def has_data_nodes() -> bool:
    """Return whether the cluster has nodes for decoding only, or adds them on demand."""
    return grows() or any(DATA_NODES.items() <= node.get("Labels", {}).items() for node in ray.nodes() if node["Alive"])


def grows() -> bool:
    """Return whether the cluster autoscales; Ray itself does not tell a job."""
    return os.environ.get(AUTOSCALING) == "1"
