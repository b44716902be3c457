"""Find candidate pairs of clips that share a similar frame, by locality-sensitive hashing in tasks.

    thumbnails ──perceptual hash and sketch of each frame──► entries ──some bits of the hash──► buckets in files
    a bucket ──equal bits──► neighbours ──few bits of hash and sketch differ──► candidates

A band is a random subset of the bits of the hash. Entries with equal bits fall into the same bucket of the band,
whichever task made them, and one task reads a whole bucket. Each clip is compared with a bounded number of others per
band and frame, so time grows as n log n in the number of frames n, not as n².
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
"""Number of random subsets of bits in which two frames may agree: more cost more and miss fewer pairs."""
MAX_DISTANCE = 8
"""Largest Hamming distance, of 64 bits, between the hashes of two frames of a candidate."""
SKETCH_BITS = 64
MAX_NEIGHBOURS = 64
"""Largest number of clips with equal bits that a clip is compared with, per frame and band: bounds the cost."""
FRAMES_AT_ONCE = 16_384
BUCKET_FRAMES = 2**21
"""Approximate number of frames per bucket: 42 MB of entries."""
ENTRY = np.dtype([("hash", "<u8"), ("sketch", "<u8"), ("clip", "<i8")])
BUCKETS = pa.schema(
    [("band", pa.int64()), ("bucket", pa.int64()), ("path", pa.string()), ("start", pa.int64()), ("stop", pa.int64())]
)
"""Location of a bucket's entries: bytes [start, stop) of a file."""
PAIRS = pa.schema([("first", pa.int64()), ("second", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Banding:
    """How entries are assigned to buckets."""

    num_bits: int
    """Bits of a band, such that there are about as many keys as frames."""
    num_buckets: int
    """Buckets of each band."""
    max_sketch_distance: int
    """Largest Hamming distance between the sketches of two frames of a candidate."""

    @classmethod
    def of(cls, num_frames: int, min_picture: float) -> Banding:
        """Return the banding for `num_frames` frames, where copies share at least `min_picture` of their contrast.

        Each bit of the sketches of two such frames differs with a probability of at most `share`. The most similar two
        frames of a copy decide, so a threshold of one standard deviation above the mean suffices.
        """
        num_bits = min(max(math.ceil(math.log2(max(num_frames, 2))), 12), 28)
        share = math.acos(min_picture) / math.pi
        distance = round(SKETCH_BITS * share + math.sqrt(SKETCH_BITS * share * (1 - share)))
        return cls(num_bits=num_bits, num_buckets=-(-num_frames // BUCKET_FRAMES) or 1, max_sketch_distance=distance)

    @functools.cached_property
    def masks(self) -> UInt64[np.ndarray, " bands"]:
        """Return the bit mask of each band."""
        rng = np.random.default_rng(0)
        bits = [rng.choice(64, self.num_bits, replace=False).astype(np.uint64) for _ in range(NUM_BANDS)]
        return np.bitwise_or.reduce(np.uint64(1) << np.stack(bits), axis=1)

    def buckets(self, hashes: UInt64[np.ndarray, " E"], band: int) -> Int64[np.ndarray, " E"]:
        """Return the bucket of each entry in a band."""
        return (mix_bits(hashes & self.masks[band]) % np.uint64(self.num_buckets)).astype(np.int64)


def mix_bits(values: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """Hash numbers so that all bits look random (as in SplitMix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))


def entries_of(thumbnails: UInt8[np.ndarray, "F 384"], clips: Int64[np.ndarray, " F"]) -> Shaped[np.ndarray, " E"]:
    """Return an `ENTRY` for each frame with contrast, unless it has the hash of the frame before it in its clip."""
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
    """Return the signs of 64 random projections of each centred thumbnail.

    The expected share of bits that differ between two thumbnails is the angle between them, divided by π.
    """
    return np.packbits(centred(thumbnails) @ _directions() > 0, axis=1).view(np.uint64).ravel()


@functools.cache
def _directions() -> Float32[np.ndarray, "384 64"]:
    return np.random.default_rng(1).standard_normal((THUMBNAIL_BYTES, SKETCH_BITS), np.float32)


def scatter_entries(block: pa.Table, banding: Banding, folder: str) -> pa.Table:
    """Write the entries of a part's clips to a file in `folder`, sorted by band and bucket; return `BUCKETS`.

    `block` has one row: number of the part, path of its thumbnails, and lists of clips, starts and stops.
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
    """Return the unique candidates (`PAIRS`, first < second) among the entries of a bucket (`BUCKETS`)."""
    pieces = [storage.read_bytes(row["path"], row["start"], row["stop"]) for row in block.to_pylist()]
    entries = np.frombuffer(b"".join(pieces), ENTRY)
    first, second = candidates(entries, banding, block["band"][0].as_py()).T
    return pa.table([first, second], schema=PAIRS)


def candidates(entries: Shaped[np.ndarray, " E"], banding: Banding, band: int) -> Int64[np.ndarray, "P 2"]:
    """Return the unique pairs of clips (first < second) whose entries agree in the bits of a band and nearly in all
    others."""
    mask = banding.masks[band]
    hashes, sketch, clips = (np.ascontiguousarray(entries[name]) for name in ENTRY.names or ())
    pairs = [np.zeros((0, 2), np.int64)]
    shuffled = mix_bits(clips.astype(np.uint64) ^ mask)  # in a crowd, each band compares other neighbours
    for left, right in neighbours(hashes & mask, shuffled):
        is_near = np.bitwise_count(hashes[left] ^ hashes[right]) <= MAX_DISTANCE
        left, right = left[is_near], right[is_near]
        is_near = np.bitwise_count(sketch[left] ^ sketch[right]) <= banding.max_sketch_distance
        pairs.append(np.sort(np.stack([clips[left[is_near]], clips[right[is_near]]], axis=1), axis=1))
    return unique_pairs(np.concatenate(pairs))


def unique_pairs(pairs: Int64[np.ndarray, "P 2"]) -> Int64[np.ndarray, "Q 2"]:
    """Return the unique pairs, sorted. Numbers must be below 2³¹."""
    return np.stack(np.divmod(np.unique((pairs[:, 0] << 31) + pairs[:, 1]), 2**31), axis=1)


def neighbours(
    keys: UInt64[np.ndarray, " F"], owners: Shaped[np.ndarray, " F"]
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """Yield positions of equal keys of different owners: each with the next, then with the second next …, by owner."""
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
