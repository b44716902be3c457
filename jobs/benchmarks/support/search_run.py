"""Cost and result of the search for copies, with its tasks run sequentially in this process.

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
    """Replace `stream_blocks`: run tasks sequentially in this process."""
    del subcluster
    return map(function, blocks)


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Keep `deduplicate` from starting Ray within the context; all fingerprints must exist."""
    with (
        mock.patch.object(deduplication, "connected_ray", contextlib.nullcontext),
        mock.patch.object(deduplication, "stream_blocks", in_turn),
    ):
        yield


def main(manifest: str, out: str) -> None:
    """Search, and print CPU seconds, the highest private memory in MiB, and compared pairs per clip."""
    started = time.process_time()
    with sampled(private_and_shared_bytes, SAMPLE_SECONDS) as samples, without_ray():
        report = deduplicate(DeduplicateConfig(manifest=manifest, out=out))
    result = {
        "cpu_seconds": time.process_time() - started,
        "private_mib": max(private for _, (private, _) in [*samples, (0.0, private_and_shared_bytes())]) / 2**20,
        "compared_per_clip": report.num_compared / report.num_clips,
        "pairs_path": report.pairs_path,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
