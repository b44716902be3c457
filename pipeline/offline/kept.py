"""Checkpointed results of a pass: one file per block of rows, so that a repeated pass computes only the rest.

The column `key` identifies a row: a hash of everything that its result depends on.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.corpus.ledger import with_reason
from pipeline.corpus.schema import completed
from pipeline.offline.shards import TRANSIENT
from pipeline.offline.stages import map_blocks, split_into_blocks


def key_of(*parts: object) -> str:
    """Return the key of a row: a hash of `parts`, which are everything that its result depends on."""
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=16).hexdigest()


def read_cached(folder: str, schema: pa.Schema) -> pa.Table:
    """Return the results in `folder` (`schema`, key, reason, detail), without transient failures (`TRANSIENT`)."""
    names = [name for name in storage.list_files(folder) if name.endswith(".parquet")] if storage.exists(folder) else []
    fields = result_schema(schema)  # files of an earlier version may lack some
    tables = [completed(storage.read_table(storage.join(folder, name)), fields) for name in names]
    table = pa.concat_tables([fields.empty_table(), *tables])
    return table.filter(
        pc.invert(pc.is_in(table["reason"], pa.array([str(reason) for reason in TRANSIENT], pa.string())))
    )


def write_cached(results: pa.Table, folder: str) -> None:
    """Write results to `folder`, in a file named by a hash of their keys."""
    name = key_of(*results["key"].to_pylist())
    storage.write_table(storage.join(folder, f"{name}.parquet"), results)


def result_schema(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the columns key, reason and detail."""
    return with_reason(schema.append(pa.field("key", pa.string())))


def split_by_cached(rows: pa.Table, folder: str, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Return the results of `rows` that `folder` holds, and the rows without a result."""
    kept = read_cached(folder, schema)
    kept = kept.filter(pc.is_in(kept["key"], rows["key"].combine_chunks()))
    return kept, rows.filter(pc.invert(pc.is_in(rows["key"], kept["key"].combine_chunks())))


def compute(
    rows: pa.Table,
    function: Callable[[pa.Table], pa.Table],
    folder: str,
    *,
    max_block_rows: int,
    min_block_rows: int = 1,
    group_column: str | None = None,
    subcluster: str | None = None,
) -> pa.Table:
    """Apply `function` to the rows in a Ray Data job that writes each block to `folder` as soon as it is computed.

    `function` returns one or more rows of `result_schema` for each key. A task takes
    `min_block_rows` to `max_block_rows` rows; neighbouring rows with equal values in `group_column` stay in one task.
    """
    blocks = split_into_blocks(rows, min_block_rows, max_block_rows, group_column)
    compute_block = partial(compute_and_cache, function=function, folder=folder)
    return pa.concat_tables(map_blocks(blocks, compute_block, subcluster=subcluster))


def compute_and_cache(block: pa.Table, function: Callable[[pa.Table], pa.Table], folder: str) -> pa.Table:
    """Apply `function` to a block, write the results to `folder`, and return them."""
    results = function(block)
    write_cached(results, folder)
    return results
