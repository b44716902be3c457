"""A watchdog that ends a hung process, so that a hang becomes an error within a known time."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable

EXIT_STATUS = 75
STDERR = 2


class Watchdog:
    """Ends this process when `alive` was not called for `limit_seconds`.

    It first writes the stack of every thread to stderr, then calls `on_hang`, which has ten seconds.
    """

    def __init__(self, limit_seconds: float, on_hang: Callable[[float], None]) -> None:
        self.limit_seconds, self.on_hang = limit_seconds, on_hang
        self.last_alive = time.monotonic()
        self._is_over = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        """Report progress: restart the time limit."""
        self.last_alive = time.monotonic()

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(min(1.0, self.limit_seconds / 4)):
            stalled_seconds = time.monotonic() - self.last_alive
            if stalled_seconds > self.limit_seconds:
                faulthandler.dump_traceback(file=STDERR, all_threads=True)
                reporting = threading.Thread(target=self.on_hang, args=(stalled_seconds,), daemon=True)
                reporting.start()
                reporting.join(10)
                os._exit(EXIT_STATUS)
