"""What the generator of the embedded corpus wrote about a corpus: its corpus.json, found from a manifest."""

from __future__ import annotations

from typing import Any

from jobs.run import run_files
from pipeline import storage


def summary_beside(manifest: str) -> dict[str, Any]:
    """Return corpus.json of the folder of a manifest, or of the folder above; empty for a corpus that was not
    generated."""
    folder = manifest.rsplit("/", 1)[0]
    path = next(filter(storage.exists, (f"{folder}/corpus.json", f"{folder}/../corpus.json")), None)
    return run_files.read_json(path) if path else {}
