"""Memory and spill of all processes of a measurement."""

from __future__ import annotations

import tempfile
from pathlib import Path

MARKER = "SNPS3_BENCHMARK"
"""Environment variable that a measurement sets to a word of its own, so that its processes are known."""


def pss_bytes(marker: str) -> int:
    """Memory of the processes that carry `marker` in their environment; shared pages count in shares."""
    import psutil  # only benchmarks need it

    total = 0
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == marker:
                total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def bytes_spilled() -> int:
    """Bytes that the object stores of Rays of our own have written to disk at the moment."""
    folder = Path(tempfile.gettempdir())
    sessions = [*folder.glob("snps3-*/ray/session_*"), *folder.glob("ray/session_*")]
    files = (file for session in sessions for file in session.glob("ray_spilled_objects*/**/*"))
    return sum(file.stat().st_size for file in files if file.is_file())
