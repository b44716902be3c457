"""What processes of a run say to the person who started it: one line on their stderr, which Ray carries to the driver.

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
"""In a raylet's message: what it ends to keep its machine alive, which a smaller batch or fewer CPUs mend."""


def say(line: str) -> None:
    """Say a line to the person who started the run."""
    _write(MARK, line)


def show_progress(line: str) -> None:
    """Show how far the run has come; the next such line takes this one's place."""
    _write(PROGRESS_MARK, line)


def _write(mark: str, text: str) -> None:
    sys.stderr.write("".join(f"{mark}{line}\n" for line in text.splitlines()))  # Ray Train shows stdout twice
    sys.stderr.flush()


class SayWarnings(logging.Handler):
    """Say the warnings of the product in a process of a run, each text once."""

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
    """Have this process say the warnings of the product, which would otherwise be in its log alone."""
    for package in PACKAGES:
        logging.getLogger(package).addHandler(_warnings)


class Listener:
    """Hand the lines of workers, as Ray brings them to the driver, to the driver's loggers."""

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
        """Hand over one line. A warning that several processes say is shown once."""
        if line.startswith(PROGRESS_MARK):
            logging.getLogger(PROGRESS).info("%s", line.removeprefix(PROGRESS_MARK))
        elif not line.startswith(MARK):
            logging.getLogger(WORKERS).info("(%s) %s", source, line)
        elif (text := line.removeprefix(MARK)).startswith("warning: "):
            self.say_once(text)
        else:
            logging.getLogger(SAID).info("%s", text)

    def say_once(self, text: str) -> None:
        """Show a text; log it only where it was shown before."""
        with self.lock:
            is_repeated = text in self.said_once
            self.said_once.add(text)
        logging.getLogger(WORKERS if is_repeated else SAID).info("%s", text)
