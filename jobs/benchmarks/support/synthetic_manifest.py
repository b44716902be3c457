"""Manifests in WebVid's format with any number of rows, 294 bytes each, whose videos are slices of one small file.

Row i of a split depends only on i, so that a manifest of any size is written in parts without holding it in memory.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt64

from pipeline import storage
from pipeline.corpus import media
from pipeline.corpus.content import checksum
from pipeline.corpus.parts import PartIndex, write_parts
from pipeline.corpus.schema import SCHEMA
from pipeline.records import Kind

NUM_VIDEOS = 4096
"""Number of different videos, of `VIDEO_BYTES` each."""
VIDEO_BYTES = 32
FPS, DURATIONS_SECONDS = 29.97, (8.0, 28.0)
MIN_WORDS, MAX_WORDS, WORD_LETTERS = 6, 20, 6
EVALUATION = {"test": 1000, "val": 1000}
ROWS_AT_ONCE = 32_768
FREQUENT_WORDS = (
    "a man woman child dog cat horse bird car boat city street house water tree flower mountain red blue green white "
    "small big young walks runs plays drives flies swims talks smiles works dances cooks in on the with near at"
).split()
"""The most frequent words; all others are random letters."""


def write_synthetic(path: str, num_rows: int, videos: str, *, part_rows: int = 65_536) -> PartIndex:
    """Write a manifest in parts with `num_rows` training videos, and those of `EVALUATION`, to the folder `path`; and
    the file `videos` with their bytes."""
    write_videos(videos)
    tables = synthetic_tables({**EVALUATION, "train": num_rows}, videos)
    return write_parts(path, tables, corpus="synthetic", root=storage.absolute(videos), part_rows=part_rows)


def write_videos(path: str) -> None:
    """Write the file with the bytes of all videos."""
    storage.write_bytes_atomic(path, b"".join(video(number) for number in range(NUM_VIDEOS)))


def video(number: int) -> bytes:
    """Return bytes that start and end like a GIF, since others are rejected before they reach a decoder."""
    return b"GIF89a" + hashlib.blake2b(number.to_bytes(8, "big"), digest_size=VIDEO_BYTES - 7).digest() + b";"


def synthetic_tables(sizes: Mapping[str, int], videos: str) -> Iterator[pa.Table]:
    """Yield the rows of splits in order of (split, clip_id); `sizes`: split → number of its videos."""
    checksums = pa.array([checksum(video(number)) for number in range(NUM_VIDEOS)])
    for place, (split, size) in enumerate(sorted(sizes.items())):
        for start in range(0, size, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, size), dtype=np.uint64)
            yield _table(split, rows, _mixed(rows, place), (2**63 - 1) // size, videos, checksums)


def _table(
    split: str, rows: UInt64[np.ndarray, " n"], drawn: UInt64[np.ndarray, " n"], gap: int, videos: str, checksums
) -> pa.Table:
    """Return rows with ascending ids, `gap` apart on average."""
    clip_ids = (rows * np.uint64(gap) + drawn % np.uint64(gap)).astype(np.int64)
    numbers = (drawn % np.uint64(NUM_VIDEOS)).astype(np.int64)
    low, high = DURATIONS_SECONDS
    durations = np.round(low + (drawn % np.uint64(997)).astype(float) / 997 * (high - low), 2)
    names = pc.binary_join_element_wise(
        f"{media.range_uri(videos, 0, 0).rpartition('=')[0]}=",
        pa.array(numbers * VIDEO_BYTES).cast(pa.string()),
        "-",
        pa.array((numbers + 1) * VIDEO_BYTES).cast(pa.string()),
        "&name=videos/",
        pc.utf8_lpad(pa.array(clip_ids % 10**6).cast(pa.string()), 6, "0"),
        "/",
        pc.utf8_lpad(pa.array(clip_ids % 10**10).cast(pa.string()), 10, "0"),
        ".mp4",
        "",
    )
    columns = {name: pa.nulls(len(rows), SCHEMA.field(name).type) for name in SCHEMA.names} | {
        "clip_id": clip_ids,
        "uri": names,
        "captions": _captions(drawn),
        "kind": pa.repeat(Kind.VIDEO.value, len(rows)),
        "split": pa.repeat(split, len(rows)),
        "width": np.full(len(rows), 596),
        "height": np.full(len(rows), 336),
        "fps": np.full(len(rows), FPS),
        "duration_seconds": durations,
        "num_frames": np.ceil(durations * FPS).astype(np.int64),
        "bytes": np.full(len(rows), VIDEO_BYTES),
        "checksum": checksums.take(pa.array(numbers)),
    }
    return pa.table(columns).cast(SCHEMA)


def captions_of(numbers: range) -> list[str]:
    """Return a caption for each number."""
    return _captions(_mixed(np.arange(numbers.start, numbers.stop, dtype=np.uint64), 0)).flatten().to_pylist()


def _captions(drawn: UInt64[np.ndarray, " n"]) -> pa.Array:
    """Return one caption per row; words are rarer the later they are in the list."""
    counts = (MIN_WORDS + drawn % np.uint64(MAX_WORDS - MIN_WORDS + 1)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    places = np.arange(offsets[-1], dtype=np.uint64) - np.repeat(offsets[:-1], counts).astype(np.uint64)
    shares = (_mixed(np.repeat(drawn, counts) + places, 7) >> np.uint64(11)).astype(float) / 2**53
    words = pc.take(_words(), pa.array((len(_words()) ** shares).astype(np.int64) - 1))
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words), " ")
    return pa.ListArray.from_arrays(pa.array(np.arange(len(drawn) + 1), pa.int32()), texts)


@functools.cache
def _words() -> pa.Array:
    rng = np.random.default_rng(0)
    letters = rng.integers(ord("a"), ord("z") + 1, (20_000, WORD_LETTERS), np.uint8)
    return pa.array([*FREQUENT_WORDS, *(row.tobytes().decode() for row in letters)])


def _mixed(values: UInt64[np.ndarray, " n"], key: int) -> UInt64[np.ndarray, " n"]:
    """Return SplitMix64 of `values` and `key`."""
    mixed = (values + np.uint64(key << 40)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
