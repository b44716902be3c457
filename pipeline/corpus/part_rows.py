"""Random access to the rows of a manifest in parts: row groups are read on demand, and a bounded number is cached."""

from __future__ import annotations

import functools
import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from pipeline import storage
from pipeline.corpus.content import checksum
from pipeline.corpus.listing import Rows
from pipeline.corpus.parts import GROUP_ROWS, REMEDY, Part
from pipeline.corpus.schema import SCHEMA, completed

NUM_GROUPS = 112
"""Cached row groups per process (32 MiB for WebVid): two windows of `OrderConfig`, and some for evaluation."""
NUM_FOOTERS = 4
"""Cached footers of parts per process: a megabyte each, when parse_group."""
Group = tuple[str, int]
"""Path of a part, and number of a row group in it."""


@dataclass(frozen=True)
class FetchedGroup:
    """The bytes of a row group, which begin at byte `start` of its part."""

    footer: pq.FileMetaData
    start: int
    data: bytes
    num_bytes: int
    """Bytes fetched for it, including the footer if that was not cached."""


class GroupCache:
    """LRU cache of row groups. Several are fetched at a time; the caller waits for the future of its group.

    A single thread parses them, because Arrow's allocator keeps memory for each thread that has used it.
    """

    def __init__(self, max_groups: int) -> None:
        self.max_groups = self._first_max_groups = max_groups
        self.num_bytes_read = self.num_groups_read = 0
        self._lock, self._tables = threading.Lock(), OrderedDict[Group, Future[pa.Table]]()
        self._waiting = deque[tuple[Group, Callable[[], FetchedGroup], Future[pa.Table]]]()
        self._num_in_flight = 0

    @functools.cached_property
    def _pools(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        return ThreadPoolExecutor(storage.NUM_PREFETCHED, "fetched"), ThreadPoolExecutor(1, "parsed")

    def __len__(self) -> int:
        return len(self._tables)

    def double(self) -> None:
        """Raise the capacity to twice the initial one."""
        self.max_groups = 2 * self._first_max_groups

    def request(self, group: Group, fetch: Callable[[], FetchedGroup]) -> Future[pa.Table]:
        """Return a future of the table of `group`, and request it if it is not cached. The least recently used group is
        evicted."""
        with self._lock:
            if group not in self._tables:
                self._tables[group] = Future()
                self._waiting.append((group, fetch, self._tables[group]))
                if len(self._tables) > self.max_groups:
                    self._tables.popitem(last=False)
                self._advance()
            self._tables.move_to_end(group)
            return self._tables[group]

    def _advance(self) -> None:
        """Start fetches in order of request, with at most `NUM_PREFETCHED` unparsed groups. The lock must be held."""
        fetching, parsing = self._pools
        while self._waiting and self._num_in_flight < storage.NUM_PREFETCHED:
            group, fetch, future = self._waiting.popleft()
            self._num_in_flight += 1
            parsing.submit(self._parse, group, fetching.submit(fetch), future)

    def _parse(self, group: Group, fetched: Future[FetchedGroup], future: Future[pa.Table]) -> None:
        """Resolve the future of a row group. A failed one leaves the cache, so that the next request retries it."""
        try:
            table = parse_group(group, fetched.result())
            self.num_bytes_read += fetched.result().num_bytes
            self.num_groups_read += 1
            future.set_result(table)
        except BaseException as error:
            with self._lock:
                self._tables.pop(group, None)
            future.set_exception(error)
        with self._lock:
            self._num_in_flight -= 1
            self._advance()


CACHE = GroupCache(NUM_GROUPS)
"""Cache of this process, shared by all manifests."""


class PartRows(Rows):
    """The clips of one kind in a split, in `parts`, which are in order of clip_id."""

    is_in_parts: ClassVar[bool] = True

    def __init__(self, folder: str, parts: Sequence[Part], cache: GroupCache = CACHE) -> None:
        self.folder, self.parts, self.cache = folder, list(parts), cache
        if any(part.num_rows % GROUP_ROWS for part in self.parts[:-1]):
            cache.double()  # a block of the order then spans two row groups
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self._first_groups = np.cumsum([0, *(-(-part.num_rows // GROUP_ROWS) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, positions: Int64[np.ndarray, " n"]) -> pa.Table:
        numbers, inside = self._located(positions)
        groups, which = np.unique(numbers, return_inverse=True)
        tables = [future.result() for future in [self._request(number) for number in groups.tolist()]]
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
        tables = [future.result() for future in [self._request(number) for number in range(first, last + 1)]]
        return pa.concat_tables(tables).slice(int(inside[0]), stop - start)

    def prefetch(self, positions: Int64[np.ndarray, " n"]) -> None:
        for number in np.unique(self._located(positions)[0]).tolist():
            self._request(number)

    def _located(self, positions: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the row group of each position, counted over all parts, and the row in it. IndexError past the end."""
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"rows [0, {len(self)}) of {self.folder} were asked for up to {positions.max()}")
        part = np.searchsorted(self._starts, positions, side="right") - 1
        group, inside = np.divmod(positions - self._starts[part], GROUP_ROWS)
        return self._first_groups[part] + group, inside

    def _request(self, number: int) -> Future[pa.Table]:
        place = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        part, group = self.parts[place], number - int(self._first_groups[place])
        path = storage.join(self.folder, part.name)
        return self.cache.request((path, group), functools.partial(fetch_group, path, part, group))


def fetch_group(path: str, part: Part, group: int) -> FetchedGroup:
    """Fetch the bytes of a row group. ValueError: the part was changed; FileNotFoundError: it is missing."""
    footer, num_bytes = footer_of(path, part)
    columns = [footer.row_group(group).column(number) for number in range(footer.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    start = min(starts)
    stop = max(first + column.total_compressed_size for first, column in zip(starts, columns, strict=True))
    data = read_range(path, part, start, stop)
    return FetchedGroup(footer=footer, start=start, data=data, num_bytes=num_bytes + len(data))


def parse_group(group: Group, fetched: FetchedGroup) -> pa.Table:
    """Parse the rows of a row group. ValueError for damaged bytes."""
    path, number = group
    file = _Range(fetched.start, fetched.data)
    return _table(path, lambda: _opened(file, fetched.footer).read_row_group(number, use_threads=False))


def read_part(path: str, part: Part) -> pa.Table:
    """Read all rows of a part. Raises the errors of `fetch_group` and `parse_group`."""
    data = read_range(path, part, 0, part.num_bytes)
    footer = _checked_footer(path, part, data[-part.footer_bytes :])
    return _table(path, lambda: _opened(io.BytesIO(data), footer).read())


def read_range(path: str, part: Part, start: int, stop: int) -> bytes:
    """Read the bytes [start, stop) of a part. FileNotFoundError: it is missing; ValueError: it is truncated."""
    try:
        data = storage.read_bytes(path, start, stop)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}, a part of the manifest, is missing: {REMEDY}") from error
    if len(data) != stop - start:
        raise ValueError(f"{path} is cut: the index says {part.num_bytes} bytes, and it ends before {stop}: {REMEDY}")
    return data


def footer_of(path: str, part: Part) -> tuple[pq.FileMetaData, int]:
    """Return the footer of a part, and the number of bytes fetched for it by this call (0: it was cached)."""
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
        return completed(read())
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged ({error}): {REMEDY}") from error


class _Range(io.RawIOBase):
    """A read-only file that holds only a range of its bytes, which begins at `start`."""

    def __init__(self, start: int, data: bytes) -> None:
        self.start, self.data, self.position = start, data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.start + len(self.data))[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        first = self.position - self.start
        assert 0 <= first <= len(self.data), f"bytes from {self.position} on were not fetched"
        data = self.data[first : first + size if size >= 0 else None]
        self.position += len(data)
        return data
