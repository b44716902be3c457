"""The files behind the windows of an index: their names, lengths and dates, and filters over them.

Memory holds one number per window, and the facts of each file once; the times of windows stay on disk.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int32

from pipeline import storage

COLUMNS = ("uri", "end_seconds", "version")


class UndatedError(ValueError):
    """Raised when a search filters by date but no file has one."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters on the searched files."""

    folder: str = ""
    """Folder below the root of the videos; empty: all."""
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    """Length of the whole file. Images last 0 seconds."""
    since: datetime.date | None = None
    until: datetime.date | None = None
    """First and last day of the files' last change, as 2026-11-29. Files in a bucket have no such date."""

    def __post_init__(self) -> None:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds must not exceed max_seconds, got {self.min_seconds} and {self.max_seconds}")
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since must not be after until, got {self.since} and {self.until}")


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedFiles:
    """F files and their N windows."""

    uris: list[str]
    names: list[str]
    """Paths below the root of the videos."""
    seconds: Float64[np.ndarray, " F"]
    """End of the last window; 0 for images."""
    changed: Float64[np.ndarray, " F"]
    """Time of the last change in seconds since 1970; NaN if the store has none."""
    of_row: Int32[np.ndarray, " N"]
    """Number of each window's file."""

    @classmethod
    def read(cls, parts: Sequence[str], root: str) -> Self:
        """Read the files of an index's parts; `root`: folder of its videos."""
        numbers: dict[str, int] = {}
        rows, ends, versions = [], [], []
        for table in map(read_part, parts):
            names = table["uri"].combine_chunks().dictionary_encode()
            places = np.array([numbers.setdefault(uri, len(numbers)) for uri in names.dictionary.to_pylist()])
            rows.append(places[names.indices.to_numpy()].astype(np.int32))
            ends.append(pc.fill_null(table["end_seconds"], 0.0).to_numpy())
            versions.append(table["version"].to_numpy())
        of_row, seconds = np.concatenate(rows), np.zeros(len(numbers))
        np.maximum.at(seconds, of_row, np.concatenate(ends))
        first = np.unique(of_row, return_index=True)[1]
        changed = np.array([change_of(version) for version in np.concatenate(versions)[first]])
        names = [uri.removeprefix(f"{root}/") for uri in numbers]
        return cls(uris=[*numbers], names=names, seconds=seconds, changed=changed, of_row=of_row)

    def passing(self, filters: Filters) -> Bool[np.ndarray, " N"] | None:
        """Return which windows belong to files that pass; None: all. Raise UndatedError if no file has a date to filter
        by."""
        if filters == Filters():
            return None
        prefix = f"{filters.folder.strip('/')}/" if filters.folder.strip("/") else ""
        passes = np.array([name.startswith(prefix) for name in self.names])
        passes &= (self.seconds >= filters.min_seconds) & (self.seconds <= filters.max_seconds)
        if (filters.since or filters.until) and np.isnan(self.changed).all():
            raise UndatedError("since and until need files with a date of change, and none of this index has one")
        if filters.since:
            passes &= self.changed >= start_of(filters.since)
        if filters.until:
            passes &= self.changed < start_of(filters.until + datetime.timedelta(days=1))
        return passes[self.of_row]


def read_part(path: str) -> pa.Table:
    """Return `COLUMNS` of a part, with nulls for columns that an earlier format lacks."""

    def read(file: object) -> pa.Table:
        part = pq.ParquetFile(file)
        return part.read([name for name in COLUMNS if name in part.schema_arrow.names])

    table = storage.read_with(path, read)
    kinds = {"end_seconds": pa.float64(), "version": pa.string()}
    for name in kinds.keys() - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), kinds[name]))
    return table


def change_of(version: str | None) -> float:
    """Return the modification time in a file's version, which consists of size and time; NaN for an ETag, or None."""
    with contextlib.suppress(ValueError):
        return float((version or "").rpartition(" ")[2])
    return math.nan


def start_of(day: datetime.date) -> float:
    """Return the start of a day in this machine's time zone, in seconds since 1970."""
    return datetime.datetime.combine(day, datetime.time.min).timestamp()
