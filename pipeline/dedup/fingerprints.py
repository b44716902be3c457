"""What a clip looks like over time, in 384 bytes per sampled frame: little enough to keep, enough to know a copy.

    clip ──8 frames/s──► thumbnails: 16×16 luma, 8×8 of each chroma ──DCT──► 64-bit perceptual hashes

Frames are sampled by time and not by their share of the clip, so that a trimmed copy still shows the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

from pipeline import storage
from pipeline.corpus import ledger, manifest, media
from pipeline.corpus.manifest import Manifest
from pipeline.decode.codec import Video, decode_image, known_info, open_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.offline.stages import look_at_files, map_clips
from pipeline.records import DecodeError, Kind, Reason, Rejected, Stage, Stored

FRAMES_PER_SECOND = 8.0
"""Thumbnails per second of a video, so 3 KB. Two clips are compared at shifts of half their spacing, which is what
things on a fast way need to be recognised in a copy that was cut between two of them."""
SIZE_PX = (64, 64)
"""What a frame is squeezed to: a width that decord needs no detour for."""
LUMA_SIDE, CHROMA_SIDE = 16, 8
PLANES = (0, LUMA_SIDE**2, LUMA_SIDE**2 + CHROMA_SIDE**2)
"""Where luma and the two chroma planes of a thumbnail begin."""
THUMBNAIL_BYTES = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
HASH_SIDE = 8
"""Lowest frequencies of the hash, in each direction."""
VERSION = b"1"
"""Raised when the same clip gets other thumbnails."""

_VERSION_KEY = b"snps3_fingerprints"
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_COSINES = np.cos(np.pi / LUMA_SIDE * np.outer(np.arange(HASH_SIDE), np.arange(LUMA_SIDE) + 0.5)).astype(np.float32)

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        pa.field("thumbnails", pa.large_binary(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprints:
    """The thumbnails of `N` clips, `F` of them in all."""

    clip_ids: Int64[np.ndarray, " N"]
    starts: Int64[np.ndarray, " N_plus_1"]
    """The thumbnails of clip i are `thumbnails[starts[i]:starts[i + 1]]`, in order of time."""
    thumbnails: UInt8[np.ndarray, "F 384"]

    @classmethod
    def from_table(cls, table: pa.Table) -> Fingerprints:
        """Return the fingerprints in a table of `SCHEMA`."""
        column = table["thumbnails"].combine_chunks()
        offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset :][: len(column) + 1]
        joined = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]  # no copy: gigabytes
        return cls(
            clip_ids=table["clip_id"].to_numpy(),
            starts=(offsets - offsets[0]) // THUMBNAIL_BYTES,
            thumbnails=joined.reshape(-1, THUMBNAIL_BYTES),
        )

    def of(self, index: int) -> UInt8[np.ndarray, "T 384"]:
        """Return the thumbnails of one clip."""
        return self.thumbnails[self.starts[index] : self.starts[index + 1]]


def thumbnails_of(frames: UInt8[np.ndarray, "T 64 64 3"]) -> UInt8[np.ndarray, "T 384"]:
    """Return luma and both chroma of each frame (Rec. 601, chroma around 128), as means over squares of pixels."""
    planes = frames.astype(np.float32) @ _YCBCR.T + np.array([0.0, 128.0, 128.0], np.float32)
    luma, chroma = _means(planes[..., :1], LUMA_SIDE), _means(planes[..., 1:], CHROMA_SIDE)
    rows = [luma[..., 0], chroma[..., 0], chroma[..., 1]]
    joined = np.concatenate([row.reshape(len(frames), -1) for row in rows], axis=1)
    return np.rint(joined).clip(0, 255).astype(np.uint8)


def _means(planes: Float32[np.ndarray, "T H H C"], side: int) -> Float32[np.ndarray, "T side side C"]:
    T, height, _, C = planes.shape
    return planes.reshape(T, side, height // side, side, height // side, C).mean((2, 4))


def perceptual_hashes(thumbnails: UInt8[np.ndarray, "F 384"]) -> UInt64[np.ndarray, " F"]:
    """Return a bit for each of the 64 lowest frequencies of the luma (DCT-II): whether it exceeds their median."""
    luma = thumbnails[:, : PLANES[1]].reshape(-1, LUMA_SIDE, LUMA_SIDE).astype(np.float32)
    coefficients = (_COSINES @ luma @ _COSINES.T).reshape(len(luma), HASH_SIDE**2)
    is_high = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.packbits(is_high, axis=1).view(np.uint64).ravel()


def clip_thumbnails(data: Stored, clip: Mapping[str, Any], decoder: str) -> UInt8[np.ndarray, "T 384"]:
    """Return the thumbnails of a manifest's clip, at least one. DecodeError if the file shows none or is another."""
    if media.checksum(data) != clip["checksum"]:
        raise DecodeError(Reason.WRONG_CHECKSUM, "the file is not the one in the manifest: prepare the corpus again")
    if clip["kind"] == Kind.IMAGE:
        image = Image.fromarray(decode_image(data)).resize(SIZE_PX, Image.Resampling.BICUBIC)
        return thumbnails_of(np.asarray(image)[None])
    with open_video(data, decoder, known_info(dict(clip))) as video:
        return video_thumbnails(video, video.timeline.window(clip["start_seconds"], clip["end_seconds"]))


def video_thumbnails(video: Video, window: range) -> UInt8[np.ndarray, "T 384"]:
    """Return a thumbnail for the middle of each 1 / `FRAMES_PER_SECOND` of a window, or of a shorter window.

    Each is a mixture of the two frames around its time: of a copy that was cut elsewhere, what it shows between two
    frames lies between two thumbnails of the original as well.
    """
    spacing = video.info.fps / FRAMES_PER_SECOND
    count = max(1, int(len(window) / spacing))
    positions = ((np.arange(count) + 0.5) * min(spacing, len(window)) - 0.5).clip(0, len(window) - 1)
    before = positions.astype(np.int64)
    after = np.minimum(before + 1, len(window) - 1)
    needed, places = np.unique(np.concatenate([before, after]), return_inverse=True)
    thumbnails = thumbnails_of(video.frames([window[index] for index in needed], SIZE_PX)).astype(np.float32)
    weight = (positions - before).astype(np.float32)[:, None]
    mixed = (1 - weight) * thumbnails[places[:count]] + weight * thumbnails[places[count:]]
    return np.rint(mixed).astype(np.uint8)


def fingerprint_batch(batch: pa.Table, decoder: str, limits: Limits) -> pa.Table:
    """Return the clips of `batch` with their thumbnails, or with reason and detail."""

    def look(data: Stored, clip: dict[str, Any]) -> dict[str, Any]:
        thumbnails = isolated(clip_thumbnails, data, limits=limits, clip=clip, decoder=decoder)
        return {"thumbnails": thumbnails.tobytes()}

    return look_at_files(batch, lambda _, data: partial(look, data), SCHEMA.append(pa.field("uri", pa.string())))


def fingerprint_corpus(
    corpus: Manifest, path: str, *, decoder: str, limits: Limits, subcluster: str | None = None
) -> tuple[pa.Table, list[Rejected]]:
    """Return the fingerprints (`SCHEMA`) of all clips that have one, in order of clip_id, and the clips that have none.

    What `path` holds of the same clip and file is taken from there. The rest is computed by a Ray Data job over
    the nodes of `subcluster` (None: all nodes), and the cache is written again.
    """
    cached, names = read_cache(path), ["clip_id", "checksum"]
    known = cached.select(names).join(corpus.table.select(names), names, join_type="left semi")
    is_cached = pc.field("clip_id").isin(known["clip_id"].combine_chunks())
    cached = cached.filter(is_cached)
    clips = corpus.table.filter(~is_cached).sort_by([("uri", "ascending"), ("clip_id", "ascending")]).to_pylist()
    if not clips:
        return cached, []
    look = functools.partial(fingerprint_batch, decoder=decoder, limits=limits)
    computed = map_clips(clips, look, schema=manifest.SCHEMA, subcluster=subcluster)
    usable, rejected = ledger.split_by_reason(computed, Stage.PREPARE)
    table = pa.concat_tables([cached, usable.select(SCHEMA.names).cast(SCHEMA)]).sort_by("clip_id")
    storage.write_table(path, table.replace_schema_metadata({_VERSION_KEY: VERSION}))
    return table, rejected


def cache_path(manifest_path: str) -> str:
    """Return where the fingerprints of a manifest, a file or a folder of parts, are kept: beside it."""
    return manifest_path.rstrip("/").removesuffix(".parquet") + "-fingerprints.parquet"


def read_cache(path: str) -> pa.Table:
    """Return the fingerprints that were computed before; none if there is no file, or one of another version."""
    if not storage.exists(path):
        return SCHEMA.empty_table()
    table = storage.read_table(path)
    is_ours = (table.schema.metadata or {}).get(_VERSION_KEY) == VERSION
    return table.select(SCHEMA.names).cast(SCHEMA) if is_ours else SCHEMA.empty_table()
