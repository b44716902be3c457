"""The search for copies in this process alone, its tasks one after the other: what it takes and finds.

python -m jobs.benchmarks.support.search_run MANIFEST FOLDER
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import pyarrow as pa

from jobs.benchmarks.support.processes import private_and_shared_bytes, sampled
from jobs.corpus import deduplication
from jobs.corpus.deduplication import DeduplicateConfig, deduplicate

SAMPLE_SECONDS = 0.5


def in_turn(
    blocks: Sequence[pa.Table], function: Callable[[pa.Table], pa.Table], subcluster: str | None = None
) -> Iterator[pa.Table]:
    """Stand in for `stream_blocks`."""
    del subcluster
    return map(function, blocks)


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """`deduplicate` starts no Ray within the block; all fingerprints have to be there."""
    with (
        mock.patch.object(deduplication, "connected_ray", contextlib.nullcontext),
        mock.patch.object(deduplication, "stream_blocks", in_turn),
    ):
        yield


def main(manifest: str, out: str) -> None:
    """Search, and print CPU seconds, the highest private memory in MiB, pairs per clip that were compared."""
    started = time.process_time()
    with sampled(private_and_shared_bytes, SAMPLE_SECONDS) as samples, without_ray():
        done = deduplicate(DeduplicateConfig(manifest=manifest, out=out))
    result = {
        "cpu_seconds": time.process_time() - started,
        "private_mib": max(private for _, (private, _) in [*samples, (0.0, private_and_shared_bytes())]) / 2**20,
        "compared_per_clip": done.num_compared / done.num_clips,
        "pairs_path": done.pairs_path,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
