"""What `prepare` has to look at, in portions that fit in memory.

files below the root ──┐
                       ├─ by what names have in common ──► portion: clips and files that may mean one another
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
from pipeline.corpus.sources import Layout, Source, open_source, passed_over
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
"""Fields of an `Annotation`, and its place."""
assert ROWS.names[1:] == [one.name for one in fields(Annotation)]
ROWS_AT_ONCE = 2**14
"""Rows that are read before they become a table."""
PORTION_ROWS = 2**16
"""Annotations and files of a portion at most, unless those of one bucket are more."""
PROGRESS_SECONDS = 5.0
_TELLING = (".parquet", *media.TAR_SUFFIXES, *TABLES)
"""Suffixes of files that tell how a corpus is kept."""


@dataclass
class Files:
    """The files below a root."""

    buckets: Buckets = field(default_factory=lambda: Buckets(FILES))
    skipped: dict[str, str] = field(default_factory=dict)
    """Those that no clip can be read from → why."""
    telling: list[str] = field(default_factory=list)
    """Names by which the layout is told: one video or image, and all tars and tables."""
    hash: str = ""
    """Changes with the name, size and version of any file."""

    @classmethod
    def below(cls, root: str, is_ours: Callable[[str], bool]) -> Files:
        """List the files below `root`, some at a time, but for those that we write. Progress is logged."""
        files, digest = cls(), hashlib.blake2b(digest_size=16)
        has_media, said = False, time.monotonic()
        listed = ((name, version) for name, version in storage.listed(root) if not is_ours(name))
        while some := list(itertools.islice(listed, ROWS_AT_ONCE)):
            digest.update(json.dumps(some).encode())
            files.skipped |= passed_over(root, [name for name, _ in some])
            some = [pair for pair in some if pair[0] not in files.skipped and not storage.is_surrogate(pair[0])]
            for name, _ in some:
                is_media = bool(media.kind_of(name))
                if (is_media and not has_media) or name.lower().endswith(_TELLING):
                    files.telling.append(name)
                has_media |= is_media
            put(files.buckets, some)
            if time.monotonic() - said >= PROGRESS_SECONDS:
                log.info("%d files are listed below %s", len(files.buckets), root, extra={"is_progress": True})
                said = time.monotonic()
        files.hash = digest.hexdigest()
        return files

    def versions(self, start: int, stop: int) -> dict[str, str]:
        """Return name → size and version of the files of some buckets."""
        table = self.buckets.read(start, stop)
        return dict(zip(table["name"].to_pylist(), table["version"].to_pylist(), strict=True))


@dataclass(kw_only=True, eq=False)
class Gathered:
    """All that annotations name, and all files."""

    source: Source
    """Without places but for those of `others`."""
    files: Files
    rows: Buckets
    wrong: list[WrongRow]
    notes: list[str]
    """What was taken for what."""
    places: Buckets | None = None
    """Clips inside of files; None: files are clips."""

    @cached_property
    def portions(self) -> list[tuple[int, int]]:
        """The ranges of buckets that are in memory at a time."""
        counts = self.rows.counts + (self.files.buckets if self.places is None else self.places).counts
        return list(portions(counts, PORTION_ROWS))

    def plan(self, start: int, stop: int) -> Plan:
        """Return the clips of some buckets with the files that they mean."""
        return self._whole if (start, stop) == (0, NUM_BUCKETS) else self._plan(start, stop)

    @cached_property
    def _whole(self) -> Plan:
        return self._plan(0, NUM_BUCKETS)

    def _plan(self, start: int, stop: int) -> Plan:
        reading = annotations.collected(map(annotated_of, self.rows.read(start, stop).to_pylist()))
        return make_plan(reading, replace(self.source, places=self._places(start, stop)))

    def outline(self) -> Outline:
        """Return what the plans of all portions say. ValueError if there is nothing to prepare."""
        outline = Outline(notes=list(self.notes))
        outline.add(Plan(clips=(), source=self.source, wrong=tuple(self.wrong)))
        for portion in self.portions:
            outline.add(self.plan(*portion))
        outline.refuse(self.source, self.files.telling)
        return outline

    def files_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of buckets with the files that clips of some buckets lie in."""
        return (start, stop) if self.places is None else (0, NUM_BUCKETS)

    def _places(self, start: int, stop: int) -> dict[str, str]:
        if self.places is not None:
            table = self.places.read(start, stop)
            return dict(zip(table["name"].to_pylist(), table["uri"].to_pylist(), strict=True))
        names = self.files.buckets.read(start, stop)["name"].to_pylist()
        return {name: storage.join(self.source.root, name) for name in names}


def gather(root: str, layout: Layout | None, files: Files, rows: Iterable[Annotated], notes: list[str]) -> Gathered:
    """Return annotations and files, in portions. `notes` are complete when `rows` are read."""
    names = files.telling
    if layout == Layout.FRAME_FOLDERS:
        names = files.buckets.read()["name"].to_pylist()
    source = open_source(root, layout, names)
    places = None
    if source.layout != Layout.FILES:
        put(places := Buckets(PLACES), list(source.places.items()))
    source = replace(source, places={}, passed_over=files.skipped)
    wrong: list[WrongRow] = []
    buckets = Buckets(ROWS)
    clips = clips_among(rows, wrong)
    while some := list(itertools.islice(clips, ROWS_AT_ONCE)):
        put(buckets, some, name_of=1)
    return Gathered(source=source, files=files, rows=buckets, wrong=wrong, notes=notes, places=places)


def clips_among(rows: Iterable[Annotated], wrong: list[WrongRow]) -> Iterator[tuple[object, ...]]:
    """Yield annotations as rows of `ROWS`, and put those that are none into `wrong`."""
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
    """Put rows, whose field `name_of` is a path, into the buckets of their names."""
    if rows:
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(values, of.type) for values, of in zip(columns, buckets.schema, strict=True)]
        buckets.add(numbers_of(columns[name_of]), pa.Table.from_arrays(arrays, schema=buckets.schema))


def numbers_of(names: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Return the buckets of names."""
    return np.fromiter(map(bucket_of_name, names), np.int64)
