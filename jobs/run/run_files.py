"""A run's folder: what is in it. Imports nothing that takes long: every process of a run asks what was committed.

STORAGE/NAME/config.json  identity.json  tokenizer.json  significant_words.json     written once, by the driver
             answers.json                                       of question answering, likewise
             checkpoint_manager_snapshot.json  checkpoint_…/                        Ray Train's, committed together;
                                                     config.json of a checkpoint is that of the run, with its commit
             best/  ledger.parquet  evaluation/  seconds.json  results.json  report.html    results
             logs/                                              what each process said (jobs/tracking/journal.py)
             stop                                               asks the run to write a checkpoint and end
             failure.json                                       why the run stopped for good
"""

from __future__ import annotations

import json
from typing import Any

from pipeline import storage
from pipeline.corpus.manifest import checksum

SNAPSHOT, IDENTITY, SECONDS = "checkpoint_manager_snapshot.json", "identity.json", "seconds.json"
CONFIG, FAILURE = "config.json", "failure.json"
ANSWERS = "answers.json"
"""What question answering chooses from, by number."""
PROGRESS = "progress.json"
"""Of a checkpoint: how far the run had come."""


def committed_progress(run_folder: str) -> dict[str, Any] | None:
    """The progress in the last committed checkpoint of a run; None before the first."""
    name = committed_checkpoint(run_folder)
    return read_json(f"{run_folder}/{name}/{PROGRESS}") if name else None


def committed_step(run_folder: str) -> int:
    """Step of the last committed checkpoint of a run; 0 before the first."""
    progress = committed_progress(run_folder)
    return int(progress["step"]) if progress else 0


def is_finished(run_folder: str) -> bool:
    """True if the last committed checkpoint is that of a run that trained to its end."""
    progress = committed_progress(run_folder)
    return bool(progress and progress["is_finished"])


def committed_checkpoint(run_folder: str) -> str | None:
    """Folder name of the last checkpoint that Ray Train committed."""
    latest = _snapshot(run_folder).get("latest_checkpoint_result")
    return latest["checkpoint_dir_name"] if latest else None


def sweep(run_folder: str) -> list[str]:
    """Names of the checkpoints that were uploaded, or begun to be, and never committed; they are removed.

    For a run that nobody else continues: a checkpoint on its way looks the same.
    """
    snapshot = _snapshot(run_folder)
    results = [
        *snapshot.get("checkpoint_results", ()),
        *snapshot.get("pending_training_results", ()),
        snapshot.get("latest_checkpoint_result"),
    ]
    kept = {result["checkpoint_dir_name"] for result in results if result}
    folders = {path.split("/", 1)[0] for path in storage.list_files(run_folder) if "/" in path}
    lost = sorted(name for name in folders if name.startswith("checkpoint_") and name not in kept)
    for name in lost:
        storage.remove_folder(f"{run_folder}/{name}")
    return lost


def _snapshot(run_folder: str) -> dict[str, Any]:
    """What Ray Train has written of the run's checkpoints; empty before the first."""
    path = f"{run_folder}/{SNAPSHOT}"
    return read_json(path) if storage.exists(path) else {}


def read_json(path: str) -> Any:
    """The value in a JSON file."""
    return json.loads(storage.read_bytes(path))


def write_json(path: str, value: Any) -> None:
    """A value as an indented JSON file, written whole or not at all."""
    storage.write_bytes_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


WEIGHTS = "model.safetensors"


def best_weights(folder: str) -> str:
    """The file with the weights of a run's folder, or of one that jobs/export.py wrote."""
    exported = f"{folder}/{WEIGHTS}"
    return exported if storage.exists(exported) else f"{folder}/best/{WEIGHTS}"


def weights_hash(folder: str) -> str:
    """32 hex digits of the best weights in a run's folder. FileNotFoundError if there are none."""
    path = best_weights(folder)
    storage.check_readable(path)
    return checksum(storage.read_bytes(path))
