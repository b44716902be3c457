"""The files of an index of embedded videos. Imports no Ray: a search reads them."""

from __future__ import annotations

from pipeline import storage

INDEX, REJECTED = "index.json", "rejected.parquet"
FORMAT = 2
"""Of an index with a row per window; one without a format has a row per video, and is still searched."""


def parts_in(out: str) -> list[str]:
    """Return the paths of an index's embedded parts, in order."""
    return sorted(storage.join(out, path) for path in storage.list_files(out) if path.startswith("part-"))
