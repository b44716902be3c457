"""Resumable passes over rows: with Ray Data, or with threads that wait for remote services."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pipeline.offline import kept

log = logging.getLogger(__name__)

Row = dict[str, Any]
ANSWERS_PER_FILE = 8
"""Results per file: a kill loses at most these, and the pending requests."""


def compute_missing(
    rows: pa.Table, function: Callable[[pa.Table], pa.Table], folder: str, schema: pa.Schema, **options: Any
) -> pa.Table:
    """Return the results of `rows`: those kept in `folder`, and the others from `kept.compute` with `options`.

    Connects to Ray only if something is left to compute.
    """
    reused, left = kept.split_by_cached(rows, folder, schema)
    if not len(left):
        return reused
    from cluster.connection import connected_ray  # here, so that Ray is imported only if it is needed

    with connected_ray():
        return pa.concat_tables([reused, kept.compute(left, function, folder, **options)])


def request_missing(
    rows: Sequence[Row], request: Callable[[Row], Row], folder: str, schema: pa.Schema, *, num_at_once: int, what: str
) -> tuple[pa.Table, int]:
    """Return the results of `rows` (with `key`), and the number of calls of `request`: one per row without a result in
    `folder`.

    New results are written to `folder` every `ANSWERS_PER_FILE`, and on failure. `what`: name of the results, for the
    log.
    """
    keys = pa.table({"key": pa.array([row["key"] for row in rows], pa.string())})
    reused, left = kept.split_by_cached(keys, folder, schema)
    missing = set(left["key"].to_pylist())
    requested = [row for row in rows if row["key"] in missing]
    log.info("%d %s, %d of them from before", len(rows), what, len(rows) - len(requested))
    results, fields = [reused], kept.result_schema(schema)
    pending: list[Row] = []

    def write_pending() -> None:
        if pending:
            results.append(pa.Table.from_pylist(pending, fields))
            kept.write_cached(results[-1], folder)
            pending.clear()

    try:
        for number, result in enumerate(map_in_threads(requested, request, num_at_once), start=1):
            pending.append(result)
            if len(pending) == ANSWERS_PER_FILE:
                write_pending()
                log.info("%d of %d %s", number, len(requested), what, extra={"is_progress": True})
    finally:
        write_pending()
    return pa.concat_tables(results), len(requested)


def map_in_threads(items: Sequence[Row], function: Callable[[Row], Row], num_threads: int) -> Iterator[Row]:
    """Yield the results of `function` as they complete. After a failure, no further item is submitted."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: set[Future[Row]] = set()
        for item in items:
            pending.add(pool.submit(function, item))
            if len(pending) > num_threads:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        yield from (future.result() for future in pending)
