"""The journal of a process of a run: JSON lines in the run's folder, for people who debug it.

STORAGE/NAME/logs/WHO-START-PID-NUMBER.jsonl      a file per flush, because object stores cannot append

Every line has `time` (UTC), `who` (rank-0, controller, driver) and `event`; the rest are values with units in their
names.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.redaction import without_secrets

FOLDER = "logs"


class Journal:
    """The journal of one process."""

    def __init__(self, run_folder: str, who: str) -> None:
        self.run_folder, self.who = run_folder, who
        self.start = now()
        self.lines: list[str] = []
        self.num_files = 0

    def note(self, event: str, **values: Any) -> None:
        """Add a line, which is kept in memory until the next flush."""
        shown = {key: without_secrets(value) if isinstance(value, str) else value for key, value in values.items()}
        self.lines.append(json.dumps({"time": now(), "who": self.who, "event": event, **shown}))

    def flush(self) -> None:
        """Write the lines since the last flush to the run's folder."""
        if not self.lines:
            return
        start = self.start.translate(str.maketrans("", "", "-:"))
        name = f"{self.who}-{start}-{os.getpid()}-{self.num_files:04}.jsonl"
        storage.write_bytes_atomic(f"{self.run_folder}/{FOLDER}/{name}", ("\n".join(self.lines) + "\n").encode())
        self.num_files += 1
        self.lines = []


def now() -> str:
    """Return the time in UTC to the microsecond, by which lines of several processes are ordered."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_journals(run_folder: str) -> list[dict[str, Any]]:
    """Return all lines of a run, sorted by time."""
    folder = f"{run_folder}/{FOLDER}"
    if not storage.exists(folder):
        return []
    texts = [storage.read_bytes(f"{folder}/{path}").decode() for path in storage.list_files(folder)]
    return sorted((json.loads(line) for text in texts for line in text.splitlines()), key=lambda line: line["time"])


def newest_lines(run_folder: str, who: str) -> list[dict[str, Any]]:
    """Return the lines of the last flush of a process; empty before the first. Reads a single file."""
    folder = f"{run_folder}/{FOLDER}"
    names = (
        [name for name in storage.list_files(folder) if name.startswith(f"{who}-")] if storage.exists(folder) else []
    )
    if not names:
        return []
    newest = max(names, key=lambda name: (name.rsplit("-", 2)[0], int(name.rpartition("-")[2].partition(".")[0])))
    return [json.loads(line) for line in storage.read_bytes(f"{folder}/{newest}").decode().splitlines()]


def note_losses(run_folder: str, causes: Mapping[int, Exception]) -> None:
    """Write a line per lost rank, with the cause, to the run's journal. For the process that restarts the ranks."""
    journal = Journal(run_folder, "controller")
    for rank, cause in causes.items():
        journal.note("lost", rank=rank, cause=f"{type(cause).__name__}: {str(cause).strip()[:2000]}")
    journal.flush()
