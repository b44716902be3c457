"""Where a run is, as a file of its folder that its first rank rewrites while it trains: what `snps3 status` reads.

STORAGE/NAME/status.json     step, rate, time left, rejected clips, and when that was so (UTC)
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
    """Rewrites the file at most every `EVERY_SECONDS`, on a thread: training never waits for the store."""

    def __init__(self, run_folder: str) -> None:
        self.path, self.written_at = f"{run_folder}/{STATUS}", float("-inf")
        self.writing: threading.Thread | None = None

    def update(self, *, is_last: bool = False, **values: Any) -> None:
        """Write `values` with the time; but for the last, not where that was done a moment ago or is being done."""
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
        except Exception as error:  # of whatever kind: the next one may succeed, and nothing depends on it
            log.info("%s was not written: %s", self.path, error)


def read_status(run_folder: str) -> dict[str, Any]:
    """Return what the file says; nothing where there is none, or none that can be read."""
    try:
        return dict(json.loads(storage.read_bytes(f"{run_folder}/{STATUS}")))
    except (FileNotFoundError, ValueError):
        return {}
