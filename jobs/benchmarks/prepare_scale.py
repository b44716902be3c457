"""`prepare-scale` of `python jobs/benchmark.py`: the cost of `prepare` without decoding, by number of clips.

The table of captions and the names of the files follow WebVid's format. No file exists: the listing and the probe
results are synthetic; the rest is that of `prepare --in-parts`. Its tasks run sequentially in one process, without Ray:
its private memory is an upper bound for any process of a cluster.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from jobs.benchmarks.support.fixtures import json_of_child
from jobs.benchmarks.support.prepare_run import name_of
from jobs.benchmarks.support.synthetic_manifest import captions_of


def prepare_scale(sizes: tuple[int, ...] = (100_000, 1_000_000), folder: str = "") -> dict[str, Any]:
    """Return clips per second, CPU time per clip and memory of `prepare` without decoding, by number of clips.

    `folder`: for captions and manifests during the run, by default the folder for temporary files. `slope`: CPU time
    per clip at the last size over that at the size before.
    """
    by_size = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder or None) as place:
            write_captions(captions := Path(place, "captions.csv"), size)
            by_size[str(size)] = json_of_child(
                "jobs.benchmarks.support.prepare_run", str(captions), f"{place}/out", size
            )
        print(json.dumps({size: by_size[str(size)]}), file=sys.stderr, flush=True)
    costs = [by_size[str(size)]["cpu_us_per_clip"] for size in sizes]
    largest = by_size[str(sizes[-1])]
    return largest | {"slope": costs[-1] / costs[-2] if len(costs) > 1 else None, "by_size": by_size}


def write_captions(path: Path, num_clips: int, rows_at_once: int = 2**16) -> None:
    """Write a table of captions in WebVid's format."""
    writer = None
    for start in range(0, num_clips, rows_at_once):
        numbers = range(start, min(start + rows_at_once, num_clips))
        folders, names = zip(*(name_of(number).removesuffix(".mp4").split("/") for number in numbers), strict=True)
        table = pa.table(
            {
                "videoid": names,
                "contentUrl": [f"https://host.example/{name}/preview.mp4" for name in names],
                "duration": [f"PT00H00M{number % 60:02d}S" for number in numbers],
                "page_dir": folders,
                "name": captions_of(numbers),
            }
        )
        writer = writer or pyarrow.csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    assert writer, "no clip at all"
    writer.close()
