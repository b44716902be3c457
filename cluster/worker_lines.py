"""Messages from processes of a run to the user: lines on their stderr, which Ray forwards to the driver.

rank, controller ──say(line)──► stderr ──Ray's log monitor──► driver ──► logger SAID        shown
anything else there ─────────────────────────────────────────► driver ──► logger WORKERS    in the log only
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

from cluster import ray_internals
from cluster.loggers import MARK, PACKAGES, PROGRESS, PROGRESS_MARK, SAID, WORKERS

OUT_OF_MEMORY = re.compile("killed due to memory pressure")
"""Pattern of a raylet's message that it killed a process for lack of memory; a smaller batch or fewer CPUs help."""


def say(line: str) -> None:
    """Send a line to the user who started the run."""
    _write(MARK, line)


def show_progress(line: str) -> None:
    """Show the progress of the run; the next progress line replaces this one."""
    _write(PROGRESS_MARK, line)


def _write(mark: str, text: str) -> None:
    sys.stderr.write("".join(f"{mark}{line}\n" for line in text.splitlines()))  # Ray Train shows stdout twice
    sys.stderr.flush()


class SayWarnings(logging.Handler):
    """Send warnings of this product to the user from a process of a run, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        if text not in self.said:
            self.said.add(text)
            say(text)


_warnings = SayWarnings()


def say_warnings() -> None:
    """Make this process send the product's warnings to the user; otherwise only its log would contain them."""
    for package in PACKAGES:
        logging.getLogger(package).addHandler(_warnings)


class Listener:
    """Pass the lines of workers, which Ray forwards to the driver, to the driver's loggers."""

    def __init__(self) -> None:
        self.said_once: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, batch: Mapping[str, Any]) -> None:
        """`batch`: lines of one process, with its name, pid and address."""
        name, lines = batch.get("actor_name") or batch.get("task_name") or "worker", batch.get("lines", ())
        source = " ".join(map(str, filter(None, (name, batch.get("pid"), batch.get("ip")))))
        for line in lines:
            self.hear(line, source)
        if batch.get("pid") == "autoscaler":
            for event in ray_internals.autoscaler_events(lines):
                self.say_once(f"Ray: {event}")
        elif batch.get("pid") == "raylet":
            for line in filter(OUT_OF_MEMORY.search, lines):
                self.say_once(f"warning: Ray: {line.strip()}")

    def hear(self, line: str, source: str) -> None:
        """Pass on one line. A warning from several processes is shown once."""
        if line.startswith(PROGRESS_MARK):
            logging.getLogger(PROGRESS).info("%s", line.removeprefix(PROGRESS_MARK))
        elif not line.startswith(MARK):
            logging.getLogger(WORKERS).info("(%s) %s", source, line)
        elif (text := line.removeprefix(MARK)).startswith("warning: "):
            self.say_once(text)
        else:
            logging.getLogger(SAID).info("%s", text)

    def say_once(self, text: str) -> None:
        """Show a text the first time, and only log its repetitions."""
        with self.lock:
            is_repeated = text in self.said_once
            self.said_once.add(text)
        logging.getLogger(WORKERS if is_repeated else SAID).info("%s", text)
