"""Is a video file as long as its container announces? MP4, AVI and Matroska say so in their headers."""

from __future__ import annotations

from pipeline.records import DecodeError, Reason


def refuse_damaged_container(data: bytes) -> None:
    """Raise DecodeError if an MP4, AVI or Matroska file is shorter than it announces.

    Decoders do not notice: they repeat the last frame that they have, or try again for minutes.
    """
    if not data:
        raise DecodeError(Reason.EMPTY, "the file has no bytes")
    if data[4:8] == b"ftyp":
        announced = _mp4_length(data)
    elif data[:4] == b"RIFF":
        announced = 8 + int.from_bytes(data[4:8], "little")
    elif data[:4] == b"\x1a\x45\xdf\xa3":
        announced = _matroska_length(data)
    else:
        announced = 0
    if announced > len(data):
        raise DecodeError(
            Reason.TRUNCATED, f"the file has {len(data)} bytes, {announced - len(data)} fewer than it announces"
        )


def _mp4_length(data: bytes) -> int:
    """Return the end of the last outer box."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a 64-bit size follows the type
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0: to the end of the file; otherwise bytes of another kind, which players ignore
            return len(data)
        position += size
    return position


def _matroska_length(data: bytes) -> int:
    """Return the end of the first segment; 0 if it was written as a stream, without a length."""
    header_size, position = _ebml_size(data, 4)
    segment_size, first = _ebml_size(data, position + (header_size or 0) + 4)
    return 0 if segment_size is None else first + segment_size


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """Return the variable-length size at `position` (None: unknown) and the position after it."""
    if position >= len(data) or not data[position]:
        return None, position
    length = 9 - data[position].bit_length()
    size = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else size, position + length
