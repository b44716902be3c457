"""Connection to Ray: an existing cluster, or a local one that this process starts."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping

import ray

from cluster import ray_internals
from cluster.worker_lines import Listener

GIVEN_BACK_SECONDS = 15.0
log = logging.getLogger(__name__)
ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a Ray cluster."""


def num_that_fit_now(num_cpus: float, num_gpus: float) -> int:
    """Return how many jobs of `num_cpus` and `num_gpus` each fit into the free resources of the connected cluster, at
    least one. Wait some seconds for resources that Ray still takes back from a driver that has ended."""
    whole = num_that_fit(ray.cluster_resources(), num_cpus, num_gpus)
    deadline = time.monotonic() + GIVEN_BACK_SECONDS
    while (free := num_that_fit(ray.available_resources(), num_cpus, num_gpus)) < whole and time.monotonic() < deadline:
        time.sleep(0.5)
    return max(1, free)


def num_concurrent(wanted: int | None, num_cpus: float, num_gpus: float, *, grows: bool) -> int:
    """Return how many jobs of `num_cpus` and `num_gpus` each run concurrently: `wanted`, or as many as fit.

    Raise ValueError if the connected cluster cannot hold `wanted` and does not grow: they would wait for each other.
    """
    if wanted is None:
        return num_that_fit_now(num_cpus, num_gpus)
    most = num_that_fit(ray.cluster_resources(), num_cpus, num_gpus)
    if wanted > max(1, most) and not grows:
        gpus = f" and {num_gpus:g} GPUs" if num_gpus else ""
        raise ValueError(
            f"num_at_once={wanted}, but there is room for {max(1, most)}, of {num_cpus:g} CPUs{gpus} each; leave it out"
        )
    return wanted


def num_that_fit(have: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    """Return how many jobs of `num_cpus` and `num_gpus` each fit into these resources."""
    return int(min(have.get("CPU", 0) / num_cpus, *([have.get("GPU", 0) / num_gpus] if num_gpus else [math.inf])))


def spans_machines() -> bool:
    """Return whether the connected cluster has nodes on several machines."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1


@contextlib.contextmanager
def connected_ray(
    *, worker_environment: Mapping[str, str] | None = None, is_watched: bool = False, num_cpus: int | None = None
) -> Iterator[None]:
    """Keep Ray connected within the context: reuse a connection, else join `RAY_ADDRESS` (as `ray job submit` sets it),
    else start a local Ray.

    Disconnect at the end only what was connected here. The caller sets `RAY_AUTH_MODE` before it imports Ray.
    `is_watched`: log what workers print, show the lines that they address to people, and give a local Ray its
    dashboard. `num_cpus`: CPUs of a local Ray, by default all of the machine.
    """
    ray_internals.silence_progress()
    if ray.is_initialized():
        with _address_told():
            yield
        return
    address = os.environ.get(ADDRESS, "local")
    log.info("joining the Ray at %s", address)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    hear_no_more = ray_internals.hand_worker_lines_to(Listener())
    ray.init(
        address=address,
        num_cpus=num_cpus if address == "local" else None,
        include_dashboard=is_watched if address == "local" else None,
        log_to_driver=is_watched,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": dict(worker_environment)} if worker_environment else None,
    )
    try:
        with _address_told():
            yield
    finally:
        ray.shutdown()
        hear_no_more()


@contextlib.contextmanager
def _address_told() -> Iterator[None]:
    """Set `RAY_ADDRESS` to the connected Ray for processes started within the context. A nested connection, in a
    thread too, sees the address already set and restores the same value."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ADDRESS, None)
        else:
            os.environ[ADDRESS] = before
