"""CPU seconds of starting a command: its help, its rejection of a misspelt option, and the import of `load`."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from typing import Any

from jobs import ROOT

STARTS = {
    "help_cpu_seconds": (["jobs/pretrain.py", "--help"], 0),
    "typo_cpu_seconds": (["jobs/pretrain.py", "tinny"], 2),
    "load_cpu_seconds": (["-c", "from jobs.model import load"], 0),
}
"""Name of a figure → the arguments of the process, and its required exit status."""


def cli_start(num_runs: int = 5, tree: str | None = None) -> dict[str, Any]:
    """Return the median CPU seconds, user and system, of `num_runs` starts; with `tree`, also of another checkout."""
    trees = {"": str(ROOT)} | ({"tree/": tree} if tree else {})
    seconds: dict[str, list[float]] = {f"{prefix}{name}": [] for prefix in trees for name in STARTS}
    for _ in range(num_runs):  # alternate, so that a busy minute of the machine affects both trees
        for prefix, folder in trees.items():
            for name, (arguments, status) in STARTS.items():
                seconds[prefix + name].append(cpu_seconds_of(arguments, os.path.abspath(folder), status))
    return {name: statistics.median(values) for name, values in seconds.items()} | {"num_runs": num_runs}


def cpu_seconds_of(arguments: list[str], folder: str, status: int) -> float:
    """Return the CPU seconds of a Python process in a checkout. Raise RuntimeError if it does not end with `status`."""
    command, environment = [sys.executable, *arguments], os.environ | {"PYTHONPATH": folder}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != status:
        raise RuntimeError(f"{arguments} in {folder} ended with {ended.returncode}, not {status}")
    return used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
