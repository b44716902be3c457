"""Metrics of a run in progress: training never waits for the tracking server, and no point is lost in an outage.

log ──► queue ──thread──► server
          └── rest, at the end of a rank ──► STORAGE/NAME/unsent_metrics.json ──driver──► server
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence

from jobs.tracking.mlflow_runs import POINTS_AT_ONCE, Point, SilentServerError, Tracker, without_password
from pipeline import storage

UNSENT = "unsent_metrics.json"
PAUSE_SECONDS = 5.0
"""Pause before a retry."""
PATIENCE_SECONDS = 60.0
"""Time that a rank waits at its end for an unreachable server."""
QUICK_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Settings of MLflow, whose defaults would retry for minutes."""
SILENT = "the tracking server %s does not answer: training goes on, and what it missed is sent when it does"
log = logging.getLogger(__name__)


class PatientTracker(Tracker):
    """A tracker that sends from a thread, and retries while the server does not answer."""

    def __init__(self, uri: str, run_id: str) -> None:
        super().__init__(uri, run_id)
        self.waiting: list[Point] = []
        self.changed = threading.Condition()
        self.sender = threading.Thread(target=self._send_waiting, name="metrics", daemon=True)
        for name, value in QUICK_REQUESTS.items():
            os.environ.setdefault(name, value)

    def send(self, points: Sequence[Point]) -> None:
        """Queue points for sending; return at once."""
        with self.changed:
            self.waiting += points
            self.changed.notify_all()
            if not self.sender.ident:
                self.sender.start()

    def unsent(self, wait_seconds: float) -> list[Point]:
        """Wait at most `wait_seconds` for all points to be sent; return those that are not."""
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting, wait_seconds)
            return list(self.waiting)

    def _send_waiting(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                batch = self.waiting[:POINTS_AT_ONCE]
            try:
                super().send(batch)
            except SilentServerError as error:
                log.warning(SILENT, without_password(self.uri))
                log.info("%d points wait: %s", len(self.waiting), error)
                time.sleep(PAUSE_SECONDS)
            else:
                with self.changed:
                    del self.waiting[: len(batch)]
                    self.changed.notify_all()


def save_unsent(tracker: PatientTracker, run_folder: str, wait_seconds: float = PATIENCE_SECONDS) -> None:
    """Wait at most `wait_seconds`, then write the unsent points to the run's folder."""
    if points := tracker.unsent(wait_seconds):
        data = json.dumps([*saved_points(run_folder), *points])
        storage.write_bytes_atomic(f"{run_folder}/{UNSENT}", data.encode())


def saved_points(run_folder: str) -> list[Point]:
    """Return the points in the run's folder that ranks could not send."""
    path = f"{run_folder}/{UNSENT}"
    return [tuple(point) for point in json.loads(storage.read_bytes(path))] if storage.exists(path) else []


def send_saved(tracker: Tracker, run_folder: str) -> None:
    """Send the points in the run's folder that ranks could not send, and remove their file."""
    if points := saved_points(run_folder):
        tracker.send(points)
        storage.remove(f"{run_folder}/{UNSENT}")
