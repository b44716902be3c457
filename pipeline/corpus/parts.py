"""A manifest as a folder of Parquet parts with an index, written from a stream of rows.

    index.json ── hash of each part's footer ──► part-00000-….parquet ── checksum of each page ──► rows

Rows are sorted by (split, kind, clip_id). A part has rows of one split and kind, in row groups of `GROUP_ROWS`, so the
index alone locates row i of a split and kind. The names of parts contain their hashes, and the index is written last,
so a folder holds the old manifest or the new one. The old one stays readable (`pipeline/corpus/versions.py`).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from pipeline import storage
from pipeline.corpus.content import checksum, hex_digest, rows_digest
from pipeline.corpus.schema import conform, num_uncaptioned
from pipeline.corpus.versions import MAX_VERSIONS, Version, find_version, split_version

INDEX = "index.json"
FORMAT_VERSION = 2
"""Format version of a manifest in parts. One of a single file has version 1."""
GROUP_ROWS = 1024
"""Rows of a row group, the unit of reading."""
PART_ROWS = 64 * GROUP_ROWS
"""Largest number of rows of a part: about 6 MB, with a footer of 0.1 MB."""
REMEDY = "copy the whole folder again, or write the manifest anew with jobs/prepare.py"
PART_KEY = b"snps3_manifest_part"
"""Metadata key in a part's file: the digest of its rows. It also marks a file as a part, useless without its index."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of rows of one split and kind."""

    name: str
    """Below the folder of the manifest."""
    split: str
    kind: str
    num_rows: int
    first_clip_id: int
    last_clip_id: int
    digest: str
    """Digest of its rows (`rows_digest`)."""
    num_bytes: int
    footer_bytes: int
    footer_checksum: str
    """Protects the whole part: the footer has the digest of the rows, and each page has a checksum."""
    num_uncaptioned: int | None = None
    """Number of rows without captions; None: not counted (by an earlier version)."""


@dataclass(frozen=True, kw_only=True)
class PartIndex:
    """The content of a manifest's index file."""

    corpus: str
    root: str
    parts: tuple[Part, ...]
    decoders: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    number: int = 1
    """Number of the version."""
    earlier: tuple[Version, ...] = ()
    """Earlier versions that are still readable, in order."""

    @property
    def version(self) -> Version:
        return Version(number=self.number, hash=self.hash, num_rows=self.num_rows)

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    @property
    def hash(self) -> str:
        """Return the hash of the rows, 32 hex digits, independent of how they are cut into parts."""
        return hex_digest(sum(int(part.digest, 16) for part in self.parts))


def write_parts(
    path: str,
    tables: Iterable[pa.Table],
    *,
    corpus: str,
    root: str,
    decoders: Mapping[str, Mapping[str, float]] | None = None,
    part_rows: int = PART_ROWS,
    existing_parts: Sequence[Part] = (),
    existing_clip_ids: Int64[np.ndarray, " n"] | None = None,
) -> PartIndex:
    """Write `tables`, whose rows come in order of (split, kind, clip_id), as a manifest in parts to the folder `path`.

    `existing_parts`: existing parts, with the ids of their rows; they stay, and the new ones are appended to them.

    One part is in memory at a time, and 8 bytes of each row. Readers of the previous content are not disturbed: if the
    rows differ, it becomes an earlier version, of which `MAX_VERSIONS` are kept, counting the newest. ValueError for
    rows in another order, duplicate ids, a missing column, no rows, and if another process writes the folder meanwhile.
    """
    before = _index_bytes(path)
    parts, clip_ids = list(existing_parts), [] if existing_clip_ids is None else [existing_clip_ids]
    for table in _cut(tables, part_rows):
        part, data = _encoded(table, len(parts))
        storage.write_bytes_atomic(storage.join(path, part.name), data)
        parts.append(part)
        clip_ids.append(table["clip_id"].to_numpy())
    if not parts:
        raise ValueError(f"{path} would have no rows: name a corpus with at least one usable clip")
    _refuse_repeated(clip_ids, corpus)
    index = PartIndex(corpus=corpus, root=root, parts=tuple(parts), decoders=decoders or {})
    return _commit(path, index, before)


def _index_bytes(path: str) -> bytes | None:
    """Return the encoded index of a folder; None if there is none."""
    try:
        return storage.read_bytes(storage.join(path, INDEX))
    except FileNotFoundError:
        return None


def _commit(path: str, index: PartIndex, before: bytes | None) -> PartIndex:
    """Write `index` as the next version if the folder's index still equals `before`; return it with its number. Equal
    rows keep their number. Files that neither `before` nor a kept version needs are removed."""
    where, last = storage.join(path, INDEX), None if before is None else _index_of(before, storage.join(path, INDEX))
    if last and last.hash == index.hash:
        index = dataclasses.replace(index, number=last.number, earlier=last.earlier)
    elif last and before:
        earlier = (*last.earlier, last.version)[1 - MAX_VERSIONS :]
        index = dataclasses.replace(index, number=last.number + 1, earlier=earlier)
        storage.write_bytes_atomic(storage.join(path, last.version.file), before)
    content = _as_json(index)
    if not storage.write_if_unchanged(where, content, before) and _index_bytes(path) != content:
        raise ValueError(
            f"{where} was written by another process since this one began: let one of them write, and begin again"
        )
    indices = [index, *([last] if last else []), *_earlier_indices(path, index)]
    kept = {part.name for each in indices for part in each.parts} | {version.file for version in index.earlier}
    for name in storage.list_files(path):
        if (fnmatch.fnmatch(name, "part-*.parquet") or fnmatch.fnmatch(name, "index-*.json")) and name not in kept:
            storage.remove(storage.join(path, name))
    return index


def _earlier_indices(path: str, index: PartIndex) -> Iterator[PartIndex]:
    for version in index.earlier:
        with contextlib.suppress(FileNotFoundError):  # the folder may be a copy of the newest version only
            where = storage.join(path, version.file)
            yield _index_of(storage.read_bytes(where), where)


def read_index(path: str, version: str | None = None) -> PartIndex:
    """Read the index of the manifest in the folder `path`: of the newest version, or of the one with this number or
    hash. ValueError for a damaged index, another format, and a version that does not exist."""
    where = storage.join(path, INDEX)
    newest = _index_of(storage.read_bytes(where), where)
    if version is None:
        return newest
    named = find_version(version, (*newest.earlier, newest.version), path)
    if named == newest.version:
        return newest
    where = storage.join(path, named.file)
    try:
        index = _index_of(storage.read_bytes(where), where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}, the index of version {named.number}, is missing: {REMEDY}") from error
    if index.version != named:
        raise ValueError(f"{where} has the rows of {index.version} and should have {named}: {REMEDY}")
    return index


def _index_of(data: bytes, where: str) -> PartIndex:
    try:
        content = json.loads(data)
        version = content["format_version"]
        if version == FORMAT_VERSION:
            index = PartIndex(
                corpus=content["corpus"],
                root=content["root"],
                parts=tuple(Part(**part) for part in content["parts"]),
                decoders=content.get("decoders", {}),
                number=content.get("version", 1),
                earlier=tuple(Version(**earlier) for earlier in content.get("earlier", ())),
            )
            written = content["hash"], content["num_rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is no index of a manifest ({error!r}): {REMEDY}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{where} has format_version {version}, and this version reads {FORMAT_VERSION}: use the version that "
            "wrote it, or write the manifest anew with jobs/prepare.py"
        )
    if (index.hash, index.num_rows) != written:
        summed = index.hash, index.num_rows
        raise ValueError(f"{where} says {written} of hash and rows, and its parts sum up to {summed}: {REMEDY}")
    return index


def is_in_parts(path: str) -> bool:
    """Return whether `path`, with or without a version, is a folder with an index of parts."""
    return storage.exists(storage.join(split_version(path)[0], INDEX))


def _as_json(index: PartIndex) -> bytes:
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "corpus": index.corpus,
        "root": index.root,
        "hash": index.hash,
        "num_rows": index.num_rows,
        "version": index.number,
        "earlier": [dataclasses.asdict(version) for version in index.earlier],
        "decoders": dict(index.decoders),
        "parts": [dataclasses.asdict(part) for part in index.parts],
    }
    return json.dumps(content, indent=1).encode()


def _cut(tables: Iterable[pa.Table], part_rows: int) -> Iterator[pa.Table]:
    """Recut the rows into tables of one split and kind and of at most `part_rows` rows. ValueError for another order
    than (split, kind, clip_id)."""
    waiting: list[pa.Table] = []
    last: tuple[str, str, int] | None = None
    for table in tables:
        table = conform(table, source="a table of the manifest")
        for run in _runs(table):
            first_of, last_of = (_key(run, row) for row in (0, run.num_rows - 1))
            if last and (first_of <= last):
                raise ValueError(_misplaced(first_of, last))
            if last and last[:2] != first_of[:2] and waiting:
                yield pa.concat_tables(waiting)
                waiting = []
            last = last_of
            waiting.append(run)
            while sum(map(len, waiting)) >= part_rows:
                whole = pa.concat_tables(waiting)
                yield whole.slice(0, part_rows)
                waiting = [whole.slice(part_rows)] if whole.num_rows > part_rows else []
    if waiting:
        yield pa.concat_tables(waiting)


def _runs(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table into runs of one split and kind. ValueError if ids do not rise within a run."""
    if not table.num_rows:
        return
    codes = [pc.dictionary_encode(table[name].combine_chunks()).indices.to_numpy() for name in ("split", "kind")]
    is_new = (np.diff(codes[0]) != 0) | (np.diff(codes[1]) != 0)
    falls = (np.diff(table["clip_id"].to_numpy()) <= 0) & ~is_new
    if falls.any():
        row = int(np.argmax(falls))
        raise ValueError(_misplaced(_key(table, row + 1), _key(table, row)))
    bounds = [0, *(np.flatnonzero(is_new) + 1).tolist(), table.num_rows]
    for start, stop in itertools.pairwise(bounds):
        yield table.slice(start, stop - start)


def _misplaced(key: tuple[str, str, int], last: tuple[str, str, int]) -> str:
    return f"rows must come in order of split, kind and clip_id, each once, but {key} comes after {last}"


def _key(table: pa.Table, row: int) -> tuple[str, str, int]:
    return table["split"][row].as_py(), table["kind"][row].as_py(), table["clip_id"][row].as_py()


def _encoded(table: pa.Table, number: int) -> tuple[Part, bytes]:
    """Encode `table` as a part; return its entry in the index, and its bytes."""
    digest = hex_digest(rows_digest(table))
    buffer = io.BytesIO()
    pq.write_table(
        table.combine_chunks().replace_schema_metadata({PART_KEY: digest.encode()}),
        buffer,
        compression="zstd",
        row_group_size=GROUP_ROWS,
        write_statistics=["clip_id"],  # pyright: ignore[reportArgumentType]
        write_page_checksum=True,
    )
    data = buffer.getvalue()
    footer_bytes = int.from_bytes(data[-8:-4], "little") + 8
    split, kind, first_clip_id = _key(table, 0)
    part = Part(
        name=f"part-{number:05d}-{digest[:12]}.parquet",
        split=split,
        kind=kind,
        num_rows=table.num_rows,
        first_clip_id=first_clip_id,
        last_clip_id=table["clip_id"][-1].as_py(),
        digest=digest,
        num_bytes=len(data),
        footer_bytes=footer_bytes,
        footer_checksum=checksum(data[-footer_bytes:]),
        num_uncaptioned=num_uncaptioned(table),
    )
    return part, data


def _refuse_repeated(clip_ids: list[np.ndarray], corpus: str) -> None:
    """Raise ValueError for ids in several splits or kinds. Within one, `_cut` has checked that ids rise."""
    ids = np.concatenate(clip_ids)
    clip_ids.clear()  # free the copies: 80 MB each for ten million clips
    ids.sort()
    repeated = np.flatnonzero(ids[1:] == ids[:-1])
    if len(repeated):
        raise ValueError(
            f"corpus {corpus!r}: {len(repeated)} clip ids occur more than once, the first is {ids[repeated[0]]}: keep "
            "one row of each"
        )
