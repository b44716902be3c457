"""The hardware and the git commit of a run, in words."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from jobs import ROOT

DIRTY = "-dirty"
"""Suffix of a commit if the working tree has changes."""


def git_commit() -> str:
    """Return the commit of the code, with `DIRTY` if it has changes; `unknown` outside a repository."""
    if not (ROOT / ".git").exists():  # an installed package may lie below another repository
        return "unknown"
    described = subprocess.run(
        ["git", "describe", "--always", f"--dirty={DIRTY}", "--abbrev=12", "--exclude=*"],  # the commit, never a tag
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def hardware() -> str:
    """Return processor, cores and GPU model of this machine, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpus = subprocess.run(
        "nvidia-smi --query-gpu=name --format=csv,noheader", shell=True, capture_output=True, text=True, check=False
    )
    names = gpus.stdout.split("\n")[0].strip() if gpus.returncode == 0 else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {names}"
