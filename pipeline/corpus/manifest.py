"""The rows of a corpus: one Parquet row per clip, a stable id, no pixels.

Of a clip with `packets`, training fetches the bytes of a few packets, of which the file's checksum says nothing: each
packet has a check of its own in the index (`pipeline/decode/packets.py`).
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, where a type checker cannot see them

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64()),  # null: from the first frame
        pa.field("end_seconds", pa.float64()),  # null: to the last frame
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # video | image
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string()),  # clips that a test compares among themselves
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("fps", pa.float64()),  # null: an image
        pa.field("duration_seconds", pa.float64()),  # null: an image
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),  # of the file's bytes, also where the clip is a part of them
        pa.field("packets", pa.string()),  # where the index of the file's packets lies; null: it is read whole
    ]
)
OPTIONAL_COLUMNS = frozenset({"start_seconds", "end_seconds", "group", "fps", "duration_seconds", "packets"})
PLACES = frozenset({"uri", "packets"})
"""Columns that say where bytes lie; they are no part of the hash."""
_METADATA_KEY = b"snps3_manifest"


def clip_id(
    corpus: str, relative_path: str, start_seconds: float | None = None, end_seconds: float | None = None
) -> int:
    """A non-negative int64 that depends only on the corpus name, the path below its root and the times."""
    times = [None if time is None else float(time) for time in (start_seconds, end_seconds)]
    key = json.dumps([corpus, relative_path, *times], ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def checksum(data: bytes) -> str:
    """BLAKE2b of `data`, 128 bits in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A corpus. `table` has `SCHEMA`, unique ids, and is sorted by them."""

    corpus: str
    root: str
    """Where the files lay when the manifest was written; every `uri` of this corpus starts with it."""
    table: pa.Table
    decoders: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """Seconds and CPU seconds per clip, by decoder, where they were measured on this corpus. No part of the hash."""

    @property
    def fastest_decoder(self) -> str | None:
        """The decoder to read this corpus with; None if none was measured."""
        return min(self.decoders, key=lambda name: max(self.decoders[name].values()), default=None)

    @cached_property
    def hash(self) -> str:
        """32 hex digits that identify the content, wherever the files lie."""
        return manifest_hash(self.table)

    @cached_property
    def splits(self) -> dict[str, int]:
        """Name of each split → number of its clips."""
        return dict(sorted(Counter(self.table["split"].to_pylist()).items()))

    def split(self, name: str) -> pa.Table:
        """The rows of one split, sorted by id. An empty or unknown one is refused."""
        rows = self.table.filter(pc.equal(self.table["split"], name))
        if not rows.num_rows:
            there_are = ", ".join(f"{split} ({count})" for split, count in self.splits.items()) or "no rows at all"
            raise ValueError(f"the split {name!r} of corpus {self.corpus!r} is empty; there are: {there_are}")
        return rows

    def __len__(self) -> int:
        return self.table.num_rows


def make_manifest(corpus: str, root: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> Manifest:
    """A manifest of `rows`, sorted by id. Wrong types and ids that occur twice are refused."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    table = _conform(table, source=f"corpus {corpus!r}").sort_by("clip_id").combine_chunks()
    return Manifest(corpus=corpus, root=root, table=table)


def write_manifest(manifest: Manifest, path: str) -> None:
    """`path` holds the manifest as one Parquet file, written whole or not at all. Equal content gives equal bytes."""
    described = {"corpus": manifest.corpus, "root": manifest.root, "hash": manifest.hash}
    described |= {"decoders": manifest.decoders} if manifest.decoders else {}
    table = manifest.table.replace_schema_metadata({_METADATA_KEY: json.dumps(described, sort_keys=True).encode()})
    storage.write_table(path, table, row_group_size=100_000)


def read_manifest(path: str) -> Manifest:
    """The manifest in a Parquet file, or in a folder of Parquet parts of one corpus; local or in a bucket.

    Refused, with the name of what is wrong: a missing column, another type, an id that occurs twice, an empty manifest,
    parts of different corpora.
    """
    storage.check_readable(path)
    tables, described = [], []
    for part in _parts(path):
        table = _read_parquet(part)
        tables.append(_conform(table, source=part))
        described.append(json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}")))
    corpora = {str(one.get("corpus", "")) for one in described}
    if len(corpora) > 1:
        raise ValueError(f"{path} holds parts of several corpora {sorted(corpora)}: keep one folder per corpus")
    manifest = make_manifest(corpora.pop(), str(described[0].get("root", "")), pa.concat_tables(tables))
    manifest = dataclasses.replace(manifest, decoders=described[0].get("decoders", {}))
    if not len(manifest):
        raise ValueError(f"{path} has no rows: run jobs/prepare.py on a corpus with at least one usable clip")
    return manifest


def manifest_hash(table: pa.Table) -> str:
    """32 hex digits of the rows in order of their ids, over every column of `SCHEMA` but `PLACES`."""
    digest = hashlib.blake2b(digest_size=16)
    table = table.sort_by("clip_id")
    for field in SCHEMA:
        if field.name not in PLACES:
            digest.update(f"{field.name}:{field.type}:{table.num_rows};".encode())
            _update(digest, table[field.name].combine_chunks())
    return digest.hexdigest()


def _update(digest: Any, array: pa.Array) -> None:
    """Adds values, lengths and nulls; offsets and buffers of Arrow differ between equal arrays and do not enter."""
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(array.type):
        digest.update(
            pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        )
        _update(digest, array.flatten())
    elif pa.types.is_string(array.type):
        values = pc.fill_null(array, "")
        digest.update(pc.binary_length(values).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        digest.update("".join(values.to_pylist()).encode())
    else:
        dtype = "<f8" if pa.types.is_floating(array.type) else "<i8"
        digest.update(pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(dtype).tobytes())


def _parts(path: str) -> list[str]:
    if not storage.is_folder(path):
        return [path]
    parts = [storage.join(path, name) for name in storage.list_files(path) if name.endswith(".parquet")]
    if not parts:
        raise ValueError(f"the folder {path} holds no .parquet file: name a manifest or a folder of its parts")
    return parts


def _read_parquet(path: str) -> pa.Table:
    try:
        return storage.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is no Parquet file ({error}): name the manifest that jobs/prepare.py wrote"
        ) from error


def _conform(table: pa.Table, *, source: str) -> pa.Table:
    """`table` with exactly the columns and types of `SCHEMA`; an optional column that is not there is all null."""
    missing = [name for name in SCHEMA.names if name not in table.column_names and name not in OPTIONAL_COLUMNS]
    if missing:
        raise ValueError(
            f"{source} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; a manifest needs "
            f"{', '.join(SCHEMA.names)}: write it with jobs/prepare.py"
        )
    columns = []
    for field in SCHEMA:
        column = table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{source}: column {field.name} must be {field.type}, it is {column.type}") from error
        if not field.nullable and columns[-1].null_count:
            raise ValueError(
                f"{source}: column {field.name} has {columns[-1].null_count} empty values; it needs one per row"
            )
    times = pa.Table.from_struct_array(columns[0].value_counts())
    twice = times.filter(pc.field("counts") > 1)["values"]
    if len(twice):
        raise ValueError(
            f"{source}: {len(twice)} clip ids occur more than once, the first is {pc.min(twice)}: keep one row of each"
        )
    return pa.Table.from_arrays(columns, schema=SCHEMA)
