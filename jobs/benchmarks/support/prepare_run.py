"""Cost of `prepare` on synthetic files, with its tasks run sequentially in this process.

python -m jobs.benchmarks.support.prepare_run CAPTIONS FOLDER NUM_CLIPS
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa

from jobs.benchmarks.support.processes import private_and_shared_bytes, sampled
from jobs.benchmarks.support.search_run import in_turn
from jobs.corpus import probing
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline import storage
from pipeline.corpus.content import checksum
from pipeline.corpus.manifest import SCHEMA
from pipeline.offline import stages
from pipeline.offline.kept import result_schema

SAMPLE_SECONDS = 0.5
FOLDER_CLIPS = 1000
FOUND = {"width": 596, "height": 336, "fps": 29.97, "duration_seconds": 14.0, "num_frames": 420, "bytes": 10**6}


def name_of(number: int) -> str:
    """Return the path of a clip below the root."""
    return f"{number // FOLDER_CLIPS:06d}/{number:010d}.mp4"


def invented_rows(batch: pa.Table, **settings: object) -> pa.Table:
    """Replace `probe_batch`: derive the probe result of each clip from its name."""
    del settings
    rows = [row | FOUND | {"checksum": checksum(row["uri"].encode())} for row in batch.to_pylist()]
    return pa.Table.from_pylist(rows, result_schema(SCHEMA))


@contextlib.contextmanager
def invented_files(root: str, num_files: int) -> Iterator[None]:
    """Within the context, pretend that the folder `root` has `num_files` files with synthetic contents; start no
    Ray."""
    listed = storage.iter_versions

    def listed_or_invented(path: str) -> Iterator[tuple[str, str]]:
        if path != root:
            return listed(path)
        return ((name_of(number), f"1000000 {number}") for number in range(num_files))

    with (
        mock.patch.object(storage, "iter_versions", listed_or_invented),
        mock.patch.object(probing, "probe_batch", invented_rows),
        mock.patch.object(stages, "stream_blocks", in_turn),
        mock.patch("cluster.connection.connected_ray", contextlib.nullcontext),
    ):
        yield


def main(captions: str, out: str, num_clips: str) -> None:
    """Prepare, and print CPU time per clip, clips per second, and the highest private memory in MiB."""
    (root := Path(out, "videos")).mkdir(parents=True)
    cpu, wall = time.process_time(), time.perf_counter()
    config = PrepareConfig(corpus="invented", root=str(root), out=out, annotations=(captions,), in_parts=True)
    with sampled(private_and_shared_bytes, SAMPLE_SECONDS) as samples, invented_files(str(root), int(num_clips)):
        report = prepare(config)
    assert report.num_clips == {"train": int(num_clips)}, report
    result = {
        "cpu_us_per_clip": 1e6 * (time.process_time() - cpu) / int(num_clips),
        "clips_per_second": int(num_clips) / (time.perf_counter() - wall),
        "private_mib": max(private for _, (private, _) in samples) / 2**20,
        "shared_mib": max(shared for _, (_, shared) in samples) / 2**20,
        "manifest_hash": report.manifest_hash,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
