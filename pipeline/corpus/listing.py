"""Common interface to the rows of a manifest, whether they are in memory or in parts that are read on demand."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from pipeline.corpus.schema import num_uncaptioned
from pipeline.records import Kind

_CAPTIONED = ["captions", "caption_sources"]


class Rows(abc.ABC):
    """The clips of one kind in a split, numbered in order of clip_id; clips that were appended later come last.

    Tables have the columns of `SCHEMA`.
    """

    is_in_parts: ClassVar[bool]
    """Whether rows are read on demand."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, positions: Int64[np.ndarray, " n"]) -> pa.Table:
        """Return the rows at `positions`, in that order."""

    @abc.abstractmethod
    def range(self, start: int, stop: int) -> pa.Table:
        """Return the rows [start, stop), as far as they exist."""

    @abc.abstractmethod
    def prefetch(self, positions: Int64[np.ndarray, " n"]) -> None:
        """Start to read what `take(positions)` will need."""

    def batches(self, num_rows: int = 65_536) -> Iterator[pa.Table]:
        """Yield all rows, at most `num_rows` at a time."""
        for start in range(0, len(self), num_rows):
            yield self.range(start, start + num_rows)


@dataclass(frozen=True)
class TableRows(Rows):
    """Rows in memory."""

    is_in_parts: ClassVar[bool] = False

    table: pa.Table

    def __len__(self) -> int:
        return self.table.num_rows

    def take(self, positions: Int64[np.ndarray, " n"]) -> pa.Table:
        return self.table.take(pa.array(positions))

    def range(self, start: int, stop: int) -> pa.Table:
        return self.table[start:stop]

    def prefetch(self, positions: Int64[np.ndarray, " n"]) -> None:
        """Do nothing: all rows are in memory."""


@dataclass(frozen=True, kw_only=True)
class Listing(abc.ABC):
    """A corpus: the numbered clips of each split and kind."""

    is_in_parts: ClassVar[bool]
    """Whether rows are read on demand."""

    corpus: str
    root: str
    """Root of the files when the manifest was written; every `uri` of this corpus starts with it."""
    decoders: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Decoder → seconds and CPU seconds per clip, if measured on this corpus. Not part of the hash."""

    @property
    @abc.abstractmethod
    def hash(self) -> str:
        """Return 32 hex digits that identify the content, independent of where the files lie."""

    @property
    @abc.abstractmethod
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return (split, kind) → number of clips, without empty entries."""

    @abc.abstractmethod
    def rows(self, split: str, kind: Kind) -> Rows:
        """Return the clips of one kind in a split; there may be none."""

    def num_uncaptioned(self, split: str) -> int:
        """Return the number of clips of a split without captions."""
        return sum(num_uncaptioned(rows) for rows in self.batches(split=split))

    def num_of_other_sources(self, split: str, sources: Collection[str | None]) -> int:
        """Return the number of clips of a split that have no caption from any of `sources`."""
        rows = (row for table in self.batches(split=split) for row in table.select(_CAPTIONED).to_pylist())
        return sum(not {*(row["caption_sources"] or [None] * len(row["captions"]))} & {*sources} for row in rows)

    def batches(self, num_rows: int = 65_536, split: str | None = None) -> Iterator[pa.Table]:
        """Yield all rows, or those of a split, in order of (split, kind, clip_id), at most `num_rows` at a time."""
        for name, kind in sorted(self.counts):
            if split in (None, name):
                yield from self.rows(name, Kind(kind)).batches(num_rows)

    @property
    def fastest_decoder(self) -> str | None:
        """Return the fastest of the measured decoders; None if none was measured."""
        return min(self.decoders, key=lambda name: max(self.decoders[name].values()), default=None)

    @property
    def splits(self) -> dict[str, int]:
        """Return split → number of clips."""
        numbers = Counter[str]()
        for (split, _), count in self.counts.items():
            numbers[split] += count
        return dict(sorted(numbers.items()))

    def num_clips(self, split: str, kind: Kind) -> int:
        """Return the number of clips of one kind in a split."""
        return self.counts.get((split, kind.value), 0)

    def refuse_empty(self, split: str) -> None:
        """Raise ValueError, listing the existing splits, if this one has no clip."""
        if split not in self.splits:
            there_are = ", ".join(f"{name} ({count})" for name, count in self.splits.items()) or "no rows at all"
            raise ValueError(f"the split {split!r} of corpus {self.corpus!r} is empty; there are: {there_are}")

    def split(self, name: str) -> pa.Table:
        """Load all rows of one split into memory, sorted by id. ValueError if it is empty or unknown."""
        self.refuse_empty(name)
        kinds = [self.rows(name, kind) for kind in Kind if self.num_clips(name, kind)]
        table = pa.concat_tables([rows.range(0, len(rows)) for rows in kinds])
        return table.sort_by("clip_id") if len(kinds) > 1 or self.is_in_parts else table

    def __len__(self) -> int:
        return sum(self.counts.values())


def counted(table: pa.Table) -> dict[tuple[str, str], int]:
    """Return (split, kind) → number of rows of a table."""
    groups = table.select(["split", "kind"]).group_by(["split", "kind"]).aggregate([([], "count_all")])
    return {(row["split"], row["kind"]): row["count_all"] for row in groups.to_pylist()}


def of_kind(table: pa.Table, split: str, kind: Kind) -> pa.Table:
    """Return the rows of a split and kind, in one chunk."""
    return table.filter((pc.field("split") == split) & (pc.field("kind") == kind.value)).combine_chunks()
