"""From annotations to manifest rows and rejected samples: the offline chain, on Ray Data.

    annotations ──► clips (id, uri) ──probe, on CPU workers──► rows | Rejected
                                      fetch · checksum · container · decode first, middle, last frame

The driver holds one small row per clip, no pixels and no file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import ray.data

from pipeline import manifest, storage
from pipeline.annotations import Annotation, kind_of
from pipeline.codec import DecodeError, decode_image, fit_long_side, open_video, window_indices
from pipeline.records import Kind, Reason, Rejected, Stage

log = logging.getLogger(__name__)

PROBE_SIZE_PX = 64
"""Long side of the frames that prove a clip usable: a width that decord needs no detour for."""

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


def probe_clips(clips: Sequence[dict[str, Any]], *, decoder: str, subcluster: str | None = None) -> Probed:
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
    probe = partial(probe_batch, decoder=decoder)
    found = pa.concat_tables(map_clips(captioned, probe, schema=KNOWN, subcluster=subcluster))
    usable = found["reason"].is_null()
    lost = found.filter(found["reason"].is_valid()).select(["clip_id", "uri", "reason", "detail"]).to_pylist()
    rejected = [_reject(one["clip_id"], one["uri"], Reason(one["reason"]), one["detail"]) for one in lost]
    return Probed(rows=found.filter(usable).select(manifest.SCHEMA.names), rejected=silent + rejected)


def probe_batch(batch: pa.Table, decoder: str) -> pa.Table:
    """The clips of `batch` as whole manifest rows, or with reason and detail. Each file is fetched once."""
    rows = []
    for uri, clips in groupby(batch.to_pylist(), key=lambda clip: clip["uri"]):
        data = fetch(uri)
        rows += [clip | _look_into(data, clip, decoder) for clip in clips]
    return pa.Table.from_pylist(rows, schema=_FINDING)


def fetch(uri: str) -> bytes | DecodeError:
    """The bytes of a file, or why there are none."""
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError as error:
        return DecodeError(Reason.MISSING, str(error))
    except IsADirectoryError:
        return DecodeError(Reason.UNREADABLE, "a folder, not a file")


def _look_into(data: bytes | DecodeError, clip: dict[str, Any], decoder: str) -> dict[str, Any]:
    """The columns that only the file knows."""
    try:
        if isinstance(data, DecodeError):
            raise data
        look = _look_into_image(data) if clip["kind"] == Kind.IMAGE else _look_into_video(data, clip, decoder)
    except DecodeError as error:
        return {"reason": str(error.reason), "detail": error.detail}
    return look | {"bytes": len(data), "checksum": manifest.checksum(data)}


def _look_into_image(data: bytes) -> dict[str, Any]:
    height, width, _ = decode_image(data).shape
    return {"width": width, "height": height, "num_frames": 1}


def _look_into_video(data: bytes, clip: dict[str, Any], decoder: str) -> dict[str, Any]:
    with open_video(data, decoder) as video:
        info = video.info
        indices = window_indices(info, clip["start_seconds"], clip["end_seconds"])
        needed = sorted({indices[0], indices[len(indices) // 2], indices[-1]})
        video.frames(needed, fit_long_side(info.width, info.height, PROBE_SIZE_PX))
    return {field.name: getattr(info, field.name) for field in fields(info)}


def map_clips(
    clips: Sequence[dict[str, Any]],
    look: Callable[[pa.Table], pa.Table],
    *,
    schema: pa.Schema,
    subcluster: str | None = None,
) -> list[pa.Table]:
    """What `look` finds of tables of some clips (rows of `schema`), by a Ray Data job with a CPU per table."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    if subcluster:
        context.execution_options.label_selector = {"ray-subcluster": subcluster}
    logging.getLogger("ray.data._internal.progress").setLevel(
        logging.ERROR
    )  # warns that its bars are off; ours count clips
    with ray.data.DataContext.current(context):
        data = ray.data.from_arrow(list(_blocks(clips, schema)))
        found = data.map_batches(look, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=1)
        return list(_with_progress(found.iter_batches(batch_size=None, batch_format="pyarrow"), len(clips)))


def _blocks(clips: Sequence[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of at most 256 clips, and at least about eight: enough tasks for every CPU, few enough to schedule."""
    size = max(8, min(256, len(clips) // 64))
    for start in range(0, len(clips), size):
        yield pa.Table.from_pylist(list(clips[start : start + size]), schema=schema)


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
