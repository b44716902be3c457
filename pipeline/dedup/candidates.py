"""Clips of which two frames look nearly alike, by locality-sensitive hashing in tasks.

    thumbnails ──perceptual hash and sketch of each frame──► entries ──some bits of the hash──► buckets in files
    a bucket ──equal bits──► neighbours ──few bits of hash and sketch differ──► candidates

A band is a random choice of bits of the hash. Entries in which these bits are equal are in one bucket of the band,
whatever task made them, and a task reads a bucket at once. Each clip meets a bounded number of others per band and
frame, so time grows with the number of frames, times its logarithm, and not with its square.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Shaped, UInt8, UInt64

from pipeline import storage
from pipeline.dedup.duplicates import MIN_CONTRAST, centred, contrast
from pipeline.dedup.fingerprints import THUMBNAIL_BYTES, perceptual_hashes, read_thumbnails

NUM_BANDS = 16
"""Random choices of bits in which two frames may agree: more cost more and miss less."""
MAX_DISTANCE = 8
"""Bits, of 64, in which the hashes of two frames that make a candidate may differ."""
SKETCH_BITS = 64
MAX_NEIGHBOURS = 64
"""Clips with equal bits that a clip is compared with, per frame and band: a crowd does not cost its square."""
FRAMES_AT_ONCE = 16_384
BUCKET_FRAMES = 2**21
"""Frames of a bucket, about: 42 MB of entries."""
ENTRY = np.dtype([("hash", "<u8"), ("sketch", "<u8"), ("clip", "<i8")])
BUCKETS = pa.schema(
    [("band", pa.int64()), ("bucket", pa.int64()), ("path", pa.string()), ("start", pa.int64()), ("stop", pa.int64())]
)
"""Where entries lie: bytes [start, stop) of a file."""
PAIRS = pa.schema([("first", pa.int64()), ("second", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Banding:
    """How entries are put into buckets."""

    num_bits: int
    """Of a band: as many keys as there are frames."""
    num_buckets: int
    """Of each band."""
    max_sketch_distance: int
    """Bits in which the sketches of two frames that make a candidate may differ."""

    @classmethod
    def of(cls, num_frames: int, min_picture: float) -> Banding:
        """Return the banding for so many frames, of which those of copies have `min_picture` of their contrast in
        common.

        Each bit of the sketches of two such frames differs with a probability of at most `share`. Of a copy's many
        frames the nearest two decide, so one standard deviation above the mean misses none.
        """
        num_bits = min(max(math.ceil(math.log2(max(num_frames, 2))), 12), 28)
        share = math.acos(min_picture) / math.pi
        distance = round(SKETCH_BITS * share + math.sqrt(SKETCH_BITS * share * (1 - share)))
        return cls(num_bits=num_bits, num_buckets=-(-num_frames // BUCKET_FRAMES) or 1, max_sketch_distance=distance)

    @functools.cached_property
    def masks(self) -> UInt64[np.ndarray, " bands"]:
        """The bits of each band."""
        rng = np.random.default_rng(0)
        bits = [rng.choice(64, self.num_bits, replace=False).astype(np.uint64) for _ in range(NUM_BANDS)]
        return np.bitwise_or.reduce(np.uint64(1) << np.stack(bits), axis=1)

    def buckets(self, hashes: UInt64[np.ndarray, " E"], band: int) -> Int64[np.ndarray, " E"]:
        """Return the bucket of each entry in a band."""
        return (mixed(hashes & self.masks[band]) % np.uint64(self.num_buckets)).astype(np.int64)


def mixed(values: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Return other numbers, each the same for the same one, of which all bits look random (SplitMix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))


def entries_of(thumbnails: UInt8[np.ndarray, "F 384"], clips: Int64[np.ndarray, " F"]) -> Shaped[np.ndarray, " E"]:
    """Return an `ENTRY` of each frame with contrast; frames of a clip with the hash of the one before have none."""
    parts = []
    for start in range(0, len(thumbnails), FRAMES_AT_ONCE):
        frames, owners = (array[start : start + FRAMES_AT_ONCE] for array in (thumbnails, clips))
        has_contrast = contrast(frames) >= MIN_CONTRAST**2
        frames, owners = frames[has_contrast], owners[has_contrast]
        hashes = perceptual_hashes(frames)
        is_new = np.ones(len(hashes), bool)
        is_new[1:] = (np.diff(hashes) != 0) | (np.diff(owners) != 0)
        entries = np.zeros(int(is_new.sum()), ENTRY)
        entries["hash"], entries["clip"] = hashes[is_new], owners[is_new]
        entries["sketch"] = sketches(frames[is_new])
        parts.append(entries)
    return np.concatenate([np.zeros(0, ENTRY), *parts])


def sketches(thumbnails: UInt8[np.ndarray, "F 384"]) -> UInt64[np.ndarray, " F"]:
    """Return 64 signs of random projections of each thumbnail without the means of its planes.

    Of two thumbnails with an angle between them a share of angle / π of the bits differs.
    """
    return np.packbits(centred(thumbnails) @ _directions() > 0, axis=1).view(np.uint64).ravel()


@functools.cache
def _directions() -> Float32[np.ndarray, "384 64"]:
    return np.random.default_rng(1).standard_normal((THUMBNAIL_BYTES, SKETCH_BITS), np.float32)


def scatter_entries(block: pa.Table, banding: Banding, folder: str) -> pa.Table:
    """Write the entries of the clips of a part to a file in `folder`, sorted by band and bucket; return `BUCKETS`.

    `block` has one row: number of the part, path of its thumbnails, and clips, starts and stops, in their order.
    """
    (part,) = block.to_pylist()
    stops, lengths = np.array(part["stops"]), np.array(part["stops"]) - np.array(part["starts"])
    (thumbnails,) = read_thumbnails(part["path"], np.array([0]), stops.max(keepdims=True))
    frames = np.repeat(stops - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
    if len(frames) < len(thumbnails):
        thumbnails = thumbnails[frames]
    entries = entries_of(thumbnails, np.repeat(np.array(part["clips"], np.int64), lengths))
    path = storage.join(folder, f"{part['number']}.entries")
    pieces, rows, position = [], [], 0
    for band in range(NUM_BANDS):
        buckets = banding.buckets(entries["hash"], band)
        order = np.argsort(buckets, kind="stable")
        pieces.append(entries[order].tobytes())
        bounds = np.searchsorted(buckets[order], np.arange(banding.num_buckets + 1)) * ENTRY.itemsize
        for bucket, (start, stop) in enumerate(itertools.pairwise((position + bounds).tolist())):
            rows.append(dict(zip(BUCKETS.names, (band, bucket, path, start, stop), strict=True)))
        position += len(pieces[-1])
    storage.write_bytes_atomic(path, b"".join(pieces))
    return pa.Table.from_pylist([row for row in rows if row["start"] < row["stop"]], schema=BUCKETS)


def pairs_in_bucket(block: pa.Table, banding: Banding) -> pa.Table:
    """Return the candidates (`PAIRS`, first < second) among the entries of a bucket (`BUCKETS`), each once."""
    pieces = [storage.read_bytes(row["path"], row["start"], row["stop"]) for row in block.to_pylist()]
    entries = np.frombuffer(b"".join(pieces), ENTRY)
    first, second = candidates(entries, banding, block["band"][0].as_py()).T
    return pa.table([first, second], schema=PAIRS)


def candidates(entries: Shaped[np.ndarray, " E"], banding: Banding, band: int) -> Int64[np.ndarray, "P 2"]:
    """Return the pairs of clips (first < second), each once, with entries that are equal in the bits of a band and
    nearly so in all others."""
    mask = banding.masks[band]
    hashes, sketch, clips = (np.ascontiguousarray(entries[name]) for name in ENTRY.names or ())
    pairs = [np.zeros((0, 2), np.int64)]
    shuffled = mixed(clips.astype(np.uint64) ^ mask)  # other neighbours in each band where there is a crowd
    for left, right in neighbours(hashes & mask, shuffled):
        is_near = np.bitwise_count(hashes[left] ^ hashes[right]) <= MAX_DISTANCE
        left, right = left[is_near], right[is_near]
        is_near = np.bitwise_count(sketch[left] ^ sketch[right]) <= banding.max_sketch_distance
        pairs.append(np.sort(np.stack([clips[left[is_near]], clips[right[is_near]]], axis=1), axis=1))
    return unique_pairs(np.concatenate(pairs))


def unique_pairs(pairs: Int64[np.ndarray, "P 2"]) -> Int64[np.ndarray, "Q 2"]:
    """Return the different pairs of numbers below 2³¹, sorted."""
    return np.stack(np.divmod(np.unique((pairs[:, 0] << 31) + pairs[:, 1]), 2**31), axis=1)


def neighbours(
    keys: UInt64[np.ndarray, " F"], owners: Shaped[np.ndarray, " F"]
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """Places of equal keys of different owners: each with the next one, with the second next …, in order of owners."""
    order = np.lexsort((owners, keys))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(keys[order]) != 0) | (np.diff(owners[order]) != 0)
    order = order[is_new]
    keys = keys[order]
    for distance in range(1, min(MAX_NEIGHBOURS, len(order) - 1) + 1):
        places = np.flatnonzero(keys[distance:] == keys[:-distance])
        if not len(places):
            return
        yield order[places], order[places + distance]
