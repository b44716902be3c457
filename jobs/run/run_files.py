"""The files in a run's folder. This module imports fast, because every process of a run looks up commits with it.

STORAGE/NAME/config.json  identity.json  tokenizer.json  significant_words.json     written once, by the driver
             answers.json                                       of question answering; also written once
             checkpoint_manager_snapshot.json  checkpoint_…/                        Ray Train's, committed together;
                                                     config.json of a checkpoint is that of the run, with its commit
             best/  ledger.parquet  evaluation/  seconds.json  results.json  report.html    results
             driver.lease                                       the driver that has the run (jobs/launch/lease.py)
             logs/                                              journal of each process (jobs/tracking/journal.py)
             stop                                               asks the run to write a checkpoint and end
             failure.json                                       error that ended the run for good
             status.json                                        progress of the run (jobs/tracking/status_file.py)
             unsent_metrics.json                                metrics not sent to MLflow (tracking/patient_tracker.py)
             COMMAND-TIME-PID.log                               log of a driver and its libraries (tracking/voice.py)
"""

from __future__ import annotations

import json
import logging
from typing import Any

from cluster import ray_internals
from cluster.ray_internals import SNAPSHOT, UnknownSnapshotError
from pipeline import storage
from pipeline.corpus.manifest import checksum

IDENTITY, SECONDS = "identity.json", "seconds.json"
CONFIG, FAILURE = "config.json", "failure.json"
UNDECODED = "undecoded"
"""Folder with a file for each clip that did not decode; later epochs skip these clips."""
ANSWERS = "answers.json"
"""The answers that question answering chooses from, in the order of their numbers."""
PROGRESS = "progress.json"
"""File of a checkpoint with its `Progress`."""
CHECKPOINT_PREFIX = "checkpoint_"
log = logging.getLogger(__name__)


def committed_progress(run_folder: str) -> dict[str, Any] | None:
    """Return the progress of the last committed checkpoint of a run, None before the first."""
    name = committed_checkpoint(run_folder)
    return read_json(f"{run_folder}/{name}/{PROGRESS}") if name else None


def committed_step(run_folder: str) -> int:
    """Return the step of the last committed checkpoint of a run, 0 before the first."""
    progress = committed_progress(run_folder)
    return int(progress["step"]) if progress else 0


def is_finished(run_folder: str) -> bool:
    """Return whether the run trained to its end, by its last committed checkpoint."""
    progress = committed_progress(run_folder)
    return bool(progress and progress["is_finished"])


def committed_checkpoint(run_folder: str) -> str | None:
    """Return the folder name of the last checkpoint that Ray Train committed, None before the first.

    Raise UnknownSnapshotError, a ValueError, when Ray Train's snapshot has an unknown format.
    """
    path = f"{run_folder}/{SNAPSHOT}"
    if not storage.exists(path):
        return None
    try:
        return ray_internals.latest_checkpoint(ray_internals.read_snapshot(storage.read_bytes(path)))
    except UnknownSnapshotError as error:
        raise UnknownSnapshotError(
            f"{path} is not as Ray {ray_internals.SNAPSHOT_RAY}* writes it, so the run cannot be resumed: {error}; "
            "restore the file from a backup, or take another name"
        ) from error


def remove_uncommitted_checkpoints(run_folder: str) -> list[str]:
    """Remove checkpoints whose upload began but that were never committed; return their names.

    Call it only while holding the run's lease: a checkpoint that another driver is uploading looks the same. Remove
    nothing and log a warning unless the snapshot is reliable: of a known version, with all keys, and its checkpoints
    exist. A run that has never committed has no snapshot. Its leftovers only take space: Ray Train starts a run without
    a snapshot from scratch, and names each checkpoint by the time.
    """
    folders = {path.split("/", 1)[0] for path in storage.list_files(run_folder) if "/" in path}
    checkpoints = {name for name in folders if name.startswith(CHECKPOINT_PREFIX)}
    if not checkpoints:
        return []
    path = f"{run_folder}/{SNAPSHOT}"
    try:
        if not storage.exists(path):
            raise UnknownSnapshotError("it was expected, and there is none")
        kept = ray_internals.referenced_checkpoints(ray_internals.read_snapshot(storage.read_bytes(path)))
        if missing := sorted(kept - checkpoints):
            raise UnknownSnapshotError(f"it names {missing[0]}, which was expected and is missing")
    except UnknownSnapshotError as error:
        log.warning(
            "%s: %s. Nothing proves which of the %d checkpoints are leftovers, so none is deleted; delete by hand "
            "those that you do not need",
            *(path, error, len(checkpoints)),
        )
        return []
    uncommitted = sorted(checkpoints - kept)
    for name in uncommitted:
        storage.remove_folder(f"{run_folder}/{name}")
    return uncommitted


def read_json(path: str) -> Any:
    """Return the value in a JSON file."""
    return json.loads(storage.read_bytes(path))


def json_bytes(value: Any) -> bytes:
    """Return a value as an indented JSON file with sorted keys."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: str, value: Any) -> None:
    """Write a value as an indented JSON file, whole or not at all."""
    storage.write_bytes_atomic(path, json_bytes(value))


WEIGHTS = "model.safetensors"


def best_weights(folder: str) -> str:
    """Return the path of the best weights in a run's folder, or of those in a folder of jobs/export.py."""
    exported = f"{folder}/{WEIGHTS}"
    return exported if storage.exists(exported) else f"{folder}/best/{WEIGHTS}"


def weights_hash(folder: str) -> str:
    """Return 32 hex digits of the best weights in a run's folder. Raise FileNotFoundError if there are none."""
    path = best_weights(folder)
    storage.check_readable(path)
    return checksum(storage.read_bytes(path))
