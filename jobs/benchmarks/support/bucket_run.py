"""`prepare` of the small objects of a bucket, which may be killed in a stage; measures the cost of each stage.

python -m jobs.benchmarks.support.bucket_run CAPTIONS ROOT OUT NUM_OBJECTS KILLED_IN IS_FETCHED
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from jobs.benchmarks.support.small_objects import probe_known
from jobs.corpus import preparation, probing
from jobs.corpus.gathering import Files
from jobs.corpus.preparation import PARTS, PrepareConfig, prepare
from pipeline import storage
from pipeline.offline import stages

STAGES = ("waiting", "listing", "planning", "looking", "writing")
"""Waiting for the lease; listing objects with sizes; planning from captions; probing objects; writing the manifest."""
PROGRESS = "progress: "
"""Prefix of progress lines."""


class Clock:
    """Start times of the stages of one `prepare`, in seconds and CPU seconds of this process."""

    def __init__(self) -> None:
        self.starts: dict[str, tuple[float, float]] = {}

    def enter(self, stage: str) -> None:
        """Start the stage now, unless it has already started."""
        self.starts.setdefault(stage, (time.perf_counter(), time.process_time()))

    def taken(self) -> dict[str, dict[str, float]]:
        """Return seconds and CPU seconds of each stage, after the end of the last one."""
        assert [*self.starts] == [*STAGES, "end"], self.starts
        bounds = list(self.starts.values())
        return {
            name: {
                stage: round(stop[column] - start[column], 2)
                for stage, start, stop in zip(STAGES, bounds, bounds[1:], strict=False)
            }
            for column, name in enumerate(("seconds", "driver_cpu_seconds"))
        }

    def before(self, stage: str, owner: object, name: str) -> Any:
        """Return a patch that starts the stage when the function `name` of `owner` is called."""
        function = getattr(owner, name)

        def called(*arguments: Any, **named: Any) -> Any:
            self.enter(stage)
            return function(*arguments, **named)

        return mock.patch.object(owner, name, called)


def die() -> None:
    """Kill this process and its children at once."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


@contextlib.contextmanager
def killed_in(stage: str, root: str, out: str, num_objects: int) -> Iterator[None]:
    """Die in the middle of a stage: when half of the objects are listed, or probed, or when the first part of the
    manifest is written."""
    listed, stream_blocks, write = storage.iter_versions, stages.stream_blocks, storage.write_bytes_atomic

    def half_listed(path: str) -> Iterator[tuple[str, str]]:
        for number, entry in enumerate(listed(path)):
            if path == root and number == num_objects // 2:
                die()
            yield entry

    num_seen = 0

    def half_streamed(*arguments: Any, **named: Any) -> Iterator[Any]:
        nonlocal num_seen
        for table in stream_blocks(*arguments, **named):
            num_seen += len(table)
            if num_seen >= num_objects // 2:
                die()
            yield table

    def one_part_written(path: str, data: bytes) -> None:
        write(path, data)
        if path.startswith(storage.join(out, f"{PARTS}/part-")):
            die()

    patches = {
        "listing": mock.patch.object(storage, "iter_versions", half_listed),
        "looking": mock.patch.object(stages, "stream_blocks", half_streamed),
        "writing": mock.patch.object(storage, "write_bytes_atomic", one_part_written),
    }
    with patches[stage] if stage else contextlib.nullcontext():
        yield


class ProgressLines(logging.StreamHandler):
    """Writes all progress messages to stderr, without the rate limit of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_progress", False):
            super().emit(record)


def measured(captions: str, root: str, out: str, num_objects: int, stage: str, is_fetched: bool) -> dict[str, Any]:
    """Prepare as `snps3 prepare --in-parts` does, except for the decoding; return the cost of each stage.

    `stage`: the stage in which this process is killed; empty: none.
    """
    clock = Clock()
    probe = functools.partial(probe_known, is_fetched=is_fetched)
    with (
        killed_in(stage, root, out, num_objects),
        clock.before("listing", Files, "below"),
        clock.before("planning", preparation, "_gather"),
        clock.before("looking", preparation, "_probe"),
        clock.before("writing", preparation, "commit"),
        mock.patch.object(probing, "probe_batch", probe),
    ):
        clock.enter("waiting")
        report = prepare(PrepareConfig(corpus="objects", root=root, out=out, annotations=(captions,), in_parts=True))
        clock.enter("end")
    return clock.taken() | {"manifest_hash": report.manifest_hash}


def main(captions: str, root: str, out: str, num_objects: str, stage: str, is_fetched: str) -> None:
    """Prepare in this process and print the costs."""
    handler = ProgressLines(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{PROGRESS}%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    print(json.dumps(measured(captions, root, out, int(num_objects), stage, is_fetched == "True")))


if __name__ == "__main__":
    main(*sys.argv[1:])
