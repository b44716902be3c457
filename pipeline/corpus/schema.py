"""The columns of a manifest, and conversion of tables to them."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64()),  # null: from the first frame
        pa.field("end_seconds", pa.float64()),  # null: to the last frame
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # video | image
        pa.field("split", pa.string(), nullable=False),
        pa.field("group", pa.string()),  # a test compares clips only within their group
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("fps", pa.float64()),  # null: an image
        pa.field("duration_seconds", pa.float64()),  # null: an image
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),  # of the whole file, even if the clip is a part of it
        pa.field("packets", pa.string()),  # path of the file's packet index; null: it is read whole
        pa.field("caption_sources", pa.list_(pa.string())),  # who wrote each caption; null: annotations say it
    ]
)
OPTIONAL_COLUMNS = frozenset(
    {"start_seconds", "end_seconds", "group", "fps", "duration_seconds", "packets", "caption_sources"}
)
PLACES = frozenset({"uri", "packets", "caption_sources"})
"""Columns that say where bytes are stored and captions come from; they are not part of the hash."""


def completed(table: pa.Table, schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return `table` with the columns of `schema`; columns that an earlier version did not write are null."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def conform(table: pa.Table, *, source: str) -> pa.Table:
    """Return `table` with exactly the columns and types of `SCHEMA`; missing optional columns are null. ValueError for
    missing columns, wrong types, nulls and duplicate ids."""
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


def num_uncaptioned(table: pa.Table) -> int:
    """Return the number of rows without captions."""
    return pc.sum(pc.equal(pc.list_value_length(table["captions"]), 0)).as_py() or 0
