"""The machine that a run is on and the code that it runs: hardware and git commit, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from jobs import ROOT

DIRTY = "-dirty"
"""Mark of a commit whose files were changed since."""


def git_commit() -> str:
    """The commit of the code, with a mark if it was changed since; `unknown` outside a repository."""
    if not (ROOT / ".git").exists():  # installed, perhaps below somebody else's repository
        return "unknown"
    described = subprocess.run(
        ["git", "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12", "--exclude=*"],  # a tag is no commit
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def hardware() -> str:
    """Processor, cores and GPUs of the driver's machine, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpus = subprocess.run(
        "nvidia-smi --query-gpu=name --format=csv,noheader", shell=True, capture_output=True, text=True, check=False
    )
    names = gpus.stdout.split("\n")[0].strip() if gpus.returncode == 0 else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {names}"
