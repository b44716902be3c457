"""A cluster of several nodes on one machine, for measurements and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray.cluster_utils

from cluster.head import free_ports
from cluster.rank_datasets import DATA_NODES

START_SECONDS = 300.0
"""Time limit for the concurrent start of many nodes."""


@dataclass
class LocalCluster:
    """A head without CPUs, nodes that train and nodes that decode."""

    cluster: Any
    data_cpus: int
    store_bytes: int
    train_nodes: list[Any] = field(default_factory=list)
    data_nodes: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address of its control store."""
        return self.cluster.address

    def fill(self, num_train: int = 1, num_data: int = 1) -> None:
        """Add nodes of both kinds up to the given numbers."""
        # nodes on one machine share a log folder, which the head's monitor follows: further monitors would repeat lines
        common = {"object_store_memory": self.store_bytes, "include_log_monitor": False, "wait": False}
        while len(self.train_nodes) < num_train:
            self.train_nodes.append(self.cluster.add_node(num_cpus=1, **common))
        while len(self.data_nodes) < num_data:
            self.data_nodes.append(self.cluster.add_node(num_cpus=self.data_cpus, labels=dict(DATA_NODES), **common))
        self.cluster.wait_for_nodes(START_SECONDS)

    def kill(self, nodes: list[Any], node: Any) -> None:
        """Kill a node without notice."""
        nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def running_cluster(*, data_cpus: int = 1, store_bytes: int = 100 * 2**20) -> Iterator[LocalCluster]:
    """Run a cluster within the context, and end all its processes.

    `data_cpus`: of each node that decodes; a node that trains has one. `store_bytes`: size of each object store.
    """
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": 150 * 2**20,
            "include_dashboard": True,  # without it Ray Train does not free the resources of a killed driver
            "dashboard_port": free_ports(1)[0],
        },
    )
    try:
        yield LocalCluster(cluster, data_cpus, store_bytes)
    finally:
        cluster.shutdown()
