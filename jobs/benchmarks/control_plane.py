"""`control-plane` of `python jobs/benchmark.py`: the throughput of Ray's control plane on a cluster of many nodes.

The data path is that of training, with its blocks, order, split and worker group. Only the work inside a node is
replaced: decoding by a sleep of the measured time, and the step of a GPU likewise. So all nodes fit on one machine,
whose cores run nothing but Ray; a real cluster has more cores.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections import Counter, defaultdict
from typing import Any

import ray

from cluster.measurements import MEASURED
from cluster.plan import predicted_clips_per_second
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.benchmarks.support import sleeping_decoder
from jobs.benchmarks.support.delivery import Delivery, deliver, steady_rate
from jobs.benchmarks.support.fixtures import NUM_FRAMES, SIZE_PX, cores
from jobs.benchmarks.support.local_cluster import running_cluster
from jobs.benchmarks.support.processes import MARKER, cpu_seconds, sampled
from jobs.benchmarks.support.sleeping_decoder import Sleeping

DECODERS_PER_NODE = 4
STORE_BYTES = 200 * 2**20
SETTINGS = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_kill_idle_workers_interval_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "10",
    "RAY_memory_monitor_refresh_ms": "0",
}
"""Settings of this Ray, whose hundred processes start on two cores, and stay. A node's own monitoring (of processes,
memory and logs) is switched off: for 32 nodes it took 1.4 of the two cores, while real nodes have their own."""
SAMPLE_SECONDS = 5.0
CLIPS_PER_RANK = 16
"""Clips of a rank per step."""
DECODE_SECONDS = next(row.decode_seconds_per_clip for row in MEASURED if row.uses_ray)
RATES = (25, 50, 75, 100, 150, 200, 300, 400, 500)
"""Clips per second that the cluster's GPUs could train; one measurement per rate."""
SINGLE = ("SplitCoordinator", "gcs_server", "TrainController", "DatasetManager")
"""Processes that a run or a cluster has only one of, whatever the number of nodes. `one_core_at` is the rate, in clips
per second, at which each would saturate a core."""
ENOUGH = 0.90
"""Share of the planned rate below which a rate counts as failed."""


def sleeping_source(num_ranks: int) -> Sleeping:
    """Return a source of clips of 8 frames of 224 px, each of which takes the measured time of decoding."""
    nothing: dict[str, Any] = {"manifest_path": "", "split": "", "decoder": "", "seed": 0, "plan": None}
    sizes: dict[str, Any] = {"num_frames": NUM_FRAMES, "frame_size_px": SIZE_PX, "batch": num_ranks * CLIPS_PER_RANK}
    return Sleeping(**nothing, **sizes, seconds_per_clip=DECODE_SECONDS)


def measure(rate: float, source: Sleeping, num_decoders: int, seconds: float, marker: str) -> dict[str, Any]:
    """Return the clips per second of all ranks, whose steps could train `rate`, and the cores used by process."""
    num_steps = max(20, round(rate * seconds / source.batch))
    with tempfile.TemporaryDirectory() as folder, sampled(lambda: cpu_seconds(marker), SAMPLE_SECONDS) as samples:
        step_seconds = source.batch / rate
        ranks = deliver(
            Delivery(source=source, num_steps=num_steps, folder=folder, step_seconds=step_seconds),
            name="control-plane",
            num_ranks=source.batch // CLIPS_PER_RANK,
            cpus_each=1,
            decode_cpus=num_decoders,
            decode=sleeping_decoder.sleep_block,
        )
    planned = predicted_clips_per_second(
        decode_cores=num_decoders,
        decode_seconds_per_clip=source.seconds_per_clip,
        decode_efficiency=1.0,  # a sleeping decoder loses nothing to the other processes of its core
        gpu_clips_per_second=rate,
    )
    arrivals = [rank["arrivals"] for rank in ranks]
    delivered = sum(steady_rate(rank) for rank in arrivals)
    busy = cores_used(samples, max(rank[0][0] for rank in arrivals), min(rank[-1][0] for rank in arrivals))
    ratio = delivered / planned
    return {"asked": rate, "planned": planned, "delivered": delivered, "ratio": ratio, "cores_used": busy}


def cores_used(samples: list[tuple[float, Counter[str]]], start: float, end: float) -> dict[str, float]:
    """Return the cores that each kind of process kept busy between two times, the busiest first."""
    within = [sample for sample in samples if start <= sample[0] <= end]
    if len(within) < 2:
        return {}
    (first, before), (last, after) = within[0], within[-1]
    busy: defaultdict[str, float] = defaultdict(float)
    for kind in after | before:  # a decode process changes its name between two tasks
        is_decoder = kind == "IDLE" or kind.startswith("ReadRange")
        busy["decoders" if is_decoder else kind] += (after[kind] - before[kind]) / (last - first)
    return {kind: round(cores, 3) for kind, cores in sorted(busy.items(), key=lambda item: -item[1]) if cores >= 0.01}


def control_plane(
    rates: tuple[int, ...] = RATES, seconds: float = 30.0, num_train_nodes: int = 8, num_data_nodes: int = 23
) -> dict[str, Any]:
    """Return the clips per second that reach the ranks over the planner's prediction, at rates that rise until the
    first failure."""
    os.environ.update(WORKER_ENVIRONMENT | SETTINGS)
    os.environ[MARKER] = marker = os.urandom(8).hex()
    source, num_decoders, rows = sleeping_source(num_train_nodes), num_data_nodes * DECODERS_PER_NODE, []
    with running_cluster(data_cpus=DECODERS_PER_NODE, store_bytes=STORE_BYTES) as cluster:
        cluster.fill(num_train_nodes, num_data_nodes)
        with ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False):
            measure(rates[0], source, num_decoders, 10.0, marker)  # starts all processes once
            for rate in rates:
                rows.append(measure(rate, source, num_decoders, seconds, marker))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
                if rows[-1]["ratio"] < ENOUGH:
                    break
    best, last = [*rows[:1], *(row for row in rows if row["ratio"] >= ENOUGH)][-1], rows[-1]
    busy = last["cores_used"]
    return {
        "delivered_over_planned": best["ratio"],
        "clips_per_second": best["delivered"],
        "breaking_rate": last["asked"] if last["ratio"] < ENOUGH else None,
        "one_core_at": {kind: round(last["delivered"] / busy[kind]) for kind in SINGLE if kind in busy},
        "num_nodes": 1 + num_train_nodes + num_data_nodes,
        "num_decoders": num_decoders,
        "bytes_per_clip": source.num_frames * source.frame_size_px**2 * 3,
        "clips_per_block": source.steps_per_block(num_train_nodes) * CLIPS_PER_RANK,
        "decode_seconds_per_clip": source.seconds_per_clip,
        "cores": cores(),
        "rates": rows,
    }
