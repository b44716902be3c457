"""Gauges that Ray exports to Prometheus, one set per rank; `cluster/grafana.json` is their dashboard."""

from __future__ import annotations

import functools
import resource

import ray
import torch
from ray.util.metrics import Gauge

GAUGES = {
    "step": "optimizer steps done",
    "loss": "total loss of the global batch",
    "clips_per_second": "clips of the global batch per second",
    "data_wait_share": "share of the time between two logged steps that this rank waited for clips",
    "seconds_per_step": "time of a step, waiting included",
    "rejected": "clips that could not be decoded, since this group of workers started",
    "store_retries": "how often an object store had to be asked again, since this group of workers started",
    "memory_mib": "most memory that this rank has had so far",
    "gpu_memory_mib": "most GPU memory that this rank has had so far",
}
"""Name → description of each gauge. In Prometheus it is called ray_snps3_NAME."""


@functools.cache
def gauge(name: str) -> Gauge:
    """Return the gauge of a name in `GAUGES`."""
    return Gauge(f"snps3_{name}", description=GAUGES[name], tag_keys=("run", "rank"))


def publish(values: dict[str, float], run: str, rank: int) -> None:
    """Set the gauges to `values` (name in `GAUGES` → value). Do nothing if Ray is not initialized."""
    if ray.is_initialized():
        for name, value in values.items():
            gauge(name).set(value, {"run": run, "rank": str(rank)})


def memory_mib() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def gpu_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process's tensors on `device`, in MiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
