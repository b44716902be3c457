"""Results of runs by row of a table and seed, kept in one file that is rewritten after each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.run import run_files
from jobs.run.fields import differences
from pipeline import storage

Cell = tuple[str, int]
"""Row and seed."""
Cells = Mapping[Cell, Mapping[str, float]]
"""Results by row and seed."""


def read_cells(path: str, fields: Mapping[str, Any]) -> dict[Cell, dict[str, float]]:
    """Return the results in a file, none if there is no file. Raise ValueError if their settings are not `fields`."""
    if not storage.exists(path):
        return {}
    saved = run_files.read_json(path)
    if changed := differences(saved["fields"], dict(fields)):
        raise ValueError(f"{path} holds results of other settings; take another name. {'; '.join(changed)}")
    return {(cell["row"], cell["seed"]): cell["results"] for cell in saved["cells"]}


def write_cells(path: str, fields: Mapping[str, Any], cells: Cells) -> None:
    """Write results and their common settings, in the format of `read_cells`."""
    saved = [{"row": row, "seed": seed, "results": dict(results)} for (row, seed), results in sorted(cells.items())]
    run_files.write_json(path, {"fields": dict(fields), "cells": saved})
