"""What a process of a run says of itself: JSON lines in the run's folder, for people at three in the morning.

STORAGE/NAME/logs/WHO-START-NUMBER.jsonl      a file per flush, since an object store does not append

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
    """The lines of one process since it started."""

    def __init__(self, run_folder: str, who: str) -> None:
        self.run_folder, self.who = run_folder, who
        self.start = now()
        self.lines: list[str] = []
        self.num_files = 0

    def note(self, event: str, **values: Any) -> None:
        """One line, kept until the next flush."""
        shown = {key: without_secrets(value) if isinstance(value, str) else value for key, value in values.items()}
        self.lines.append(json.dumps({"time": now(), "who": self.who, "event": event, **shown}))

    def flush(self) -> None:
        """The lines since the last flush are in the run's folder."""
        if not self.lines:
            return
        start = self.start.translate(str.maketrans("", "", "-:"))
        name = f"{self.who}-{start}-{os.getpid()}-{self.num_files:04}.jsonl"
        storage.write_bytes_atomic(f"{self.run_folder}/{FOLDER}/{name}", ("\n".join(self.lines) + "\n").encode())
        self.num_files += 1
        self.lines = []


def now() -> str:
    """Return the time in UTC to the microsecond: lines of several processes are ordered by it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_journals(run_folder: str) -> list[dict[str, Any]]:
    """All lines of a run, by time."""
    folder = f"{run_folder}/{FOLDER}"
    if not storage.exists(folder):
        return []
    texts = [storage.read_bytes(f"{folder}/{path}").decode() for path in storage.list_files(folder)]
    return sorted((json.loads(line) for text in texts for line in text.splitlines()), key=lambda line: line["time"])


def newest_lines(run_folder: str, who: str) -> list[dict[str, Any]]:
    """Return the lines that a process flushed last, empty before the first flush; reads a single file."""
    folder = f"{run_folder}/{FOLDER}"
    names = (
        [name for name in storage.list_files(folder) if name.startswith(f"{who}-")] if storage.exists(folder) else []
    )
    if not names:
        return []
    newest = max(names, key=lambda name: (name.rsplit("-", 2)[0], int(name.rpartition("-")[2].partition(".")[0])))
    return [json.loads(line) for line in storage.read_bytes(f"{folder}/{newest}").decode().splitlines()]


def note_losses(run_folder: str, causes: Mapping[int, Exception]) -> None:
    """A line in the run's journal for each rank that was lost, with the cause; told by the process that restarts."""
    journal = Journal(run_folder, "controller")
    for rank, cause in causes.items():
        journal.note("lost", rank=rank, cause=f"{type(cause).__name__}: {str(cause).strip()[:2000]}")
    journal.flush()
