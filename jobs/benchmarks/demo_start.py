"""`demo` of `python jobs/benchmark.py`: from the command to the first answer of its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from typing import Any

import psutil

ADDRESS = re.compile(r"(http://127\.0\.0\.1:\d+)/ shows")


def demo(model: str = "runs/tiny") -> dict[str, Any]:
    """Return seconds and CPU seconds from the start of `snps3 demo` in a new process to its first answer.

    Raise RuntimeError with its output if it ends before.
    """
    start, said = time.perf_counter(), ""
    command = [sys.executable, "-m", "snps3", "demo", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            while (address := ADDRESS.search(said)) is None:
                if not (line := process.stdout.readline() if process.stdout else ""):
                    raise RuntimeError(f"the demo ended without a page: {said}")
                said += line
            with urllib.request.urlopen(f"{address[1]}/api/search?q=a+red+ring+rises", timeout=60) as answer:
                num_moments = len(json.loads(answer.read())["moments"])
            seconds = time.perf_counter() - start
            processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            cpu_seconds = sum(sum(member.cpu_times()[:4]) for member in processes)
        finally:
            process.terminate()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "num_moments": num_moments}
