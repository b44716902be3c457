"""Results of a pass that are kept as they come, a file per few rows, so that a pass that is repeated computes the rest.

A row is told by its column `key`, which changes with all that its result depends on.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported, where a type checker cannot see them

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.corpus.ledger import with_reason
from pipeline.corpus.schema import completed
from pipeline.offline.shards import PASSING
from pipeline.offline.stages import in_blocks, mapped


def key_of(*parts: object) -> str:
    """Return the key of a row, of all that its result depends on."""
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=16).hexdigest()


def read_kept(folder: str, schema: pa.Schema) -> pa.Table:
    """Return the results in `folder` (`schema`, key, reason, detail), without those of passing failures."""
    names = [name for name in storage.list_files(folder) if name.endswith(".parquet")] if storage.exists(folder) else []
    fields = result_schema(schema)  # files of an earlier version may lack some
    tables = [completed(storage.read_table(storage.join(folder, name)), fields) for name in names]
    table = pa.concat_tables([fields.empty_table(), *tables])
    return table.filter(
        pc.invert(pc.is_in(table["reason"], pa.array([str(reason) for reason in PASSING], pa.string())))
    )


def keep(results: pa.Table, folder: str) -> None:
    """Write results to `folder`, under a name that tells their keys."""
    name = key_of(*results["key"].to_pylist())
    storage.write_table(storage.join(folder, f"{name}.parquet"), results)


def result_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of results: those of `schema`, and key, reason and detail."""
    return with_reason(schema.append(pa.field("key", pa.string())))


def parted(rows: pa.Table, folder: str, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Return the results in `folder` of `rows`, and the rows that have none."""
    kept = read_kept(folder, schema)
    kept = kept.filter(pc.is_in(kept["key"], rows["key"].combine_chunks()))
    return kept, rows.filter(pc.invert(pc.is_in(rows["key"], kept["key"].combine_chunks())))


def compute(
    rows: pa.Table,
    function: Callable[[pa.Table], pa.Table],
    folder: str,
    *,
    most_at_once: int,
    least_at_once: int = 1,
    together: str | None = None,
    subcluster: str | None = None,
) -> pa.Table:
    """Return `function` of the rows, by a Ray Data job that keeps each block in `folder` as soon as it is computed.

    `function` returns one or more rows of `result_schema` for each key. A task takes `least_at_once` to `most_at_once`
    rows, but neighbours that are equal in the column `together` are not parted.
    """
    blocks = in_blocks(rows, least_at_once, most_at_once, together)
    compute_block = partial(compute_and_keep, function=function, folder=folder)
    return pa.concat_tables(mapped(blocks, compute_block, subcluster=subcluster))


def compute_and_keep(block: pa.Table, function: Callable[[pa.Table], pa.Table], folder: str) -> pa.Table:
    """Return `function` of a block, after it is kept."""
    results = function(block)
    keep(results, folder)
    return results
