"""Pack a prepared corpus into few large files, as a Ray Data job."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from cluster.connection import connected_ray
from jobs.corpus.preparation import PrepareResult, already_done, commit, mark_done
from jobs.corpus.summary import annotated_beside
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.buckets import NUM_BUCKETS, Buckets, portions
from pipeline.corpus.listing import Listing
from pipeline.corpus.manifest import SCHEMA, open_manifest
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.decode.config import Limits
from pipeline.offline.shards import (
    INDEX_SCHEMA,
    Item,
    PackingConfig,
    batches_of,
    indexes_in,
    is_final,
    items_of,
    write_shard,
)
from pipeline.offline.stages import map_blocks
from pipeline.records import Rejected, Stage

log = logging.getLogger(__name__)

MARKER = "pack.json"
PORTION_ROWS = 2**16
"""Most clips and rows of earlier indexes in memory at a time, unless a single bucket has more."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Which corpus is packed, and where to."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts. The packed one has the same form."""
    out: str
    """Folder or bucket for shards, manifest and ledger."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    max_rejected_share: float = 0.05
    """Largest share of clips that may be rejected, in [0, 1]."""
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` pack, e.g. data; by default all do."""
    limits: Limits = field(default_factory=Limits)
    """Limits of decoding one clip."""
    force: bool = False
    """Write the manifest again, even if nothing changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")


def pack(config: PackConfig) -> PrepareResult:
    """Write shards, manifest and ledger. Complete shards of earlier passes are reused.

    TooManyRejectedError, after the ledger is written, when more than the allowed share is rejected. ValueError while
    another job writes to the same folder.
    """
    out = storage.absolute(config.out)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _pack(config, out, held)


def _pack(config: PackConfig, out: str, held: lease.Lease) -> PrepareResult:
    started = time.monotonic()
    listing, marker = open_manifest(config.manifest), storage.join(out, MARKER)
    inputs = f"{listing.hash} {config.packing.hash} {config.max_rejected_share}"
    if not config.force and (prepared := already_done(marker, inputs)):
        return prepared
    storage.remove(marker)
    rows, rejected = SortedRows(), []
    for clips, index_rows in packed_portions(listing, config, storage.join(out, "shards")):
        names = {clip["clip_id"]: media.name_of(clip["uri"], listing.root) for clip in clips}
        rejected += [Rejected.from_row(row, Stage.PACK) for row in index_rows if row["reason"]]
        packed = [
            {name: row[name] for name in SCHEMA.names} | {"uri": media.uri_with_name(row["uri"], names[row["clip_id"]])}
            for row in index_rows
            if not row["reason"]
        ]
        rows.add(pa.Table.from_pylist(packed, SCHEMA))
    held.check()
    prepared = commit(
        rows,
        rejected,
        corpus=listing.corpus,
        root=out,
        out=out,
        num_samples=len(listing),
        max_rejected_share=config.max_rejected_share,
        started=started,
        in_parts=listing.is_in_parts,
    )
    prepared = dataclasses.replace(prepared, num_annotated=annotated_beside(config.manifest, listing.hash))
    mark_done(marker, inputs, prepared)
    return prepared


def packed_portions(listing: Listing, config: PackConfig, folder: str) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yield the clips of the manifest in portions, each with the index rows of its clips."""
    clips, before = by_item(listing, config.packing), Buckets(INDEX_SCHEMA)
    for table in indexes_in(folder, config.packing):
        final = table.filter(pa.array([is_final(row) for row in table.to_pylist()], pa.bool_()))
        before.add(buckets_of_keys(final["key"].to_pylist()), final)
    with contextlib.ExitStack() as stack:
        joined = functools.cache(lambda: stack.enter_context(connected_ray()))  # connects only if a clip must be packed
        ranges = list(portions(clips.counts + before.counts, PORTION_ROWS))
        for number, portion in enumerate(ranges, start=1):
            rows = clips.read(*portion).sort_by("clip_id").to_pylist()
            items, packed = items_of(rows, config.packing), defaultdict[str, list[Row]](list)
            for row in before.read(*portion).to_pylist():
                packed[row["key"]].append(row)
            missing = [item for item in items if item.key not in packed]
            counts = (number, len(ranges), len(rows), len(items), len(items) - len(missing))
            log.info("portion %d of %d: %d clips in %d items, %d of them packed before", *counts)
            index_rows = [row for item in items for row in packed.get(item.key, [])]
            if missing:
                joined()
                index_rows += _packed_now(missing, config, folder)
            yield rows, index_rows


def _packed_now(items: Sequence[Item], config: PackConfig, folder: str) -> list[Row]:
    """Write the shards of `items` and return the rows of their indexes."""
    shards = ([clip for item in batch for clip in item.clips] for batch in batches_of(items, config.packing))
    blocks = [pa.Table.from_pylist(clips, schema=SCHEMA) for clips in shards]
    write = partial(write_block, config=config.packing, folder=folder, limits=config.limits)
    return pa.concat_tables(map_blocks(blocks, write, subcluster=config.subcluster)).to_pylist()


def by_item(listing: Listing, config: PackingConfig) -> Buckets:
    """Return the clips of a manifest, bucketed by the key of their item.

    The key of an item can depend on all clips of a file, so the clips are first bucketed by file.
    """
    by_file, by_key = Buckets(SCHEMA), Buckets(SCHEMA)
    for table in listing.batches():
        numbers = (zlib.crc32(uri.encode()) % NUM_BUCKETS for uri in table["uri"].to_pylist())
        by_file.add(np.fromiter(numbers, np.int64), table)
    for portion in portions(by_file.counts, PORTION_ROWS):
        rows = by_file.read(*portion).sort_by("clip_id").to_pylist()
        keyed = [(item.key, clip) for item in items_of(rows, config) for clip in item.clips]
        if keyed:
            keys, clips = zip(*keyed, strict=True)
            by_key.add(buckets_of_keys(keys), pa.Table.from_pylist(clips, SCHEMA))
    return by_key


def buckets_of_keys(keys: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Return the bucket number of each key: its first two hex digits."""
    return np.fromiter((int(key[:2], 16) for key in keys), np.int64)


def write_block(block: pa.Table, config: PackingConfig, folder: str, limits: Limits) -> pa.Table:
    """Write the clips of `block` as one shard and return its index."""
    return write_shard(items_of(block.to_pylist(), config), config, folder, limits)
