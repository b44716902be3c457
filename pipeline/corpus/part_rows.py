"""Rows of a manifest in parts, by number: the row groups that are asked for are read, and a bounded number kept."""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from pipeline import storage
from pipeline.corpus.columns import SCHEMA
from pipeline.corpus.content import checksum
from pipeline.corpus.listing import Rows
from pipeline.corpus.parts import GROUP_ROWS, REMEDY, Part

CACHE_BYTES = 64 * 2**20
"""Row groups that a process keeps, about 220 of WebVid's rows; the rows of two windows of `OrderConfig`."""
NUM_FOOTERS = 16
"""Footers of parts that a process keeps, half a megabyte each."""
Group = tuple[str, int]
"""Path of a part, and number of a row group in it."""


class GroupCache:
    """Row groups that were asked for last. Threads read several at a time; who asks for one waits for it."""

    def __init__(self, max_bytes: int, num_threads: int = storage.NUM_AHEAD) -> None:
        self.max_bytes, self.num_bytes_kept = max_bytes, 0
        self.num_bytes_read = self.num_groups_read = 0
        self._lock, self._tables = threading.Lock(), OrderedDict[Group, Future[pa.Table]]()
        self._num_threads = num_threads

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._num_threads, "rows")

    def ask(self, group: Group, read: Callable[[], tuple[pa.Table, int]]) -> Future[pa.Table]:
        """Return the table of `group`, which is on its way; `read` gives it and the bytes that were fetched for it."""
        with self._lock:
            if group in self._tables:
                self._tables.move_to_end(group)
                return self._tables[group]
            future = self._tables[group] = self._pool.submit(self._count, read)
        future.add_done_callback(functools.partial(self._keep, group))
        return future

    def _count(self, read: Callable[[], tuple[pa.Table, int]]) -> pa.Table:
        table, num_bytes = read()
        with self._lock:
            self.num_bytes_read += num_bytes
            self.num_groups_read += 1
        return table

    def _keep(self, group: Group, future: Future[pa.Table]) -> None:
        """Let the oldest go; one that could not be read is asked for anew next time."""
        with self._lock:
            if future.exception():
                self._tables.pop(group, None)
                return
            self.num_bytes_kept += future.result().nbytes
            for oldest in list(self._tables):
                if self.num_bytes_kept <= self.max_bytes:
                    break
                if oldest != group and self._tables[oldest].done() and not self._tables[oldest].exception():
                    self.num_bytes_kept -= self._tables.pop(oldest).result().nbytes


CACHE = GroupCache(CACHE_BYTES)
"""Of this process, for all manifests."""


class PartRows(Rows):
    """The clips of one kind in a split, in `parts`, which are in order of clip_id."""

    is_in_parts: ClassVar[bool] = True

    def __init__(self, folder: str, parts: Sequence[Part], cache: GroupCache = CACHE) -> None:
        self.folder, self.parts, self.cache = folder, list(parts), cache
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self._first_groups = np.cumsum([0, *(-(-part.num_rows // GROUP_ROWS) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, positions: Int64[np.ndarray, " n"]) -> pa.Table:
        numbers, inside = self._located(positions)
        groups, which = np.unique(numbers, return_inverse=True)
        tables = [future.result() for future in [self._ask(number) for number in groups.tolist()]]
        if not tables:
            return SCHEMA.empty_table()
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(groups) + 1))
        taken = pa.concat_tables(
            table.take(pa.array(inside[order[start:stop]]))
            for table, start, stop in zip(tables, bounds, bounds[1:], strict=False)
        )
        return taken.combine_chunks().take(pa.array(np.argsort(order, kind="stable")))

    def range(self, start: int, stop: int) -> pa.Table:
        start, stop = max(0, start), min(stop, len(self))
        if start >= stop:
            return SCHEMA.empty_table()
        (first, last), inside = self._located(np.array([start, stop - 1]))
        tables = [future.result() for future in [self._ask(number) for number in range(first, last + 1)]]
        return pa.concat_tables(tables).slice(int(inside[0]), stop - start)

    def prefetch(self, positions: Int64[np.ndarray, " n"]) -> None:
        for number in np.unique(self._located(positions)[0]).tolist():
            self._ask(number)

    def _located(self, positions: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """The row group of each position, counted over all parts, and its place in it. IndexError behind the end."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"rows [0, {len(self)}) of {self.folder} were asked for up to {positions.max()}")
        part = np.searchsorted(self._starts, positions, side="right") - 1
        group, inside = np.divmod(positions - self._starts[part], GROUP_ROWS)
        return self._first_groups[part] + group, inside

    def _ask(self, number: int) -> Future[pa.Table]:
        place = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        part, group = self.parts[place], number - int(self._first_groups[place])
        path = storage.join(self.folder, part.name)
        return self.cache.ask((path, group), functools.partial(read_group, path, part, group))


def read_group(path: str, part: Part, group: int) -> tuple[pa.Table, int]:
    """Return a row group of a part, and the bytes that were fetched. ValueError for a part that is not as it was
    written, FileNotFoundError for none."""
    footer, fetched = footer_of(path, part)
    columns = [footer.row_group(group).column(number) for number in range(footer.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    start = min(starts)
    stop = max(first + column.total_compressed_size for first, column in zip(starts, columns, strict=True))
    file = _Range(start, read_range(path, part, start, stop), part.num_bytes)
    return _table(path, lambda: _opened(file, footer).read_row_group(group, use_threads=False)), stop - start + fetched


def read_part(path: str, part: Part) -> pa.Table:
    """Return all rows of a part, which is read whole. Errors as those of `read_group`."""
    data = read_range(path, part, 0, part.num_bytes)
    footer = _checked_footer(path, part, data[-part.footer_bytes :])
    return _table(path, lambda: _opened(io.BytesIO(data), footer).read())


def read_range(path: str, part: Part, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a part."""
    try:
        data = storage.read_bytes(path, start, stop)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}, a part of the manifest, is missing: {REMEDY}") from error
    if len(data) != stop - start:
        raise ValueError(f"{path} is cut: the index says {part.num_bytes} bytes, and it ends before {stop}: {REMEDY}")
    return data


def footer_of(path: str, part: Part) -> tuple[pq.FileMetaData, int]:
    """Return the footer of a part, and the bytes that were fetched for it now."""
    before = _footers.cache_info().misses
    footer = _footers(path, part)
    return footer, part.footer_bytes if _footers.cache_info().misses > before else 0


@functools.lru_cache(NUM_FOOTERS)
def _footers(path: str, part: Part) -> pq.FileMetaData:
    return _checked_footer(path, part, read_range(path, part, part.num_bytes - part.footer_bytes, part.num_bytes))


def _checked_footer(path: str, part: Part, data: bytes) -> pq.FileMetaData:
    if checksum(data) != part.footer_checksum:
        raise ValueError(
            f"{path} is not the part that the index names: its footer has the hash {checksum(data)}, and should have "
            f"{part.footer_checksum}; it was damaged, or is of another version of the manifest: {REMEDY}"
        )
    return pq.read_metadata(io.BytesIO(data))


def _opened(file: Any, footer: pq.FileMetaData) -> pq.ParquetFile:
    return pq.ParquetFile(file, metadata=footer, page_checksum_verification=True)


def _table(path: str, read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read().cast(SCHEMA)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error


class _Range(io.RawIOBase):
    """A file of which some bytes are there, those from `start` on."""

    def __init__(self, start: int, data: bytes, num_bytes: int) -> None:
        self.start, self.data, self.num_bytes, self.position = start, data, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.num_bytes)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        first = self.position - self.start
        assert 0 <= first <= len(self.data), f"bytes from {self.position} on were not fetched"
        data = self.data[first : first + size if size >= 0 else None]
        self.position += len(data)
        return data
