"""Fingerprints of clips: 384 bytes per sampled frame, small enough to store and enough to recognise a copy.

    clip ──8 frames/s──► thumbnails: 16×16 luma, 8×8 of each chroma ──DCT──► 64-bit perceptual hashes

Frames are sampled at a fixed rate, not at fixed shares of the clip, so that a trimmed copy has the same ones.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute generates its functions at import, so type checkers cannot see them

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

from pipeline import storage
from pipeline.corpus import ledger, media
from pipeline.corpus.content import checksum
from pipeline.corpus.listing import Listing
from pipeline.decode.codec import Video, decode_image, known_info, open_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.offline.stages import map_blocks, probe_files, split_into_blocks
from pipeline.records import DecodeError, Kind, Reason, Rejected, Stage, Stored

FRAMES_PER_SECOND = 8.0
"""Thumbnails per second of a video: 3 KB. Two clips are compared at shifts of half their spacing, so that fast motion
is recognised in a copy whose cut lies between two thumbnails."""
SIZE_PX = (64, 64)
"""Size to which frames are resized. decord reads this width directly."""
LUMA_SIDE, CHROMA_SIDE = 16, 8
PLANES = (0, LUMA_SIDE**2, LUMA_SIDE**2 + CHROMA_SIDE**2)
"""Offsets of luma and the two chroma planes in a thumbnail."""
THUMBNAIL_BYTES = LUMA_SIDE**2 + 2 * CHROMA_SIDE**2
HASH_SIDE = 8
"""Number of lowest frequencies in the hash, in each direction."""
VERSION = b"2"
"""Increment it whenever the same clip would get different thumbnails."""

_VERSION_KEY = b"snps3_fingerprints"
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_COSINES = np.cos(np.pi / LUMA_SIDE * np.outer(np.arange(HASH_SIDE), np.arange(LUMA_SIDE) + 0.5)).astype(np.float32)

SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        pa.field("thumbnails", pa.large_binary(), nullable=False),
    ]
)


PLACES = pa.schema(
    [
        pa.field("clip_id", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # thumbnails [start, stop) of the file beside it
        pa.field("stop", pa.int64(), nullable=False),
    ]
)
THUMBNAILS = ".thumbnails"
"""Suffix of a file that contains only thumbnails, so that those of any clip can be read alone."""
PART_BYTES = 64 * 2**20
"""Approximate size of such a file."""


def thumbnails_of(frames: UInt8[np.ndarray, "T 64 64 3"]) -> UInt8[np.ndarray, "T 384"]:
    """Return luma and both chroma planes of each frame (Rec. 601, chroma around 128), as means of blocks of pixels."""
    planes = frames.astype(np.float32) @ YCBCR.T + np.array([0.0, 128.0, 128.0], np.float32)
    luma, chroma = _means(planes[..., :1], LUMA_SIDE), _means(planes[..., 1:], CHROMA_SIDE)
    rows = [luma[..., 0], chroma[..., 0], chroma[..., 1]]
    joined = np.concatenate([row.reshape(len(frames), -1) for row in rows], axis=1)
    return np.rint(joined).clip(0, 255).astype(np.uint8)


def _means(planes: Float32[np.ndarray, "T H H C"], side: int) -> Float32[np.ndarray, "T side side C"]:
    T, height, _, C = planes.shape
    return planes.reshape(T, side, height // side, side, height // side, C).mean((2, 4))


def perceptual_hashes(thumbnails: UInt8[np.ndarray, "F 384"]) -> UInt64[np.ndarray, " F"]:
    """Return a 64-bit hash per thumbnail: whether each low frequency of the luma (DCT-II) exceeds their median."""
    luma = thumbnails[:, : PLANES[1]].reshape(-1, LUMA_SIDE, LUMA_SIDE).astype(np.float32)
    coefficients = (_COSINES @ luma @ _COSINES.T).reshape(len(luma), HASH_SIDE**2)
    is_high = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.packbits(is_high, axis=1).view(np.uint64).ravel()


def clip_thumbnails(data: Stored, clip: Mapping[str, Any], decoder: str) -> UInt8[np.ndarray, "T 384"]:
    """Return the thumbnails of a manifest's clip, at least one. DecodeError if it is unreadable or has changed."""
    if media.checksum(data) != clip["checksum"]:
        raise DecodeError(Reason.WRONG_CHECKSUM, "the file is not the one in the manifest: prepare the corpus again")
    if clip["kind"] == Kind.IMAGE:
        image = Image.fromarray(decode_image(data)).resize(SIZE_PX, Image.Resampling.BICUBIC)
        return thumbnails_of(np.asarray(image)[None])
    with open_video(data, decoder, known_info(dict(clip))) as video:
        return video_thumbnails(video, video.timeline.window(clip["start_seconds"], clip["end_seconds"]))


def video_thumbnails(video: Video, window: range) -> UInt8[np.ndarray, "T 384"]:
    """Return a thumbnail for the middle of each interval of 1 / `FRAMES_PER_SECOND` s, or of a shorter window.

    Each is interpolated between the two frames around its time, so that a copy cut at another time has thumbnails
    between those of the original.
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

    def fingerprint(data: Stored, clip: dict[str, Any]) -> dict[str, Any]:
        thumbnails = isolated(clip_thumbnails, data, limits=limits, clip=clip, decoder=decoder)
        return {"thumbnails": thumbnails.tobytes()}

    return probe_files(batch, lambda _, data: partial(fingerprint, data), SCHEMA.append(pa.field("uri", pa.string())))


def fingerprint_corpus(
    corpus: Listing, folder: str, *, decoder: str, limits: Limits, subcluster: str | None = None
) -> list[Rejected]:
    """Write the fingerprints of all clips to `folder`, and return the clips that have none.

    Existing fingerprints of the same clip and file are reused. Ray Data jobs on the nodes of `subcluster` (None: all)
    compute the rest, which is written in parts as it is completed.
    """
    known = np.unique(np.concatenate([print_keys(part) for _, part in print_parts(folder)] or [np.zeros(0, np.uint64)]))
    fingerprint = functools.partial(fingerprint_batch, decoder=decoder, limits=limits)
    rejected: list[Rejected] = []

    def computed() -> Iterator[pa.Table]:
        for rows in corpus.batches():
            missing = rows.filter(pa.array(~np.isin(print_keys(rows), known)))
            if missing.num_rows:
                blocks = split_into_blocks(
                    missing.sort_by([("uri", "ascending"), ("clip_id", "ascending")]), 8, 256, "uri"
                )
                for table in map_blocks(blocks, fingerprint, subcluster=subcluster):
                    usable, lost = ledger.split_by_reason(table, Stage.PREPARE)
                    rejected.extend(lost)
                    yield usable.select(SCHEMA.names).cast(SCHEMA)

    write_prints(folder, computed())
    return rejected


def cache_path(manifest_path: str) -> str:
    """Return the folder of a manifest's fingerprints, which is beside the manifest (a file or a folder of parts)."""
    return manifest_path.rstrip("/").removesuffix(".parquet") + "-fingerprints"


def write_prints(folder: str, tables: Iterable[pa.Table], max_bytes: int = PART_BYTES) -> None:
    """Write fingerprints (`SCHEMA`) to `folder` in parts: a file of thumbnails, then a table of `PLACES`, which commits
    the part."""
    waiting: list[pa.Table] = []
    for table in itertools.chain(tables, [None]):
        if table is not None and table.num_rows:
            waiting.append(table)
        if waiting and (table is None or sum(part.nbytes for part in waiting) >= max_bytes):
            _write_part(folder, pa.concat_tables(waiting))
            waiting = []


def _write_part(folder: str, table: pa.Table) -> None:
    ends = np.cumsum(pc.binary_length(table["thumbnails"]).to_numpy()) // THUMBNAIL_BYTES
    columns = [table["clip_id"], table["checksum"], np.concatenate([[0], ends[:-1]]), ends]
    places = pa.table(dict(zip(PLACES.names, columns, strict=True)), schema=PLACES)
    path = storage.join(folder, f"{checksum(print_keys(table).tobytes())}{THUMBNAILS}")
    storage.write_bytes_atomic(path, b"".join(value.as_buffer() for value in table["thumbnails"]))
    storage.write_table(index_of(path), places.replace_schema_metadata({_VERSION_KEY: VERSION}))


def print_parts(folder: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield the file of thumbnails and the table (`PLACES`) of each part of this version; nothing without a folder."""
    for name in storage.list_files(folder) if storage.exists(folder) else []:
        if name.endswith(THUMBNAILS) and storage.exists(index := index_of(storage.join(folder, name))):
            table = storage.read_table(index)
            if (table.schema.metadata or {}).get(_VERSION_KEY) == VERSION:
                yield storage.join(folder, name), table.replace_schema_metadata()


def index_of(path: str) -> str:
    """Return the path of the table for a file of thumbnails."""
    return path.removesuffix(THUMBNAILS) + ".parquet"


def print_keys(table: pa.Table) -> UInt64[np.ndarray, " N"]:
    """Return a key per row, equal for the same clip of the same file."""
    return hash_texts(table["checksum"].to_pylist()) ^ table["clip_id"].to_numpy().astype(np.uint64)


def hash_texts(texts: Iterable[str]) -> UInt64[np.ndarray, " N"]:
    """Return a 64-bit BLAKE2b hash per text."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def read_thumbnails(
    path: str, starts: Int64[np.ndarray, " N"], stops: Int64[np.ndarray, " N"]
) -> list[UInt8[np.ndarray, "T 384"]]:
    """Read the thumbnails of some clips from the file of a part. ValueError if it is truncated."""
    ranges = list(zip((starts * THUMBNAIL_BYTES).tolist(), (stops * THUMBNAIL_BYTES).tolist(), strict=True))
    if storage.is_remote(path):
        pieces = [
            read() for read in storage.prefetched((path, partial(storage.read_bytes, path, *each)) for each in ranges)
        ]
    else:
        pieces = storage.read_with(path, lambda file: [_read_range(file, *each) for each in ranges])
    if list(map(len, pieces)) != ((stops - starts) * THUMBNAIL_BYTES).tolist():
        raise ValueError(f"{path} is cut: remove it and {index_of(path)}, and its clips are decoded again")
    return [np.frombuffer(piece, np.uint8).reshape(-1, THUMBNAIL_BYTES) for piece in pieces]


def _read_range(file: IO[bytes], start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)
