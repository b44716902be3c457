"""Stages of the offline pipeline, on Ray Data: from annotations to manifest rows and rejected samples.

    annotations ──► clips (id, uri) ──probe, on CPU workers──► rows | Rejected
                                      fetch · checksum · container · decode first, middle, last frame

The driver holds one small row per clip, but neither pixels nor files.
"""

from __future__ import annotations

import functools
import itertools
import logging
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.corpus import ledger, manifest, media
from pipeline.corpus.caption_readers import Annotation
from pipeline.corpus.fetching import fail, fetch, fetch_start
from pipeline.corpus.media import kind_of
from pipeline.corpus.sources import Layout, Source
from pipeline.decode.config import Limits
from pipeline.decode.isolation import reachable_from_sandbox
from pipeline.offline.probing import ProbedFile
from pipeline.records import DecodeError, DistantFile, Reason, Rejected, Stage, Stored

log = logging.getLogger(__name__)

ClipProbe = Callable[[dict[str, Any]], dict[str, Any]]
"""Maps a clip to the columns that need its file."""

KNOWN = pa.schema([manifest.SCHEMA.field(index) for index in range(manifest.SCHEMA.get_field_index("group") + 1)])
"""The columns of a manifest row that are known before a file is opened."""
PROGRESS_SECONDS = 5.0


def clips_of(annotations: Iterable[Annotation], *, corpus: str, source: Source) -> list[dict[str, Any]]:
    """Return manifest rows as far as they are known before a file is opened, sorted by uri. ValueError: two clips have
    the same id."""
    clips, owners = [], {}
    for annotation in annotations:
        row = {field.name: getattr(annotation, field.name) for field in fields(annotation)}
        path = row.pop("relative_path")
        clip_id = manifest.clip_id(corpus, path, annotation.start_seconds, annotation.end_seconds)
        if clip_id in owners:
            raise ValueError(f"the ids of {owners[clip_id]} and {path} collide: rename one of the files")
        owners[clip_id] = path
        clips.append(row | {"clip_id": clip_id, "uri": source.uri(path), "captions": list(annotation.captions)})
    return sorted(clips, key=lambda clip: (clip["uri"], clip["start_seconds"] or 0.0, clip["clip_id"]))


def unnamed_files(annotations: Iterable[Annotation], *, corpus: str, source: Source) -> list[Rejected]:
    """Return as rejected samples the files in `source` that no annotation names and those that could not be listed."""
    named = {source.name(annotation.relative_path) for annotation in annotations}
    unnamed = [
        reject(manifest.clip_id(corpus, name), uri, Reason.NO_ANNOTATION, "no annotation names this file")
        for name, uri in source.places.items()
        if name not in named and (source.layout in (Layout.LMDB, Layout.FRAME_FOLDERS) or kind_of(name))
    ]
    damaged = [
        reject(manifest.clip_id(corpus, uri), uri, Reason.TRUNCATED, detail) for uri, detail in source.damaged.items()
    ]
    return (
        unnamed
        + damaged
        + [
            reject(manifest.clip_id(corpus, name), storage.join(source.root, name), Reason.NO_ANNOTATION, detail)
            for name, detail in source.skipped.items()
        ]
    )


def probe_batch(batch: pa.Table, decoder: str, limits: Limits, packets_folder: str | None = None) -> pa.Table:
    """Return the clips of `batch` as complete manifest rows, or with reason and detail; a column `key` stays."""
    _warn_of_sandbox_gaps(limits)

    def make_probe(uri: str, data: Stored | DistantFile) -> ClipProbe:
        return ProbedFile(uri, data, decoder, limits, packets_folder).columns

    keys = [field for field in batch.schema if field.name == "key"]
    return probe_files(batch, make_probe, pa.schema([*manifest.SCHEMA, *keys]), fetch_start)


@functools.cache
def _warn_of_sandbox_gaps(limits: Limits) -> None:
    """Warn, once per process, about what the sandbox of this machine's decode processes does not block."""
    if reachable := reachable_from_sandbox(limits):
        log.warning(
            "decode processes on %s can reach %s: Linux keeps them out with seccomp and, from 5.13, with Landlock",
            platform.node(),
            " and ".join(reachable),
        )


def probe_files(
    batch: pa.Table,
    make_probe: Callable[[str, Any], ClipProbe],
    schema: pa.Schema,
    fetch: Callable[[str], Any] = fetch,
) -> pa.Table:
    """Add to each clip of `batch` the columns that `make_probe(uri, data)` returns for it, or reason and detail.

    The result has the columns of `schema`, reason and detail. Each file is fetched once.
    """
    rows = []
    files = [(uri, list(clips)) for uri, clips in itertools.groupby(batch.to_pylist(), key=lambda clip: clip["uri"])]
    reads = storage.prefetched((media.file_of(uri), partial(fetch, uri)) for uri, _ in files)
    for (uri, clips), read in zip(files, reads, strict=True):
        try:
            probe_clip = make_probe(uri, read())
        except DecodeError as error:
            probe_clip = partial(fail, error)
        for clip in clips:
            try:
                rows.append(clip | probe_clip(clip))
            except DecodeError as error:
                rows.append(clip | {"reason": str(error.reason), "detail": error.detail})
    return pa.Table.from_pylist(rows, schema=ledger.with_reason(schema))


def split_into_blocks(table: pa.Table, min_rows: int, max_rows: int, group_column: str | None = None) -> list[pa.Table]:
    """Cut a table into blocks of `min_rows` to `max_rows` rows: enough tasks for every CPU, few enough to schedule.

    Neighbouring rows with equal values in the column `group_column` stay in one block, so that each file is read once.
    """
    size = max(min_rows, min(max_rows, len(table) // 64))
    owners = table[group_column].to_pylist() if group_column else range(len(table))
    stops = [0]
    for stop in range(1, len(table) + 1):
        if stop == len(table) or (stop - stops[-1] >= size and owners[stop] != owners[stop - 1]):
            stops.append(stop)
    return [table.slice(start, stop - start) for start, stop in itertools.pairwise(stops)]


def map_blocks(
    blocks: Sequence[pa.Table], function: Callable[[pa.Table], pa.Table], *, subcluster: str | None
) -> Iterator[pa.Table]:
    """Yield from `stream_blocks`, and log every `PROGRESS_SECONDS` how many of the clips in `blocks` are processed."""
    started = said = time.monotonic()
    num_done, num_clips = 0, sum(map(len, blocks))
    for table in stream_blocks(blocks, function, subcluster=subcluster):
        yield table
        num_done += table.num_rows
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS and num_done < num_clips:
            rate = num_done / (now - started)
            counts = (num_done, num_clips, rate, (num_clips - num_done) / rate)
            log.info("%d of %d clips looked at, %.0f clips/s, %.0f s left", *counts, extra={"is_progress": True})
            said = now


def stream_blocks(
    blocks: Sequence[pa.Table], function: Callable[[pa.Table], pa.Table], *, subcluster: str | None = None
) -> Iterator[pa.Table]:
    """Yield `function` of each block as Ray Data completes it, on the nodes of `subcluster` (None: all)."""
    if not blocks:
        return
    import ray.data  # so that a command's --help does not wait for Ray

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    if subcluster:
        context.execution_options.label_selector = {"ray-subcluster": subcluster}
    with ray.data.DataContext.current(context):
        results = ray.data.from_arrow(list(blocks)).map_batches(
            function,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")


def reject(clip_id: int, uri: str, reason: Reason, detail: str) -> Rejected:
    return Rejected(clip_id=clip_id, uri=uri, stage=Stage.PREPARE, reason=reason, detail=detail)
