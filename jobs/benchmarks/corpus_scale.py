"""`corpus-report-scale` of `python jobs/benchmark.py`: the cost of `corpus_report` by rows of the manifest.

Manifests are synthetic (`synthetic_manifest`), and so are the pixels of the shown clips.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

from jobs.benchmarks.scale import manifest_of
from jobs.benchmarks.support.fixtures import json_of_child
from pipeline import storage


def corpus_report_scale(sizes: tuple[int, ...] = (100_000, 1_000_000), folder: str = "") -> dict[str, Any]:
    """Return seconds, CPU seconds and memory of a report, by rows of the manifest.

    `folder`: keeps the manifests; by default a temporary folder.
    """
    by_size = {}
    with tempfile.TemporaryDirectory() as local:
        for size in sizes:
            manifest = manifest_of(storage.absolute(folder or local), size, f"{local}/{size}")
            by_size[str(size)] = json_of_child("jobs.benchmarks.support.report_run", manifest, f"{local}/page.html")
            print(json.dumps({size: by_size[str(size)]}), file=sys.stderr, flush=True)
    return by_size[str(sizes[-1])] | {"by_size": by_size}
