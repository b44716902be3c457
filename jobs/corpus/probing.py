"""Probe the files of clips with a Ray Data job, which saves its results as they come."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from jobs.corpus.resumption import compute_missing
from pipeline.corpus import ledger, media
from pipeline.corpus.manifest import SCHEMA
from pipeline.decode.config import Limits
from pipeline.offline.kept import key_of
from pipeline.offline.stages import KNOWN, probe_batch, reject
from pipeline.records import Reason, Rejected, Stage

log = logging.getLogger(__name__)


def probe_clips(
    clips: Sequence[dict[str, Any]],
    *,
    decoder: str,
    limits: Limits,
    kept_in: str,
    versions: Mapping[str, str],
    packets_folder: str | None = None,
    subcluster: str | None = None,
    keeps_uncaptioned: bool = False,
) -> tuple[pa.Table, list[Rejected]]:
    """Return the usable clips (`SCHEMA`) and the rejected ones.

    The job runs on the nodes of `subcluster` (None: all). Clips without captions are rejected before anything is
    fetched, unless `keeps_uncaptioned`. Packet indexes are written to `packets_folder`. Results in the folder `kept_in`
    are reused for clips whose files have the same `versions` (by uri).
    """
    silent = [
        reject(clip["clip_id"], clip["uri"], Reason.NO_CAPTION, "no caption with words")
        for clip in clips
        if not (clip["captions"] or keeps_uncaptioned)
    ]
    rows = [clip for clip in clips if clip["captions"] or keeps_uncaptioned]
    if not rows:
        return SCHEMA.empty_table(), silent
    keys = [key_of(decoder, packets_folder, *row.values(), versions.get(media.file_of(row["uri"]))) for row in rows]
    table = pa.Table.from_pylist(rows, KNOWN).append_column("key", pa.array(keys, pa.string()))
    look = partial(probe_batch, decoder=decoder, limits=limits, packets_folder=packets_folder)
    options = {"min_block_rows": 8, "max_block_rows": 256, "group_column": "uri", "subcluster": subcluster}
    probed = compute_missing(table, look, kept_in, SCHEMA, **options)
    usable, rejected = ledger.split_by_reason(probed, Stage.PREPARE)
    return usable.select(SCHEMA.names).cast(SCHEMA), silent + rejected


class WholeFileReads:
    """Counts the files that must be read whole for clips that are parts of them."""

    def __init__(self) -> None:
        self.num_files = self.num_whole = self.num_unpacked = 0
        self.first: str | None = None

    def add(self, rows: pa.Table) -> None:
        """Count the files of `rows`. Clips of a file must not be spread over several calls."""
        self.num_unpacked += len({media.file_of(uri) for uri in rows["uri"].to_pylist() if "#unpacked=" in uri})
        columns = (rows[name].to_pylist() for name in ("uri", "packets", "start_seconds", "end_seconds"))
        parts = [(uri, packets) for uri, packets, *times in zip(*columns, strict=True) if times != [None, None]]
        whole = {uri for uri, packets in parts if packets is None}
        self.num_files += len({uri for uri, _ in parts})
        self.num_whole += len(whole)
        self.first = min(whole | ({self.first} if self.first else set()), default=None)

    def say(self) -> None:
        """Log a warning if there are any."""
        if self.num_unpacked:
            text = "%d tars are compressed, and unpacked whole for each clip: train on what `pack` makes of them"
            log.warning(text, self.num_unpacked)
        if self.num_whole:
            log.warning(
                "%d of %d files with several clips are read whole for each of them, since their packets do not lie in "
                "one piece each, or another decoder than pyav reads them; the first is %s",
                *(self.num_whole, self.num_files, self.first),
            )
