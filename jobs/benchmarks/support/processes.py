"""Memory, CPU time and spill of all processes of a measurement."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MARKER = "SNPS3_BENCHMARK"
"""Environment variable that a measurement sets to a unique value, which marks its processes."""


def pss_bytes(marker: str) -> Counter[str]:
    """Return the memory of the processes with `marker` in their environment, and of their descendants, by their role in
    Ray; shared pages count proportionally."""
    used: Counter[str] = Counter()
    for info in _marked(marker, "cmdline", "memory_full_info"):
        used[kind_of(info["cmdline"])] += info["memory_full_info"].pss
    return used


def private_and_shared_bytes(pid: int | str = "self") -> tuple[int, int]:
    """Return the private memory of a process, including swap, and the pages that it shares with others, in bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        kibibytes = {line.split(":")[0]: int(line.split()[1]) for line in list(file)[1:]}
    private = sum(kibibytes[name] for name in ("Private_Clean", "Private_Dirty", "Swap"))
    return 1024 * private, 1024 * (kibibytes["Shared_Clean"] + kibibytes["Shared_Dirty"])


def memory_by_process(marker: str) -> dict[int, tuple[str, int, int]]:
    """Return for each process with `marker`, by pid, its role in Ray, its private and its shared bytes."""
    result = {}
    for info in _marked(marker, "cmdline", "pid"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            result[info["pid"]] = (kind_of(info["cmdline"]), *private_and_shared_bytes(info["pid"]))
    return result


def usage_by_process(marker: str) -> dict[int, tuple[str, int, float]]:
    """Return for each process with `marker`, by pid, its role in Ray, its private bytes and its CPU seconds so far."""
    result = {}
    for info in _marked(marker, "cmdline", "pid", "cpu_times"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            private, _ = private_and_shared_bytes(info["pid"])
            result[info["pid"]] = (kind_of(info["cmdline"]), private, info["cpu_times"].user + info["cpu_times"].system)
    return result


def cpu_seconds(marker: str) -> Counter[str]:
    """Return the CPU time that the processes with `marker` have used so far, by their role in Ray."""
    used: Counter[str] = Counter()
    for info in _marked(marker, "cmdline", "cpu_times"):
        used[kind_of(info["cmdline"])] += info["cpu_times"].user + info["cpu_times"].system
    return used


def kind_of(command: list[str]) -> str:
    """Return the role of a process in Ray, from its command line: name of an actor or task, `raylet`, `node agents`,
    …"""
    text = " ".join(command)
    if "serve_forks" in text:
        return "decode processes"
    if text.startswith("ray::"):
        return re.split(r"[.(:]", text.removeprefix("ray::"))[0].strip() or "idle worker"
    program = os.path.basename(command[0]) if command else ""
    if program in ("raylet", "gcs_server"):
        return program
    if "agent" in text:
        return "node agents"
    return "dashboard" if "dashboard" in text else "driver and others"


@contextlib.contextmanager
def sampled(read: Callable[[], T], every_seconds: float) -> Iterator[list[tuple[float, T]]]:
    """Collect (`time.perf_counter`, result of `read`) every `every_seconds` within the context."""
    samples: list[tuple[float, T]] = []
    is_done = threading.Event()

    def sample() -> None:
        while not is_done.wait(every_seconds):
            samples.append((time.perf_counter(), read()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        is_done.set()
        sampler.join()


def _marked(marker: str, *fields: str) -> Iterator[dict[str, Any]]:
    """Yield `fields` of the processes with `marker`, and of their descendants, since decode processes do not inherit
    the variable."""
    import psutil  # a dependency of measurements only

    marked: set[int] = set()
    for process in sorted(psutil.process_iter(), key=lambda process: process.pid):
        try:
            if process.ppid() in marked or process.environ().get(MARKER) == marker:
                marked.add(process.pid)
                info = process.as_dict(fields)
                if None not in info.values():  # it has ended meanwhile
                    yield info
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def bytes_spilled() -> int:
    """Return the bytes that the object stores of local Rays have on disk at the moment."""
    folder = Path(tempfile.gettempdir())
    sessions = [*folder.glob("snps3-*/ray/session_*"), *folder.glob("ray/session_*")]
    files = (file for session in sessions for file in session.glob("ray_spilled_objects*/**/*"))
    return sum(file.stat().st_size for file in files if file.is_file())
