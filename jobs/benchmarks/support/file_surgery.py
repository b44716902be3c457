"""Byte-level edits of files: content that no encoder writes, and damage in transit."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

Edit = Callable[[bytes], bytes]
BOXES_OF_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}
TURNS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Clockwise rotation in degrees to the upright picture → a, b, c, d of the display matrix."""


def cut(share: float) -> Edit:
    """Keep the first `share` of a file."""
    return lambda data: data[: int(len(data) * share)]


def cut_head(share: float, step: int = 1) -> Edit:
    """Drop the first `share` of a file, a multiple of `step` bytes."""
    return lambda data: data[int(len(data) * share) // step * step :]


def hole(first: float, last: float, filled: bool = True) -> Edit:
    """Fill a part of a file, given in shares of its length, with zeros, or leave it out."""

    def edit(data: bytes) -> bytes:
        start, stop = int(len(data) * first), int(len(data) * last)
        return data[:start] + bytes(stop - start if filled else 0) + data[stop:]

    return edit


def flips(count: int, seed: int, first: float = 0.2, last: float = 0.9) -> Edit:
    """Flip `count` bits between two shares of a file's length."""

    def edit(data: bytes) -> bytes:
        rng, damaged = np.random.default_rng(seed), bytearray(data)
        for position in rng.integers(int(len(data) * first), int(len(data) * last), count).tolist():
            damaged[position] ^= 1 << int(rng.integers(8))
        return bytes(damaged)

    return edit


def appended(tail: bytes) -> Edit:
    """Append bytes."""
    return lambda data: data + tail


def prepended(head: bytes) -> Edit:
    """Prepend bytes."""
    return lambda data: head + data


def replaced(old: bytes, new: bytes, count: int = 1) -> Edit:
    """Replace bytes; fail if the file does not contain them."""

    def edit(data: bytes) -> bytes:
        assert old in data, old
        return data.replace(old, new, count)

    return edit


def behind(mark: bytes, offset: int, new: bytes) -> Edit:
    """Overwrite bytes at `offset` from the first byte of each `mark`."""

    def edit(data: bytes) -> bytes:
        changed, position = bytearray(data), data.index(mark)
        while position >= 0:
            changed[position + offset : position + offset + len(new)] = new
            position = data.find(mark, position + 1)
        return bytes(changed)

    return edit


def with_matrix(degrees: int, mirrored: bool = False) -> Edit:
    """Write the display matrix of an MP4's tracks: turned, and mirrored left to right before that."""
    a, b, c, d = TURNS[degrees]
    a, b = (-a, -b) if mirrored else (a, b)
    unit = 1 << 16
    return behind(b"tkhd", 44, struct.pack(">9i", a * unit, b * unit, 0, c * unit, d * unit, 0, 0, 0, 1 << 30))


def with_edits(*edits: tuple[int, int]) -> Edit:
    """Give an MP4 whose moov comes last an edit list of (duration in ms, media time; -1: nothing is shown)."""
    body = struct.pack(">II", 0, len(edits)) + b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
    return partial(with_boxes, contents={b"elst": body})


def swapped_boxes(data: bytes) -> bytes:
    """Reverse the order of the outer boxes of an MP4, so that the offsets in its index become wrong."""
    parts, position = [], 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        parts.append(data[position : position + size])
        position += size
    return b"".join([parts[0], *reversed(parts[1:])])


def with_boxes(data: bytes, contents: Mapping[bytes, bytes | None]) -> bytes:
    """Replace the content of an MP4's boxes of these types; None removes them."""
    parts, position = [], 0
    while position < len(data):
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        content: bytes | None = data[position + 8 : position + size]
        if name in contents:
            content = contents[name]
        elif name in BOXES_OF_BOXES:
            content = with_boxes(content, contents)
        parts += [] if content is None else [struct.pack(">I", len(content) + 8), name, content]
        position += size
    return b"".join(parts)


def with_roll(degrees: float) -> Edit:
    """Replace the colours of a Matroska file (element Colour), which the stream contains too, by a clockwise rotation.
    The file must not contain checksums."""

    def edit(data: bytes) -> bytes:
        start = data.index(b"\x55\xb0")
        stop = start + 3 + (data[start + 2] & 0x7F)
        roll = b"\x76\x71\x81\x00" + b"\x76\x75\x84" + struct.pack(">f", -degrees)  # rectangular; ProjectionPoseRoll
        projection = b"\x76\x70" + bytes([0x80 | len(roll)]) + roll
        void = stop - start - len(projection) - 2
        return data[:start] + projection + b"\xec" + bytes([0x80 | void]) + bytes(void) + data[stop:]

    return edit
