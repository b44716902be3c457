"""Passes over rows that go on where they were stopped: of Ray Data, or of threads that wait for others' machines."""

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
"""Results that a kill loses at most, beside those that are being asked for."""


def computed_once(
    rows: pa.Table, function: Callable[[pa.Table], pa.Table], folder: str, schema: pa.Schema, **options: Any
) -> pa.Table:
    """Return the results of `rows`: those in `folder`, and of the others what `kept.compute` does with `options`.

    Ray is joined only if something is left to compute.
    """
    done, left = kept.parted(rows, folder, schema)
    if not len(left):
        return done
    from cluster.connection import connected_ray  # who has nothing to compute does not wait for Ray

    with connected_ray():
        return pa.concat_tables([done, kept.compute(left, function, folder, **options)])


def asked_once(
    rows: Sequence[Row], ask: Callable[[Row], Row], folder: str, schema: pa.Schema, *, num_at_once: int, what: str
) -> tuple[pa.Table, int]:
    """Return the results of `rows` (with `key`), and of how many `ask` was asked now: those that `folder` has none of.

    Each few results are kept in `folder` as they come, and at a failure the others. `what`: the results, for the log.
    """
    keys = pa.table({"key": pa.array([row["key"] for row in rows], pa.string())})
    done, left = kept.parted(keys, folder, schema)
    missing = set(left["key"].to_pylist())
    asked = [row for row in rows if row["key"] in missing]
    log.info("%d %s, %d of them from before", len(rows), what, len(rows) - len(asked))
    results, fields = [done], kept.result_schema(schema)
    waiting: list[Row] = []

    def keep_waiting() -> None:
        if waiting:
            results.append(pa.Table.from_pylist(waiting, fields))
            kept.keep(results[-1], folder)
            waiting.clear()

    try:
        for number, result in enumerate(in_threads(asked, ask, num_at_once), start=1):
            waiting.append(result)
            if len(waiting) == ANSWERS_PER_FILE:
                keep_waiting()
                log.info("%d of %d %s", number, len(asked), what, extra={"is_progress": True})
    finally:
        keep_waiting()
    return pa.concat_tables(results), len(asked)


def in_threads(items: Sequence[Row], function: Callable[[Row], Row], num_threads: int) -> Iterator[Row]:
    """Yield `function` of the items as each is done. What was not begun when one fails is not begun."""
    with ThreadPoolExecutor(num_threads) as pool:
        begun: set[Future[Row]] = set()
        for item in items:
            begun.add(pool.submit(function, item))
            if len(begun) > num_threads:
                finished, begun = wait(begun, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        yield from (future.result() for future in begun)
