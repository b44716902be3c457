"""Split an encoded clip into bytes and a description for the way to a decode process, and reassemble it there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from pipeline.decode.distant import BLOCK_BYTES, DistantBytes
from pipeline.records import DecodeError, DistantFile, EncodedFrames, EncodedPackets, Media, Reason

Shape = list[int] | EncodedPackets | int | None
"""Lengths of the images of `EncodedFrames`; `EncodedPackets` without their bytes; the size of a `DistantFile`; None for
bytes."""
Read = Callable[[int, int], bytes]


def serialise(data: Media) -> tuple[bytes, Shape]:
    """Return the bytes of a clip, and the description that `deserialise` needs."""
    match data:
        case EncodedFrames():
            return b"".join(data.images), [len(image) for image in data.images]
        case EncodedPackets():
            return data.data, dataclasses.replace(data, data=b"", wider=None)
        case DistantFile():
            return b"", data.num_bytes
    return data, None


def deserialise(content: bytes, shape: Shape, read: Read) -> Media | DistantBytes:
    """Reassemble a clip from bytes and description. `read` returns parts of a distant file."""
    match shape:
        case list():
            stops = itertools.accumulate(shape)
            return EncodedFrames(tuple(content[stop - size : stop] for size, stop in zip(shape, stops, strict=True)))
        case EncodedPackets():
            return dataclasses.replace(shape, data=content)
        case int():
            return DistantBytes(shape, read)
    return content


def part_of(file: DistantFile, requested: object) -> bytes:
    """Return the bytes [start, stop) that a decode process requests. DecodeError if the request is malformed."""
    match requested:
        case [int(start), int(stop)] if 0 <= start < stop <= min(file.num_bytes, start + BLOCK_BYTES):
            return file.read(start, stop)
    raise DecodeError(Reason.FAILED, "the decoder asked for something else than a part of the file")
