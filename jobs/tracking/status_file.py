"""The progress of a run as a file in its folder, which the first rank rewrites and `snps3 status` reads.

STORAGE/NAME/status.json     step, rate, time left, rejected clips, and the time of writing (UTC)
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from jobs.tracking.journal import now
from pipeline import storage

STATUS = "status.json"
EVERY_SECONDS = 10.0
log = logging.getLogger(__name__)


class StatusFile:
    """Rewrites the file at most every `EVERY_SECONDS`, in a thread, so that training does not wait for the store."""

    def __init__(self, run_folder: str) -> None:
        self.path, self.written_at = f"{run_folder}/{STATUS}", float("-inf")
        self.writing: threading.Thread | None = None

    def update(self, *, is_last: bool = False, **values: Any) -> None:
        """Write `values` with the time. Unless `is_last`, skip it after a recent write or while one is running."""
        if is_last and self.writing:
            self.writing.join(EVERY_SECONDS)
        elif time.monotonic() - self.written_at < EVERY_SECONDS or (self.writing and self.writing.is_alive()):
            return
        self.written_at = time.monotonic()
        data = (json.dumps({"time": now(), **values}, indent=1) + "\n").encode()
        self.writing = threading.Thread(target=self._write, args=(data,), name="status", daemon=True)
        self.writing.start()

    def _write(self, data: bytes) -> None:
        try:
            storage.write_bytes_atomic(self.path, data)
        except Exception as error:  # of any kind: the next write may succeed, and nothing depends on this one
            log.info("%s was not written: %s", self.path, error)


def read_status(run_folder: str) -> dict[str, Any]:
    """Return the content of the file; empty if it is missing or cannot be parsed."""
    try:
        return dict(json.loads(storage.read_bytes(f"{run_folder}/{STATUS}")))
    except (FileNotFoundError, ValueError):
        return {}
