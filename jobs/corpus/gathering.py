"""The annotations and files that `prepare` has to match, in portions that fit in memory.

files below the root ──┐
                       ├─ bucketed by name ──► portion: annotations, and the files that they may refer to
rows of annotations ───┘
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from jobs.corpus.planning import TABLES, Outline, Plan, make_plan
from pipeline import storage
from pipeline.corpus import annotations, media
from pipeline.corpus.buckets import NUM_BUCKETS, Buckets, portions
from pipeline.corpus.clip_rows import Annotated, Annotation, WrongRow
from pipeline.corpus.names import bucket_of_name
from pipeline.corpus.sources import Layout, Source, find_skipped, open_source
from pipeline.records import Kind

log = logging.getLogger(__name__)

FILES = pa.schema([("name", pa.string()), ("version", pa.string())])
PLACES = pa.schema([("name", pa.string()), ("uri", pa.string())])
ROWS = pa.schema(
    [
        ("where", pa.string()),
        ("relative_path", pa.string()),
        ("captions", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("kind", "split", "group")),
        *((name, pa.float64()) for name in ("start_seconds", "end_seconds")),
    ]
)
"""Columns of an `Annotation`: its place (`where`) and its fields."""
assert ROWS.names[1:] == [attribute.name for attribute in fields(Annotation)]
ROWS_AT_ONCE = 2**14
"""Rows that are collected in Python before they become a table."""
PORTION_ROWS = 2**16
"""Most annotations and files of a portion, unless a single bucket has more."""
PROGRESS_SECONDS = 5.0
_LAYOUT_SUFFIXES = (".parquet", *media.TAR_SUFFIXES, *TABLES)
"""Suffixes of files from which the layout of a corpus is detected."""


@dataclass
class Files:
    """The files below a root."""

    buckets: Buckets = field(default_factory=lambda: Buckets(FILES))
    skipped: dict[str, str] = field(default_factory=dict)
    """Name of a file that no clip can be read from → reason."""
    layout_names: list[str] = field(default_factory=list)
    """Names from which the layout is detected: one video or image, and all tars and tables."""
    hash: str = ""
    """Hash of the name, size and version of all files."""

    @classmethod
    def below(cls, root: str, is_output: Callable[[str], bool]) -> Files:
        """List the files below `root` in batches, without those for which `is_output` (our output); log progress."""
        files, digest = cls(), hashlib.blake2b(digest_size=16)
        has_media, logged_at = False, time.monotonic()
        listed = ((name, version) for name, version in storage.iter_versions(root) if not is_output(name))
        while pairs := list(itertools.islice(listed, ROWS_AT_ONCE)):
            digest.update(json.dumps(pairs).encode())
            files.skipped |= find_skipped(root, [name for name, _ in pairs])
            pairs = [pair for pair in pairs if pair[0] not in files.skipped and not storage.is_surrogate(pair[0])]
            for name, _ in pairs:
                is_media = bool(media.kind_of(name))
                if (is_media and not has_media) or name.lower().endswith(_LAYOUT_SUFFIXES):
                    files.layout_names.append(name)
                has_media |= is_media
            put(files.buckets, pairs)
            if time.monotonic() - logged_at >= PROGRESS_SECONDS:
                log.info("%d files are listed below %s", len(files.buckets), root, extra={"is_progress": True})
                logged_at = time.monotonic()
        files.hash = digest.hexdigest()
        return files

    def versions(self, start: int, stop: int) -> dict[str, str]:
        """Return name → size and version of the files in the buckets [start, stop)."""
        table = self.buckets.read(start, stop)
        return dict(zip(table["name"].to_pylist(), table["version"].to_pylist(), strict=True))


@dataclass(kw_only=True, eq=False)
class Gathered:
    """All annotations and all files of a corpus, bucketed by name."""

    source: Source
    """The source without `places`: each plan fills in those of its portion."""
    files: Files
    rows: Buckets
    wrong: list[WrongRow]
    notes: list[str]
    """How the annotations were interpreted."""
    places: Buckets | None = None
    """Uris of clips inside of files; None if each file is a clip."""

    @cached_property
    def portions(self) -> list[tuple[int, int]]:
        """Return the ranges of buckets, [start, stop), that are in memory at a time."""
        counts = self.rows.counts + (self.files.buckets if self.places is None else self.places).counts
        return list(portions(counts, PORTION_ROWS))

    def plan(self, start: int, stop: int) -> Plan:
        """Return the clips of the buckets [start, stop), matched with their files."""
        return self._whole if (start, stop) == (0, NUM_BUCKETS) else self._plan(start, stop)

    @cached_property
    def _whole(self) -> Plan:
        return self._plan(0, NUM_BUCKETS)

    def _plan(self, start: int, stop: int) -> Plan:
        reading = annotations.merge_rows(map(annotated_of, self.rows.read(start, stop).to_pylist()))
        return make_plan(reading, replace(self.source, places=self._places(start, stop)))

    def outline(self) -> Outline:
        """Return the summed outline of all portions. ValueError if there is nothing to prepare."""
        outline = Outline(notes=list(self.notes))
        outline.add(Plan(clips=(), source=self.source, wrong=tuple(self.wrong)))
        for portion in self.portions:
            outline.add(self.plan(*portion))
        outline.refuse(self.source, self.files.layout_names)
        return outline

    def files_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of buckets of the files that contain the clips of the buckets [start, stop)."""
        return (start, stop) if self.places is None else (0, NUM_BUCKETS)

    def _places(self, start: int, stop: int) -> dict[str, str]:
        if self.places is not None:
            table = self.places.read(start, stop)
            return dict(zip(table["name"].to_pylist(), table["uri"].to_pylist(), strict=True))
        names = self.files.buckets.read(start, stop)["name"].to_pylist()
        return {name: storage.join(self.source.root, name) for name in names}


def gather(root: str, layout: Layout | None, files: Files, rows: Iterable[Annotated], notes: list[str]) -> Gathered:
    """Bucket annotations and files. Reading `rows` appends to `notes`."""
    names = files.layout_names
    if layout == Layout.FRAME_FOLDERS:
        names = files.buckets.read()["name"].to_pylist()
    source = open_source(root, layout, names)
    places = None
    if source.layout != Layout.FILES:
        put(places := Buckets(PLACES), list(source.places.items()))
    source = replace(source, places={}, skipped=files.skipped)
    wrong: list[WrongRow] = []
    buckets = Buckets(ROWS)
    clips = clips_among(rows, wrong)
    while batch := list(itertools.islice(clips, ROWS_AT_ONCE)):
        put(buckets, batch, name_of=1)
    return Gathered(source=source, files=files, rows=buckets, wrong=wrong, notes=notes, places=places)


def clips_among(rows: Iterable[Annotated], wrong: list[WrongRow]) -> Iterator[tuple[object, ...]]:
    """Yield annotations as rows of `ROWS`, and append wrong rows to `wrong`."""
    for where, clip in rows:
        if isinstance(clip, WrongRow):
            wrong.append(clip)
        else:
            yield (where, clip.relative_path, clip.captions, str(clip.kind), clip.split, clip.group, clip.start_seconds,
                   clip.end_seconds)  # fmt: skip


def annotated_of(row: dict) -> Annotated:
    """Return the annotation of a row of `ROWS`."""
    return row.pop("where"), Annotation(**row | {"captions": tuple(row["captions"]), "kind": Kind(row["kind"])})


def put(buckets: Buckets, rows: Sequence[tuple[object, ...]], name_of: int = 0) -> None:
    """Put rows into the buckets of their names; field number `name_of` of a row is its path."""
    if rows:
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(values, of.type) for values, of in zip(columns, buckets.schema, strict=True)]
        buckets.add(numbers_of(columns[name_of]), pa.Table.from_arrays(arrays, schema=buckets.schema))


def numbers_of(names: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Return the bucket number of each name."""
    return np.fromiter(map(bucket_of_name, names), np.int64)
