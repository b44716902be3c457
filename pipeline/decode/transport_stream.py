"""MPEG-TS splits a video packet into pieces of at most 184 bytes, interleaved with those of other streams."""

from __future__ import annotations

PIECE_BYTES = 188
"""Size of a transport stream packet, which begins with `SYNC`."""
SYNC = 0x47


def packet_at(data: bytes | memoryview, size: int) -> tuple[bytes, int]:
    """Return the packet of `size` bytes whose first piece begins `data`, and the number of bytes that it spans there.
    (b"", 0) if it is incomplete."""
    parts, num_bytes, stream = [], 0, None
    for start in range(0, len(data) - PIECE_BYTES + 1, PIECE_BYTES):
        piece = bytes(data[start : start + PIECE_BYTES])
        is_first, number = bool(piece[1] & 0x40), (piece[1] & 0x1F) << 8 | piece[2]
        stream = number if stream is None else stream
        if piece[0] != SYNC or (number == stream and is_first == bool(start)):
            break
        if number != stream or not piece[3] & 0x10:  # another stream, or only padding
            continue
        content = piece[4 + (1 + piece[4] if piece[3] & 0x20 else 0) :]
        if is_first:  # the header of the packet
            content = content[9 + content[8] :] if len(content) > 8 else b""
        parts.append(content)
        num_bytes += len(content)
        if num_bytes >= size:
            return b"".join(parts)[:size], start + PIECE_BYTES
    return b"", 0
