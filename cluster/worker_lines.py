"""What processes of a run say to the person who started it: one line on their stderr, which Ray carries to the driver.

rank, controller ──say(line)──► stderr ──Ray's log monitor──► driver ──► logger SAID        shown
anything else there ─────────────────────────────────────────► driver ──► logger WORKERS    in the log only
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from typing import Any

SAID, PROGRESS, WORKERS = "snps3.said", "snps3.progress", "snps3.workers"
"""Loggers of the driver: lines for people, the line of progress, and all else that workers print."""
MARK, PROGRESS_MARK = "[snps3] ", "[snps3 progress] "
PACKAGES = ("jobs", "pipeline", "snps3_model", "cluster", "snps3")
"""The loggers of the product: a warning of theirs is one that a person can act on."""


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
        self.warnings: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, batch: Mapping[str, Any]) -> None:
        """`batch`: lines of one process, with its name, pid and address."""
        name = batch.get("actor_name") or batch.get("task_name") or "worker"
        source = " ".join(map(str, filter(None, (name, batch.get("pid"), batch.get("ip")))))
        for line in batch.get("lines", ()):
            self.hear(line, source)

    def hear(self, line: str, source: str) -> None:
        """Hand over one line. A warning that several processes say is shown once."""
        if line.startswith(PROGRESS_MARK):
            logging.getLogger(PROGRESS).info("%s", line.removeprefix(PROGRESS_MARK))
            return
        if not line.startswith(MARK):
            logging.getLogger(WORKERS).info("(%s) %s", source, line)
            return
        text = line.removeprefix(MARK)
        with self.lock:
            is_repeated = text.startswith("warning: ") and text in self.warnings
            self.warnings.add(text)
        logging.getLogger(WORKERS if is_repeated else SAID).info("%s", text)
