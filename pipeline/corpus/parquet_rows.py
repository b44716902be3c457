"""Read rows of Parquet files, with or without embedded videos."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.tables import Row

_MAGIC = b"PAR1"
NAMES = ("__key__", "key", "file_name", "video_id", "id")
"""Columns that may name the video of a row whose bytes come without a path."""


def is_parquet(path: str) -> bool:
    """Return whether a file is Parquet, by its first bytes."""
    return storage.read_bytes(path, 0, len(_MAGIC)) == _MAGIC


def media_column(path: str) -> str | None:
    """Return the column of a Parquet file with the bytes of videos or images (`video.bytes` if nested), or None."""
    for field in _schema(path):
        if pa.types.is_struct(field.type):
            if "bytes" in [field.type.field(index).name for index in range(field.type.num_fields)]:
                return f"{field.name}.bytes"
        elif _is_bytes(field.type):
            return field.name
    return None


def parquet_rows(path: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file without binary columns. If it contains videos, `clip_name` holds their names."""
    names = media_names(path) if media_column(path) else None
    rows = (row for table in _without_bytes(path) for row in table.to_pylist())
    for number, row in enumerate(rows):
        name = {"clip_name": f"{posixpath.basename(path)}/{names[number]}"} if names else {}
        yield (
            f"{path}: row {number}",
            {key: value for key, value in row.items() if not names or key not in NAMES} | name,
        )


def media_names(path: str) -> list[str]:
    """Return the names of the videos in a Parquet file: their paths, keys or row numbers."""
    column = media_column(path) or ""
    outer, suffix = column.removesuffix(".bytes"), f".{column}" if media.kind_of(f"x.{column}") else ".mp4"
    rows: list[dict[str, Any]] = [row for table in _without_bytes(path) for row in table.to_pylist()]
    names = []
    for number, row in enumerate(rows):
        inner = row.get(outer)
        name = inner.get("path") if isinstance(inner, dict) else None
        name = str(name or next((row[key] for key in NAMES if row.get(key) is not None), number))
        names.append(name if media.kind_of(name) else f"{name}{suffix}")
    return names if len(set(names)) == len(names) else [f"{number}-{name}" for number, name in enumerate(names)]


def media_places(path: str) -> dict[str, str]:
    """Return name → uri of the videos in a Parquet file. Names do not include that of the file."""
    column = media_column(path) or ""
    return {name: media.row_uri(path, number, column) for number, name in enumerate(media_names(path))}


def _schema(path: str) -> pa.Schema:
    import pyarrow.parquet as pq  # deferred: only corpora in Parquet need it

    return storage.read_with(path, pq.read_schema)


def _without_bytes(path: str) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file without binary columns."""
    import pyarrow.parquet as pq

    columns = []
    for field in _schema(path):
        if pa.types.is_struct(field.type):
            children = [field.type.field(index) for index in range(field.type.num_fields)]
            columns += [f"{field.name}.{child.name}" for child in children if not _is_bytes(child.type)]
        elif not _is_bytes(field.type):
            columns.append(field.name)
    footer = storage.read_with(path, pq.read_metadata)
    if not columns:
        yield pa.table({"row": range(footer.num_rows)})
        return
    for number in range(footer.num_row_groups):
        yield storage.read_with(
            path, lambda file, number=number: pq.ParquetFile(file, metadata=footer).read_row_group(number, columns)
        )


def _is_bytes(type: pa.DataType) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type)
