"""Pack a corpus into few large files: Parquet shards with the original bytes, or with the clips' frames as JPEG.

    manifest ──► items ──fetch, decode, encode──► shard (data) ──► its index (commit) ──► packed manifest

Every value is stored uncompressed, so the packed manifest gives its byte range and training fetches just that; any
other tool reads the same shard as a table of `key`, `clip_ids` and `values`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.corpus import ledger, manifest, media
from pipeline.corpus.fetching import fetch
from pipeline.corpus.schema import completed
from pipeline.decode.clip_frames import clip_frames
from pipeline.decode.codec import Timeline, encode_image, fit_long_side, known_info
from pipeline.decode.config import Limits
from pipeline.records import DecodeError, EncodedFrames, Kind, Reason

VERSION = 2
"""Increment it whenever the same input would give different shards."""
INDEX_SUFFIX = ".index.parquet"
SHARD_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # of the item: a hash of its source and its clips
        pa.field("clip_ids", pa.list_(pa.int64()), nullable=False),
        pa.field("values", pa.list_(pa.binary()), nullable=False),  # one file, or one JPEG per frame
    ]
)
INDEX_SCHEMA = ledger.with_reason(manifest.SCHEMA.append(pa.field("key", pa.string())))
TRANSIENT = frozenset(
    {Reason.MISSING, Reason.UNAVAILABLE, Reason.TIMEOUT, Reason.CRASHED, Reason.OUT_OF_MEMORY, Reason.FAILED}
)
"""Transient failures (of the store, the machine or our code): a repeated pass retries these clips."""


class Content(StrEnum):
    """What a shard holds."""

    RAW = "raw"
    """The files as they are; clips of one file share its bytes."""
    FRAMES = "frames"
    """Frames of each clip, as JPEG: training then decodes no video."""


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """What a shard holds, and how much of it."""

    content: Content = Content.FRAMES
    num_frames: int = 32
    """Frames kept of a clip, evenly spaced; training samples from them. All, if the clip has fewer."""
    frame_size_px: int = 256
    """Long side of a kept frame; a smaller one keeps its size."""
    quality: int = 90
    """Quality of the JPEGs, in [1, 95]."""
    shard_bytes: int = 64 * 2**20
    """About the size of a shard, which is also what one worker holds in memory."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_size_px", "shard_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"packing.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"packing.quality must lie in [1, 95], got {self.quality}")

    @property
    def hash(self) -> str:
        """Return a hash that is equal for settings that give equal values."""
        settings = [VERSION, self.content]
        if self.content == Content.FRAMES:
            settings += [self.num_frames, self.frame_size_px, self.quality]
        return hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Item:
    """The source of one row of a shard: a clip, or a file with all its clips."""

    key: str
    clips: tuple[dict[str, Any], ...]
    """Rows of the manifest."""


def items_of(rows: Iterable[dict[str, Any]], config: PackingConfig) -> list[Item]:
    """Return the rows of a manifest as items, in order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        owner = f"{row['uri'] if config.content == Content.RAW else row['clip_id']} {row['checksum']}"
        groups.setdefault(owner, []).append(row)
    return [Item(key=_key(owner, clips), clips=tuple(clips)) for owner, clips in groups.items()]


def batches_of(items: Sequence[Item], config: PackingConfig) -> Iterator[list[Item]]:
    """Yield the items of each shard."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += estimated_bytes(item, config)
        if size >= config.shard_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def estimated_bytes(item: Item, config: PackingConfig) -> int:
    """Estimate the bytes of an item in its shard; of a JPEG, a fifth of its pixels (a rough guess for quality 90)."""
    row = item.clips[0]
    if config.content == Content.RAW:
        return row["bytes"]
    width, height = fit_long_side(row["width"], row["height"], config.frame_size_px)
    return min(config.num_frames, row["num_frames"]) * (width * height // 5)


def write_shard(items: Sequence[Item], config: PackingConfig, folder: str, limits: Limits) -> pa.Table:
    """Write one shard of `items`, then its index, and return the index: rows of the packed manifest, or reasons.

    The name is a hash of the input, so a repeated pass overwrites the same file.
    """
    name = hashlib.blake2b("\n".join([config.hash, *(item.key for item in items)]).encode(), digest_size=10).hexdigest()
    path = storage.join(folder, f"{name}.parquet")
    filled, rows = [], []
    for item in items:
        try:
            values, changed = _values(item, config, limits)
        except DecodeError as error:
            rows += [_entry(clip, item, reason=str(error.reason), detail=error.detail) for clip in item.clips]
        else:
            filled.append((item, values, changed))
    data, starts = _shard([(item, values) for item, values, _ in filled])
    for (item, values, changed), start in zip(filled, starts, strict=True):
        changed |= _place(path, data, start, values, config)
        rows += [_entry(clip, item, **changed) for clip in item.clips]
    if filled:
        storage.write_bytes_atomic(path, data)
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    described = {b"snps3_packing": config.hash.encode(), b"settings": json.dumps(asdict(config)).encode()}
    storage.write_table(storage.join(folder, name + INDEX_SUFFIX), table.replace_schema_metadata(described))
    return table


def read_indexes(folder: str, config: PackingConfig) -> pa.Table:
    """Return what earlier passes with the same settings packed below `folder` or rejected for good (`INDEX_SCHEMA`)."""
    return pa.concat_tables([INDEX_SCHEMA.empty_table(), *indexes_in(folder, config)])


def indexes_in(folder: str, config: PackingConfig) -> Iterator[pa.Table]:
    """Yield the index of each shard that earlier passes with the same settings have written below `folder`."""
    for name in storage.list_files(folder) if storage.exists(folder) else []:
        if name.endswith(INDEX_SUFFIX):
            table = storage.read_table(storage.join(folder, name))
            if (table.schema.metadata or {}).get(b"snps3_packing") == config.hash.encode():
                yield completed(table.replace_schema_metadata(), INDEX_SCHEMA)


def is_final(row: dict[str, Any]) -> bool:
    """Return whether a row of an index is final; False: its clip should be retried."""
    return row["reason"] is None or Reason(row["reason"]) not in TRANSIENT


def _key(owner: str, clips: Sequence[dict[str, Any]]) -> str:
    times = [[clip["clip_id"], clip["start_seconds"], clip["end_seconds"]] for clip in clips]
    return hashlib.blake2b(json.dumps([owner, times]).encode(), digest_size=16).hexdigest()


def _entry(clip: dict[str, Any], item: Item, **changed: Any) -> dict[str, Any]:
    return clip | {"key": item.key, "reason": None, "detail": None} | changed


def _values(item: Item, config: PackingConfig, limits: Limits) -> tuple[Sequence[bytes], dict[str, Any]]:
    """Return the values of an item and the manifest columns that packing changes. DecodeError if it is unusable."""
    clip = item.clips[0]
    if config.content == Content.RAW:
        data: Any = fetch(clip["uri"], clip["checksum"])
        return (data.images if isinstance(data, EncodedFrames) else (data,)), {}
    num_frames, changed = 1, {}
    if clip["kind"] == Kind.VIDEO:
        info = known_info(clip)
        length = len(Timeline.uniform(info).window(clip["start_seconds"], clip["end_seconds"]))
        num_frames, seconds = min(config.num_frames, length), length / info.fps
        changed = {"num_frames": num_frames, "fps": num_frames / seconds, "duration_seconds": seconds}
        changed |= {"start_seconds": None, "end_seconds": None}  # only frames of the clip are kept
    frames = clip_frames(clip, num_frames=num_frames, size_px=config.frame_size_px, limits=limits)
    height, width = frames.shape[1:3]
    values = [encode_image(frame, quality=config.quality) for frame in frames]
    return values, changed | {"width": width, "height": height}


def _shard(filled: Sequence[tuple[Item, Sequence[bytes]]]) -> tuple[bytes, list[int]]:
    """Return a Parquet file of the items, and the byte at which the packed values of each begin."""
    rows = [
        {"key": item.key, "clip_ids": [clip["clip_id"] for clip in item.clips], "values": list(values)}
        for item, values in filled
    ]
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SHARD_SCHEMA),
        buffer,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        row_group_size=1,  # one page per row, so that its values are contiguous
    )
    data, starts, position = buffer.getvalue(), [], 0
    for _, values in filled:
        packed = media.pack(values)
        position = data.index(packed, position)
        starts.append(position)
        position += len(packed)
    return data, starts


def _place(path: str, data: bytes, start: int, values: Sequence[bytes], config: PackingConfig) -> dict[str, Any]:
    """Return the manifest columns that locate `values`, which begin at byte `start` of the shard."""
    stop, is_file = start + len(media.pack(values)), config.content == Content.RAW and len(values) == 1
    if is_file:
        start = stop - len(values[0])
    uri = media.range_uri(path, start, stop, "bytes" if is_file else "frames")
    return {"uri": uri, "packets": None, "bytes": stop - start, "checksum": manifest.checksum(data[start:stop])}
