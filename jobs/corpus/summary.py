"""Read the summary of `prepare` beside a manifest."""

from __future__ import annotations

import json

from jobs.corpus.preparation import MARKER
from pipeline import storage


def annotated_beside(manifest_path: str, manifest_hash: str) -> dict[str, int]:
    """Return the annotated clips per split, usable or not; empty without a summary of this very manifest."""
    marker = f"{manifest_path.rpartition('/')[0]}/{MARKER}"
    if not storage.exists(marker):
        return {}
    before = json.loads(storage.read_bytes(marker))["prepared"]
    return before.get("num_annotated", {}) if before["manifest_hash"] == manifest_hash else {}
