"""The rows of a corpus: one Parquet row per clip, a stable id, no pixels; in one file, or in parts with an index.

For a clip with `packets`, training fetches the bytes of a few packets, which the file's checksum cannot verify: the
index has a check for each packet (`pipeline/decode/packets.py`).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from pipeline import storage
from pipeline.corpus import parts
from pipeline.corpus.content import checksum, hex_digest, manifest_hash, rows_digest
from pipeline.corpus.listing import Listing, Rows, TableRows, counted, of_kind
from pipeline.corpus.part_rows import PartRows, read_part
from pipeline.corpus.schema import PLACES, SCHEMA, conform
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.corpus.versions import split_version
from pipeline.records import Kind

__all__ = [
    "PLACES",
    "SCHEMA",
    "Manifest",
    "PartedManifest",
    "checksum",
    "clip_id",
    "make_manifest",
    "manifest_hash",
    "open_manifest",
    "read_manifest",
    "write_in_parts",
    "write_manifest",
    "write_sorted",
]

_METADATA_KEY = b"snps3_manifest"


def clip_id(
    corpus: str, relative_path: str, start_seconds: float | None = None, end_seconds: float | None = None
) -> int:
    """Return a non-negative int64 that depends only on the corpus name, the path below its root and the times."""
    times = [None if time is None else float(time) for time in (start_seconds, end_seconds)]
    key = json.dumps([corpus, relative_path, *times], ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Manifest(Listing):
    """A corpus in memory. `table` has `SCHEMA` and is sorted by its unique ids."""

    is_in_parts: ClassVar[bool] = False

    table: pa.Table
    format_version: int = 1
    """Selects the hash: `parts.FORMAT_VERSION` for rows that were read from parts, else 1."""

    @cached_property
    def hash(self) -> str:
        """Return 32 hex digits that identify the content, independent of where the files lie."""
        if self.format_version == parts.FORMAT_VERSION:
            return hex_digest(rows_digest(self.table))
        return manifest_hash(self.table)

    @cached_property
    def counts(self) -> Mapping[tuple[str, str], int]:
        return counted(self.table)

    def rows(self, split: str, kind: Kind) -> Rows:
        """Return a copy of the clips of one kind in a split, so that the others can be freed."""
        return TableRows(of_kind(self.table, split, kind))


@dataclass(frozen=True, kw_only=True)
class PartedManifest(Listing):
    """A corpus in parts. None of its rows is in memory."""

    is_in_parts: ClassVar[bool] = True

    path: str
    index: parts.PartIndex

    @property
    def hash(self) -> str:
        return self.index.hash

    @property
    def place(self) -> str:
        """Return the path with the version: it still refers to these rows after newer versions are written."""
        return f"{self.path}@{self.index.number}"

    @cached_property
    def counts(self) -> Mapping[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for part in self.index.parts:
            counts[part.split, part.kind] = counts.get((part.split, part.kind), 0) + part.num_rows
        return counts

    def rows(self, split: str, kind: Kind) -> PartRows:
        of_kind = [part for part in self.index.parts if (part.split, part.kind) == (split, kind.value)]
        return PartRows(self.path, of_kind)

    def num_uncaptioned(self, split: str) -> int:
        counts = [part.num_uncaptioned for part in self.index.parts if part.split == split]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else super().num_uncaptioned(split)


def make_manifest(corpus: str, root: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> Manifest:
    """Return a manifest of `rows`, sorted by id. ValueError for wrong types and duplicate ids."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    table = conform(table, source=f"corpus {corpus!r}").sort_by("clip_id").combine_chunks()
    return Manifest(corpus=corpus, root=root, table=table)


def write_manifest(manifest: Manifest, path: str) -> None:
    """Write the manifest atomically to `path`, as one Parquet file. Equal content gives equal bytes."""
    if manifest.format_version != 1:  # the file does not record the format version, so its hash is always that of 1
        manifest = dataclasses.replace(manifest, format_version=1)
    described = {"corpus": manifest.corpus, "root": manifest.root, "hash": manifest.hash}
    described |= {"decoders": manifest.decoders} if manifest.decoders else {}
    table = manifest.table.replace_schema_metadata({_METADATA_KEY: json.dumps(described, sort_keys=True).encode()})
    storage.write_table(path, table, row_group_size=100_000)


def write_in_parts(manifest: Manifest, path: str) -> parts.PartIndex:
    """Write the manifest in parts to the folder `path`. Its hash differs from that of one file of the same rows."""
    described = {"corpus": manifest.corpus, "root": manifest.root, "decoders": manifest.decoders}
    return write_sorted(SortedRows([manifest.table]), path, **described)


def write_sorted(
    rows: SortedRows, path: str, *, corpus: str, root: str, decoders: Mapping[str, Mapping[str, float]]
) -> parts.PartIndex:
    """Write `rows` to the folder `path` as a manifest in parts.

    If the folder already holds a subset of them, its parts stay, and the remaining rows are appended in new parts.
    """
    tables, existing = rows.tables(), {}
    if parts.is_in_parts(path):
        before = parts.read_index(path)
        ids = np.sort(np.concatenate([rows["clip_id"].to_numpy() for rows in open_manifest(path).batches()]))
        old = (rows_digest(table.filter(_is_among(table, ids))) for table in rows.tables())
        if hex_digest(sum(old)) == before.hash and (before.corpus, before.root) == (corpus, root):
            tables = (table.filter(pc.invert(_is_among(table, ids))) for table in tables)
            existing = {"existing_parts": before.parts, "existing_clip_ids": ids}
    return parts.write_parts(path, tables, corpus=corpus, root=root, decoders=decoders, **existing)


def _is_among(table: pa.Table, ids: Int64[np.ndarray, " n"]) -> pa.Array:
    """Return for each row whether its id is in `ids`, which are sorted."""
    row_ids = table["clip_id"].to_numpy()
    return pa.array(ids[np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)] == row_ids)


def open_manifest(path: str) -> Manifest | PartedManifest:
    """Open the manifest at `path`, or FOLDER@VERSION of a manifest in parts. Of parts only the index is read; one file
    is read whole, as by `read_manifest`. ValueError for a version that does not exist."""
    path, version = _place(path)
    if not _has_index(path):
        return _read_files(path)
    index = parts.read_index(path, version)
    return PartedManifest(corpus=index.corpus, root=index.root, decoders=index.decoders, path=path, index=index)


def read_manifest(path: str) -> Manifest:
    """Read all rows of a manifest into memory: from a Parquet file, a folder in parts with an index, or a folder of
    Parquet files of one corpus; local or in a bucket. FOLDER@VERSION as in `open_manifest`.

    ValueError, naming the culprit: a missing column, a wrong type, a duplicate id, an empty manifest, parts of
    different corpora, a part that does not match its index.
    """
    path, version = _place(path)
    if not _has_index(path):
        return _read_files(path)
    index = parts.read_index(path, version)
    tables = [read_part(storage.join(path, part.name), part) for part in index.parts]
    manifest = make_manifest(index.corpus, index.root, pa.concat_tables(tables))
    return dataclasses.replace(manifest, decoders=index.decoders, format_version=parts.FORMAT_VERSION)


def _read_files(path: str) -> Manifest:
    """Read all rows of a Parquet file, or of a folder of them without an index."""
    tables, described = [], []
    for part in _files(path):
        table = _read_parquet(part)
        tables.append(conform(table, source=part))
        described.append(json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}")))
    corpora = {str(metadata.get("corpus", "")) for metadata in described}
    if len(corpora) > 1:
        raise ValueError(f"{path} holds parts of several corpora {sorted(corpora)}: keep one folder per corpus")
    manifest = make_manifest(corpora.pop(), str(described[0].get("root", "")), pa.concat_tables(tables))
    manifest = dataclasses.replace(manifest, decoders=described[0].get("decoders", {}))
    if not len(manifest):
        raise ValueError(f"{path} has no rows: run jobs/prepare.py on a corpus with at least one usable clip")
    return manifest


def _place(path: str) -> tuple[str, str | None]:
    """Split a path into folder and version. ValueError if the manifest has no versions but one is named."""
    folder, version = split_version(path)
    storage.check_readable(folder)
    if version and not _has_index(folder):
        raise ValueError(
            f"{folder} has no versions, as manifests in parts have (prepare --in-parts): leave @{version} out"
        )
    return folder, version


def _has_index(path: str) -> bool:
    return not path.endswith(".parquet") and parts.is_in_parts(path)


def _files(path: str) -> Iterator[str]:
    if not storage.is_folder(path):
        yield path
        return
    names = [name for name in storage.list_files(path) if name.endswith(".parquet")]
    if not names:
        raise ValueError(f"the folder {path} holds no .parquet file: name a manifest or a folder of its parts")
    yield from (storage.join(path, name) for name in names)


def _read_parquet(path: str) -> pa.Table:
    try:
        table = storage.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is no Parquet file ({error}): name the manifest that jobs/prepare.py wrote"
        ) from error
    if parts.PART_KEY in (table.schema.metadata or {}):
        raise ValueError(
            f"{path} is a part of a manifest whose {parts.INDEX} is not beside it, so that it may not be whole: "
            f"{parts.REMEDY}"
        )
    return table
