"""Safety of a run's folder: `python jobs/benchmark.py lease [--storage s3://bucket/folder]`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

from cluster.ray_internals import SNAPSHOT
from jobs import ROOT
from jobs.launch.lease import LEASE, held
from jobs.run.run_files import remove_uncommitted_checkpoints
from pipeline import storage as store

DRIVER = "import sys, time\nfrom jobs.launch.lease import held\nwith held(sys.argv[1]): time.sleep(3600)"
"""Program of a driver's use of its run's folder, without Ray."""
RESULT = {"version": 0, "checkpoint_dir_name": "checkpoint_1", "metrics": {}}
KNOWN = {
    "ray_version": "2.60.0",
    "checkpoint_results": [RESULT],
    "pending_training_results": [],
    "latest_checkpoint_result": RESULT,
}
UNKNOWN: dict[str, bytes | None] = {
    "missing": None,
    "cut off": json.dumps(KNOWN).encode()[:40],
    "another version": json.dumps(KNOWN | {"ray_version": "3.0.0"}).encode(),
    **{f"without {key}": json.dumps({k: v for k, v in KNOWN.items() if k != key}).encode() for key in KNOWN},
    "another schema": json.dumps(KNOWN | {"checkpoint_results": [RESULT | {"version": 1}]}).encode(),
    "renamed": json.dumps(KNOWN | {"checkpoint_results": [{"version": 0, "folder": "checkpoint_1"}]}).encode(),
}


def lease(storage: str = "") -> dict[str, Any]:
    """Count checkpoints that are deleted because of unknown snapshots, and time a second driver during and after the
    life of the first.

    `storage`: a folder or bucket, by default a local folder.
    """
    with contextlib.ExitStack() as stack:
        folder = storage or stack.enter_context(tempfile.TemporaryDirectory())
        root = f"{store.absolute(folder)}/lease-{uuid.uuid4().hex[:8]}"
        stack.callback(store.remove_folder, root)
        deleted = [num_deleted(f"{root}/{number}", content) for number, content in enumerate(UNKNOWN.values())]
        num_known = num_deleted(f"{root}/known", json.dumps(KNOWN).encode())
        with live_driver(f"{root}/run") as driver:
            start = time.monotonic()
            refusal = refused(f"{root}/run")
            refusal_seconds = time.monotonic() - start
            driver.kill()
            driver.wait()
            start = time.monotonic()
            with held(f"{root}/run"):
                takeover_seconds = time.monotonic() - start
        return {
            "unknown_snapshot_deleted": sum(deleted),
            "unknown_snapshots": list(UNKNOWN),
            "known_snapshot_deleted": num_known,
            "second_driver_refused": f"process {driver.pid}" in refusal and "take another --name" in refusal,
            "refusal": refusal,
            "refusal_seconds": refusal_seconds,
            "takeover_seconds": takeover_seconds,
        }


def num_deleted(run_folder: str, snapshot: bytes | None) -> int:
    """Return how many of two checkpoints are deleted by a start with a snapshot, which may reference the first."""
    names = ("checkpoint_1", "checkpoint_2")
    for name in names:
        store.write_bytes_atomic(f"{run_folder}/{name}/weights", b"x")
    if snapshot is not None:
        store.write_bytes_atomic(f"{run_folder}/{SNAPSHOT}", snapshot)
    remove_uncommitted_checkpoints(run_folder)
    return sum(not store.exists(f"{run_folder}/{name}/weights") for name in names)


def refused(run_folder: str) -> str:
    """Return the message that refuses a second driver; empty if it is accepted."""
    try:
        with held(run_folder):
            return ""
    except ValueError as error:
        return str(error)


@contextlib.contextmanager
def live_driver(run_folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that holds the lease of a run's folder until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, run_folder], cwd=ROOT, stdout=sys.stderr)
    try:
        while not store.exists(f"{run_folder}/{LEASE}"):
            if process.poll() is not None:
                raise RuntimeError(f"the driver ended with status {process.returncode} before it had the lease")
            time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()
