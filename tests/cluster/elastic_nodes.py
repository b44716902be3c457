"""Decodes with Ray Data on a cluster without workers; prints which nodes came, which decoded, and whether they went.

Then asks for a GPU and has its node drained, as after a spot notice.

python tests/cluster/elastic_nodes.py ADDRESS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import ray
from ray._private.state import state

from cluster.rank_datasets import DATA_NODES
from cluster.spot_notice import drain

WAIT_SECONDS = 60
NOTICE_SECONDS = 50


def role(node: dict[str, Any]) -> str:
    """`head`, `decode` by its label, `gpu` by its resources."""
    if "node:__internal_head__" in node["Resources"]:
        return "head"
    if DATA_NODES.items() <= node["Labels"].items():
        return "decode"
    return "gpu" if node["Resources"].get("GPU") else "unknown"


def node_counts() -> dict[str, int]:
    """Role → nodes that are alive, the head left out."""
    roles = Counter(role(node) for node in ray.nodes() if node["Alive"])
    return {name: count for name, count in roles.items() if name != "head"}


def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch, a second later, with the node that it was on."""
    time.sleep(1.0)
    return batch | {"node": np.full(len(batch["id"]), ray.get_runtime_context().get_node_id())}


def decoded_on() -> list[str]:
    """The roles of the nodes that decoded until two of them did, each once."""
    ray.data.DataContext.get_current().execution_options.label_selector = DATA_NODES
    blocks = ray.data.range(WAIT_SECONDS, override_num_blocks=WAIT_SECONDS).map_batches(decode, num_cpus=1)
    nodes: set[str] = set()
    for batch in blocks.iter_batches(batch_size=1):
        nodes |= set(batch["node"])
        if len(nodes) == 2:
            break
    roles = {node["NodeID"]: role(node) for node in ray.nodes()}
    return sorted({roles[node] for node in nodes})


def until(wanted: dict[str, int]) -> bool:
    """Whether the nodes became what is wanted."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if node_counts() == wanted:
            return True
        time.sleep(0.3)
    return False


def main() -> None:
    ray.init(address=sys.argv[1], log_to_driver=False)
    seen: list[dict[str, int]] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.3):
            if (now := node_counts()) != (seen[-1] if seen else None):
                seen.append(now)

    start = time.monotonic()
    threading.Thread(target=look, daemon=True).start()
    time.sleep(1.0)
    result: dict[str, Any] = {"where": decoded_on(), "decode_seconds": time.monotonic() - start}
    result["is_empty_again"] = until({})
    result["while_decoding"] = list(seen)
    training = ray.remote(num_gpus=1, num_cpus=0, max_retries=0)(lambda: time.sleep(WAIT_SECONDS)).remote()
    until({"gpu": 1})
    result["when_a_gpu_is_asked_for"] = node_counts()
    (gpu,) = [node["NodeID"] for node in ray.nodes() if role(node) == "gpu" and node["Alive"]]
    drain(sys.argv[1], NOTICE_SECONDS, node_id=gpu)
    result["seconds_left"] = {
        node == gpu: end_ms / 1000 - time.time() for node, end_ms in state.get_draining_nodes().items()
    }
    ray.cancel(training, force=True)
    is_over.set()
    result["seconds"] = time.monotonic() - start
    print(json.dumps(result))


if __name__ == "__main__":
    main()
