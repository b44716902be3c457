"""A prepared corpus packed into few large files, as a Ray Data job."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from cluster.connection import connected_ray
from jobs.corpus.preparation import Prepared, already_done, commit, mark_done
from jobs.corpus.summary import annotated_beside
from jobs.launch import lease
from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.manifest import SCHEMA, Manifest, read_manifest
from pipeline.corpus.parts import is_in_parts
from pipeline.corpus.sorted_rows import SortedRows
from pipeline.decode.config import Limits
from pipeline.offline.shards import (
    PackingConfig,
    batches_of,
    is_final,
    items_of,
    read_indexes,
    write_shard,
)
from pipeline.offline.stages import mapped
from pipeline.records import Rejected, Stage

log = logging.getLogger(__name__)

MARKER = "pack.json"


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What is packed, and where to."""

    manifest: str
    """Manifest of the corpus: a file or a folder of parts. The packed one is what this one is."""
    out: str
    """Folder or bucket for shards, manifest and ledger."""
    packing: PackingConfig = field(default_factory=PackingConfig)
    max_rejected_share: float = 0.05
    """Largest share of clips that may be rejected, in [0, 1]."""
    subcluster: str | None = None
    """Only nodes with this value of the label `ray-subcluster` pack, e.g. data; by default all do."""
    limits: Limits = field(default_factory=Limits)
    """What decoding one clip may take."""
    force: bool = False
    """Write the manifest again, even if nothing changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejected_share <= 1:
            raise ValueError(f"max_rejected_share must lie in [0, 1], got {self.max_rejected_share}")


def pack(config: PackConfig) -> Prepared:
    """Shards, manifest and ledger. Nothing is done twice: whole shards of an earlier pass are kept, one by one.

    TooManyRejectedError, after the ledger is written, when more than the allowed share is rejected. ValueError while
    another job writes to the same folder.
    """
    out = storage.absolute(config.out)
    storage.check_writable(out)
    with lease.held(out) as held:
        return _pack(config, out, held)


def _pack(config: PackConfig, out: str, held: lease.Lease) -> Prepared:
    started = time.monotonic()
    manifest, marker = read_manifest(config.manifest), storage.join(out, MARKER)
    inputs = f"{manifest.hash} {config.packing.hash} {config.max_rejected_share}"
    if not config.force and (done := already_done(marker, inputs)):
        return done
    storage.remove(marker)
    found = _packed(manifest, config, storage.join(out, "shards"))
    names = {row["clip_id"]: media.name_of(row["uri"], manifest.root) for row in manifest.table.to_pylist()}
    packed = [
        {name: row[name] for name in SCHEMA.names} | {"uri": media.named(row["uri"], names[row["clip_id"]])}
        for row in found
        if not row["reason"]
    ]
    held.check()
    done = commit(
        SortedRows([pa.Table.from_pylist(packed, SCHEMA)]),
        [Rejected.from_row(row, Stage.PACK) for row in found if row["reason"]],
        corpus=manifest.corpus,
        root=out,
        out=out,
        num_samples=len(manifest),
        max_rejected_share=config.max_rejected_share,
        started=started,
        in_parts=is_in_parts(config.manifest),
    )
    done = dataclasses.replace(done, num_annotated=annotated_beside(config.manifest, manifest.hash))
    mark_done(marker, inputs, done)
    return done


def _packed(manifest: Manifest, config: PackConfig, folder: str) -> list[dict[str, Any]]:
    """A row of an index for each clip of the manifest."""
    items = items_of(manifest.table.to_pylist(), config.packing)
    before: dict[str, list[dict[str, Any]]] = {}
    for row in filter(is_final, read_indexes(folder, config.packing).to_pylist()):
        before.setdefault(row["key"], []).append(row)
    found = [row for item in items for row in before.get(item.key, [])]
    missing = [item for item in items if item.key not in before]
    log.info("%d clips in %d items, %d of them packed before", len(manifest), len(items), len(items) - len(missing))
    if missing:
        shards = ([clip for item in batch for clip in item.clips] for batch in batches_of(missing, config.packing))
        blocks = [pa.Table.from_pylist(clips, schema=SCHEMA) for clips in shards]
        write = partial(write_block, config=config.packing, folder=folder, limits=config.limits)
        with connected_ray():
            found += pa.concat_tables(mapped(blocks, write, subcluster=config.subcluster)).to_pylist()
    return found


def write_block(block: pa.Table, config: PackingConfig, folder: str, limits: Limits) -> pa.Table:
    """The index of the shard that holds the clips of `block`."""
    return write_shard(items_of(block.to_pylist(), config), config, folder, limits)
