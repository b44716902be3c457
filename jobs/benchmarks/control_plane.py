"""`control-plane` of `python jobs/benchmark.py`: what Ray itself carries on a cluster of many nodes.

The data path is that of training, blocks, order, split and worker group included. Only what a node would do by itself
is replaced: decoding by sleeping as long as it was measured to take, and the step of a GPU likewise. So all nodes fit
on one machine, whose cores then run nothing but Ray; a real cluster has more of them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster import run as cluster_run
from cluster.measurements import MEASURED
from cluster.plan import predicted_clips_per_second
from jobs.benchmarks.data_path import NUM_FRAMES, SIZE_PX, cores, steady_rate
from jobs.benchmarks.support import sleeping_decoder
from jobs.benchmarks.support.local_cluster import running_cluster
from jobs.benchmarks.support.processes import MARKER, cpu_seconds, sampled
from jobs.benchmarks.support.sleeping_decoder import Sleeping
from pipeline.storage import upload_folder
from pipeline.stream.loader import clip_stream, in_plan_order

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
"""Of this Ray, whose hundred processes start on two cores, and stay. What a node does for itself on its own cores (it
looks at its processes, memory and logs) is left out: 32 times that took 1.4 of the two."""
SAMPLE_SECONDS = 5.0
CLIPS_PER_RANK = 16
"""Of a step."""
DECODE_SECONDS = next(one.decode_seconds_per_clip for one in MEASURED if one.uses_ray)
RATES = (25, 50, 75, 100, 150, 200, 300, 400, 500)
"""Clips per second that the GPUs of the cluster could train, one measurement each."""
SINGLE = ("SplitCoordinator", "gcs_server", "TrainController", "DatasetManager")
"""Processes that a run, or a cluster, has one of, however many nodes there are."""
ENOUGH = 0.90
"""Share of the planned rate below which a rate counts as broken."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """How large the cluster is, beside its head."""

    num_train: int = 8
    """Each with one rank."""
    num_data: int = 23

    @property
    def num_decoders(self) -> int:
        """Clips that are decoded at a time."""
        return self.num_data * DECODERS_PER_NODE


def sleeping_source(num_ranks: int) -> Sleeping:
    """Clips of 8 frames of 224 px, of which each takes as long as decoding one did."""
    return Sleeping(
        manifest_path="",
        split="",
        num_frames=NUM_FRAMES,
        frame_size_px=SIZE_PX,
        decoder="",
        seed=0,
        plan=None,
        batch=num_ranks * CLIPS_PER_RANK,
        seconds_per_clip=DECODE_SECONDS,
    )


@dataclass(frozen=True)
class Reception:
    """What each rank has to do."""

    source: Sleeping
    num_steps: int
    step_seconds: float
    folder: str


def receive(reception: Reception, runtime: cluster_run.Runtime) -> None:
    """On each rank: takes a step's clips, sleeps as long as the step would take, and writes down when."""
    source, world, arrivals = reception.source, runtime.world, []
    share = source.share(world.size)
    tables = runtime.tables("train", share)
    for table in in_plan_order(tables, start_step=0, rank=world.rank, num_ranks=world.size, share=share):
        time.sleep(reception.step_seconds)
        arrivals.append((time.perf_counter(), len(table)))
    Path(f"{reception.folder}/rank-{world.rank}.json").write_text(json.dumps(arrivals))


def delivered(rate: float, source: Sleeping, nodes: Nodes, seconds: float, marker: str) -> dict[str, Any]:
    """Clips per second of all ranks together, when their steps could take `rate`, and who used the cores meanwhile."""
    num_steps = max(20, round(rate * seconds / source.batch))
    workers = cluster_run.Workers(
        fewest=nodes.num_train,
        most=nodes.num_train,
        use_gpu=False,
        cpus_each=1,
        threads_each=1,
        decode_cpus=nodes.num_decoders,
        max_failures=0,
        num_kept_checkpoints=1,
    )
    with tempfile.TemporaryDirectory() as folder, sampled(lambda: cpu_seconds(marker), SAMPLE_SECONDS) as samples:
        cluster_run.run(
            receive,
            Reception(source, num_steps, source.batch / rate, folder),
            storage=cluster_run.Storage(path=folder, upload=upload_folder),
            name="control-plane",
            datasets={
                "train": lambda num_ranks: clip_stream(
                    source, start_step=0, stop_step=num_steps, num_ranks=num_ranks, decode=sleeping_decoder.sleep_block
                )
            },
            workers=workers,
        )
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    planned = predicted_clips_per_second(
        decode_cores=nodes.num_decoders,
        decode_seconds_per_clip=source.seconds_per_clip,
        decode_efficiency=1.0,  # who sleeps loses nothing to the other processes of a core
        gpu_clips_per_second=rate,
    )
    came = sum(steady_rate(arrivals) for arrivals in ranks)
    busy = cores_used(samples, max(one[0][0] for one in ranks), min(one[-1][0] for one in ranks))
    return {"asked": rate, "planned": planned, "delivered": came, "ratio": came / planned, "cores_used": busy}


def cores_used(samples: list[tuple[float, Counter[str]]], start: float, end: float) -> dict[str, float]:
    """Cores that each kind of process kept busy between two times, the busiest first."""
    within = [(when, of_workers(used)) for when, used in samples if start <= when <= end]
    if len(within) < 2:
        return {}
    (first, before), (last, after) = within[0], within[-1]
    busy = {kind: (after[kind] - before[kind]) / (last - first) for kind in after}
    return {kind: round(cores, 3) for kind, cores in sorted(busy.items(), key=lambda one: -one[1]) if cores >= 0.01}


def of_workers(used: Counter[str]) -> Counter[str]:
    """With what decodes as one kind: between two tasks such a process has another name."""
    total: Counter[str] = Counter()
    for kind, seconds in used.items():
        total["decoders" if kind == "IDLE" or kind.startswith("ReadRange") else kind] += seconds
    return total


def single_limits(found: dict[str, Any]) -> dict[str, float]:
    """Clips per second at which each process that a cluster has only one of would keep a core busy, by what it used."""
    return {
        kind: round(found["delivered"] / found["cores_used"][kind]) for kind in SINGLE if kind in found["cores_used"]
    }


def control_plane(
    rates: tuple[int, ...] = RATES, seconds: float = 30.0, num_train_nodes: int = 8, num_data_nodes: int = 23
) -> dict[str, Any]:
    """Clips per second that reach the ranks over what the planner says, at rates that rise until it breaks."""
    os.environ.update(cluster_run.WORKER_ENVIRONMENT | SETTINGS)
    os.environ[MARKER] = marker = os.urandom(8).hex()
    nodes = Nodes(num_train=num_train_nodes, num_data=num_data_nodes)
    source, found = sleeping_source(nodes.num_train), []
    with running_cluster(data_cpus=DECODERS_PER_NODE, store_bytes=STORE_BYTES, shows_logs=False) as cluster:
        cluster.fill(nodes.num_train, nodes.num_data)
        ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False)
        try:
            delivered(rates[0], source, nodes, 10.0, marker)  # all processes have started once
            for rate in rates:
                found.append(delivered(rate, source, nodes, seconds, marker))
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
                if found[-1]["ratio"] < ENOUGH:
                    break
        finally:
            ray.shutdown()
    held = [one for one in found if one["ratio"] >= ENOUGH]
    best = held[-1] if held else found[0]
    return {
        "delivered_over_planned": best["ratio"],
        "clips_per_second": best["delivered"],
        "breaking_rate": found[-1]["asked"] if found[-1]["ratio"] < ENOUGH else None,
        "one_core_at": single_limits(found[-1]),
        "num_nodes": 1 + nodes.num_train + nodes.num_data,
        "num_decoders": nodes.num_decoders,
        "bytes_per_clip": source.num_frames * source.frame_size_px**2 * 3,
        "clips_per_block": source.steps_per_block(nodes.num_train) * CLIPS_PER_RANK,
        "decode_seconds_per_clip": source.seconds_per_clip,
        "cores": cores(),
        "rates": found,
    }
