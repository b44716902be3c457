"""Rows in numbered buckets: in memory while they are few, else on disk, so that a few buckets can be read at a time.

    tables of any order ──number of each row──► bucket 0 … bucket 255 ──► rows of the buckets [start, stop)

Rows that must be read together get the same number: names that may mean the same file, ids of one range.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

NUM_BUCKETS = 256
ROWS_IN_MEMORY = 2**17
"""Rows that stay in memory; with more rows, the largest number that is buffered between writes to disk."""


class Buckets:
    """Rows of one schema. Each bucket keeps the order in which its rows were added."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.counts = schema, np.zeros(NUM_BUCKETS, np.int64)
        self._waiting: list[tuple[Int64[np.ndarray, " n"], pa.Table]] = []
        self._num_waiting = 0
        self._folder: Path | None = None

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, numbers: Int64[np.ndarray, " n"], table: pa.Table) -> None:
        """Put each row of `table` into the bucket of its number."""
        self.counts += np.bincount(numbers, minlength=NUM_BUCKETS)
        self._waiting.append((numbers, table.select(self.schema.names).cast(self.schema)))
        self._num_waiting += len(numbers)
        if self._num_waiting > ROWS_IN_MEMORY:
            self._write()

    def read(self, start: int = 0, stop: int = NUM_BUCKETS) -> pa.Table:
        """Return the rows of the buckets [start, stop)."""
        tables = [self.schema.empty_table()]
        if self._folder:
            self._write()
            for path in (self._folder / str(number) for number in range(start, stop)):
                tables += _streams(path) if path.exists() else []
        for numbers, table in self._waiting:
            tables.append(table.filter(pa.array((numbers >= start) & (numbers < stop))))
        return pa.concat_tables(tables)

    def _write(self) -> None:
        """Append the buffered rows to the files of their buckets."""
        if self._folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="snps3-buckets-")
            self._folder = Path(temporary.name)
            weakref.finalize(self, temporary.cleanup)
        if not self._waiting:
            return
        numbers = np.concatenate([numbers for numbers, _ in self._waiting])
        order = np.argsort(numbers, kind="stable")
        table = pa.concat_tables([table for _, table in self._waiting]).take(pa.array(order)).combine_chunks()
        bounds = np.searchsorted(numbers[order], np.arange(NUM_BUCKETS + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            part = table.slice(bounds[number], bounds[number + 1] - bounds[number])
            with open(self._folder / str(number), "ab") as file, pa.ipc.new_stream(file, self.schema) as stream:
                stream.write_table(part)
        self._waiting, self._num_waiting = [], 0


def _streams(path: Path) -> Iterator[pa.Table]:
    """Yield the tables of a file, which is a concatenation of Arrow streams."""
    with open(path, "rb") as file:
        size = path.stat().st_size
        while file.tell() < size:
            yield pa.ipc.open_stream(file).read_all()


def buckets_of_ids(clip_ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the buckets of clip ids, in the same order as the ids. Ids are uniformly distributed in [0, 2⁶³)."""
    return clip_ids >> 55


def portions(counts: Int64[np.ndarray, " buckets"], max_rows: int) -> Iterator[tuple[int, int]]:
    """Partition the buckets, in order, into ranges of at most `max_rows` rows or of one bucket."""
    start = num_rows = 0
    for number, count in enumerate(counts.tolist()):
        if num_rows and num_rows + count > max_rows:
            yield start, number
            start, num_rows = number, 0
        num_rows += count
    yield start, len(counts)
