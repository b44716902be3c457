"""Runs that are repeated with other seeds, each in a process of its own, and what they say together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from jobs import WORKPLACE
from jobs.run import run_files
from jobs.run.fields import differences
from pipeline import storage

Found = Mapping[tuple[str, int], Mapping[str, float]]
"""What came out, by row and seed."""


def run_job(program: str, preset: str, name: str, options: Sequence[str], storage: str) -> dict[str, Any]:
    """The results of the run `name` in `storage`, of `jobs/{program}.py`. One that is finished is read, not run again.

    CalledProcessError if the run fails.
    """
    command = [sys.executable, "-m", f"jobs.{program}", preset, "--name", name]
    command += ["--placement.storage", storage, *options]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, cwd=WORKPLACE, stdout=sys.stderr)
    return run_files.read_json(f"{storage}/{name}/results.json")


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, its 95 % interval (Student's t) and the values; of fewer than three the interval is their range."""
    mean, low, high = float(np.mean(values)), min(values), max(values)
    if len(values) > 2:
        half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
        low, high = mean - half, mean + half
    return {"mean": mean, "interval": [low, high], "seeds": list(values)}


def read_cells(path: str, fields: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, float]]:
    """What is known of each row and seed. ValueError if it was found with other settings."""
    if not storage.exists(path):
        return {}
    saved = run_files.read_json(path)
    if changed := differences(saved["fields"], dict(fields)):
        raise ValueError(f"{path} holds results of other settings; take another name. {'; '.join(changed)}")
    return {(cell["row"], cell["seed"]): cell["results"] for cell in saved["cells"]}


def write_cells(path: str, fields: Mapping[str, Any], found: Found) -> None:
    """The counterpart of `read_cells`."""
    cells = [{"row": row, "seed": seed, "results": dict(results)} for (row, seed), results in sorted(found.items())]
    run_files.write_json(path, {"fields": dict(fields), "cells": cells})
