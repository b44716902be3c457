"""Prepares the corpus `small` on a cluster of two nodes, each with one CPU; prints its hash and the nodes that worked.

python tests/jobs/two_nodes.py ROOT OUT ANNOTATIONS …
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from jobs.corpus import probing
from jobs.corpus.preparation import PrepareConfig, prepare


def main() -> None:
    root, out, *annotations = sys.argv[1:]
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        probe = probing.probe_batch

        def probe_and_tell(batch: pa.Table, **settings: Any) -> pa.Table:
            with open(f"{out}.nodes", "a") as file:
                file.write(ray.get_runtime_context().get_node_id() + "\n")
            return probe(batch, **settings)

        probing.probe_batch = probe_and_tell
        done = prepare(PrepareConfig(corpus="small", root=root, out=out, annotations=tuple(annotations)))
    finally:
        ray.shutdown()
        cluster.shutdown()
    with open(f"{out}.nodes") as file:
        nodes = set(file.read().split())
    print(json.dumps({"hash": done.manifest_hash, "num_nodes": len(nodes)}))


if __name__ == "__main__":
    main()
