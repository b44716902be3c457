"""From annotations to manifest rows and rejected samples: the offline chain, on Ray Data.

    annotations ──► clips (id, uri) ──probe, on CPU workers──► rows | Rejected
                                      fetch · checksum · container · decode first, middle, last frame

The driver holds one small row per clip, no pixels and no file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray.data

from pipeline import manifest, storage
from pipeline.annotations import Annotation, kind_of
from pipeline.codec import probe
from pipeline.isolation import Limits, isolated
from pipeline.records import DecodeError, Reason, Rejected, Stage

log = logging.getLogger(__name__)

_FINDING = (
    pa.schema([field.with_nullable(True) for field in manifest.SCHEMA])
    .append(
        pa.field("reason", pa.string())  # null: the clip is usable
    )
    .append(pa.field("detail", pa.string()))
)
KNOWN = pa.schema([manifest.SCHEMA.field(index) for index in range(manifest.SCHEMA.get_field_index("group") + 1)])
"""The columns of a manifest row that are known before a file is opened."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What became of a corpus."""

    rows: pa.Table
    """Usable clips; columns of `manifest.SCHEMA`."""
    rejected: list[Rejected]


def clips_of(annotations: Iterable[Annotation], *, corpus: str, root: str) -> list[dict[str, Any]]:
    """Manifest rows as far as they are known before a file is opened, sorted by uri. Equal ids are refused."""
    clips, owners = [], {}
    for one in annotations:
        clip_id = manifest.clip_id(corpus, one.relative_path, one.start_seconds, one.end_seconds)
        if clip_id in owners:
            raise ValueError(f"the ids of {owners[clip_id]} and {one.relative_path} collide: rename one of the files")
        owners[clip_id] = one.relative_path
        known = {field.name: getattr(one, field.name) for field in fields(one) if field.name != "relative_path"}
        uri = storage.join(root, one.relative_path)
        clips.append(known | {"clip_id": clip_id, "uri": uri, "captions": list(one.captions)})
    return sorted(clips, key=lambda clip: (clip["uri"], clip["start_seconds"] or 0.0, clip["clip_id"]))


def unnamed_files(annotations: Iterable[Annotation], names: Iterable[str], *, corpus: str, root: str) -> list[Rejected]:
    """Videos and images among `names` (below `root`) that no annotation names, as rejected samples."""
    named = {one.relative_path for one in annotations}
    return [
        _reject(
            manifest.clip_id(corpus, name),
            storage.join(root, name),
            Reason.NO_ANNOTATION,
            "no annotation names this file",
        )
        for name in names
        if kind_of(name) and name not in named
    ]


def probe_clips(
    clips: Sequence[dict[str, Any]], *, decoder: str, limits: Limits, subcluster: str | None = None
) -> Probed:
    """Every clip as a row or as a rejected sample, by a Ray Data job over the nodes of `subcluster` (None: all nodes).

    Clips without captions are rejected before anything is fetched.
    """
    silent = [
        _reject(clip["clip_id"], clip["uri"], Reason.NO_CAPTION, "no caption with words")
        for clip in clips
        if not clip["captions"]
    ]
    captioned = [clip for clip in clips if clip["captions"]]
    if not captioned:
        return Probed(rows=manifest.SCHEMA.empty_table(), rejected=silent)
    found = pa.concat_tables(_findings(captioned, decoder, limits, subcluster))
    usable = found["reason"].is_null()
    lost = found.filter(found["reason"].is_valid()).select(["clip_id", "uri", "reason", "detail"]).to_pylist()
    rejected = [_reject(one["clip_id"], one["uri"], Reason(one["reason"]), one["detail"]) for one in lost]
    return Probed(rows=found.filter(usable).select(manifest.SCHEMA.names), rejected=silent + rejected)


def probe_batch(batch: pa.Table, decoder: str, limits: Limits) -> pa.Table:
    """The clips of `batch` as whole manifest rows, or with reason and detail. Each file is fetched once."""
    rows = []
    for uri, clips in groupby(batch.to_pylist(), key=lambda clip: clip["uri"]):
        data = _fetch(uri)
        rows += [clip | _look_into(data, clip, decoder, limits) for clip in clips]
    return pa.Table.from_pylist(rows, schema=_FINDING)


def _fetch(uri: str) -> bytes | DecodeError:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        return DecodeError(Reason.MISSING, str(error))
    except IsADirectoryError:
        return DecodeError(Reason.UNREADABLE, "a folder, not a file")


def _look_into(data: bytes | DecodeError, clip: dict[str, Any], decoder: str, limits: Limits) -> dict[str, Any]:
    """The columns that only the file knows."""
    try:
        if isinstance(data, DecodeError):
            raise data
        settings = {name: clip[name] for name in ("kind", "start_seconds", "end_seconds")}
        look = isolated(probe, data, limits=limits, decoder=decoder, **settings)
    except DecodeError as error:
        return {"reason": str(error.reason), "detail": error.detail}
    return look | {"bytes": len(data), "checksum": manifest.checksum(data)}


def _findings(clips: Sequence[dict[str, Any]], decoder: str, limits: Limits, subcluster: str | None) -> list[pa.Table]:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    if subcluster:
        context.execution_options.label_selector = {"ray-subcluster": subcluster}
    logging.getLogger("ray.data._internal.progress").setLevel(
        logging.ERROR
    )  # warns that its bars are off; ours count clips
    with ray.data.DataContext.current(context):
        data = ray.data.from_arrow(list(_blocks(clips)))
        probing = partial(probe_batch, decoder=decoder, limits=limits)
        probed = data.map_batches(probing, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=1)
        return list(_with_progress(probed.iter_batches(batch_size=None, batch_format="pyarrow"), len(clips)))


def _blocks(clips: Sequence[dict[str, Any]]) -> Iterator[pa.Table]:
    """Tables of at most 256 clips, and at least about eight: enough tasks for every CPU, few enough to schedule."""
    size = max(8, min(256, len(clips) // 64))
    for start in range(0, len(clips), size):
        yield pa.Table.from_pylist(list(clips[start : start + size]), schema=KNOWN)


def _with_progress(tables: Iterable[pa.Table], num_clips: int, every_seconds: float = 5.0) -> Iterator[pa.Table]:
    started = said = time.monotonic()
    done = 0
    for table in tables:
        yield table
        done += table.num_rows
        now = time.monotonic()
        if now - said >= every_seconds and done < num_clips:
            rate = done / (now - started)
            log.info(
                "%d of %d clips looked at, %.0f clips/s, %.0f s left", done, num_clips, rate, (num_clips - done) / rate
            )
            said = now


def _reject(clip_id: int, uri: str, reason: Reason, detail: str) -> Rejected:
    return Rejected(clip_id=clip_id, uri=uri, stage=Stage.PREPARE, reason=reason, detail=detail)
