"""Joining a Ray: the one that is there, or one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

import ray

ADDRESS = "RAY_ADDRESS"
"""Environment variable that names a Ray."""


def room(num_cpus: float, num_gpus: float) -> int:
    """How many of what takes so many CPUs and GPUs the connected cluster can hold now; at least one."""
    have = ray.cluster_resources()
    held = [have.get("CPU", 0) / num_cpus, *([have.get("GPU", 0) / num_gpus] if num_gpus else [])]
    return max(1, int(min(held)))


def spans_machines() -> bool:
    """Whether the connected cluster has nodes on several machines."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1


@contextlib.contextmanager
def connected_ray(
    *, worker_environment: Mapping[str, str] | None = None, is_watched: bool = False, num_cpus: int | None = None
) -> Iterator[None]:
    """Ray is connected: as it is already, to the cluster of `RAY_ADDRESS` (as in `ray job submit`), or to our own.

    What is connected here is left at the end. `RAY_AUTH_MODE` is the caller's to choose, before Ray is imported.
    `is_watched`: what workers print is shown, and a Ray of our own has its dashboard.
    `num_cpus`: of a Ray of our own, by default as many as there are.
    """
    if ray.is_initialized():
        with _address_told():
            yield
        return
    address = os.environ.get(ADDRESS, "local")
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


@contextlib.contextmanager
def _address_told() -> Iterator[None]:
    """`RAY_ADDRESS` names the Ray that is connected, for what is started meanwhile. What connects once more within it,
    in threads too, finds the address there and leaves it."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ADDRESS, None)
        else:
            os.environ[ADDRESS] = before
