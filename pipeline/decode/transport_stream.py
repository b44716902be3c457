"""MPEG-TS: a packet of video lies in pieces of at most 184 bytes, between those of other streams."""

from __future__ import annotations

PIECE_BYTES = 188
"""Of the packets of a transport stream; each begins with `SYNC`."""
SYNC = 0x47


def packet_at(data: bytes | memoryview, size: int) -> tuple[bytes, int]:
    """Return the packet of `size` bytes whose first piece begins `data`, and how many bytes of `data` it spans; empty
    if it is not there as a whole."""
    parts, found, stream = [], 0, None
    for start in range(0, len(data) - PIECE_BYTES + 1, PIECE_BYTES):
        piece = bytes(data[start : start + PIECE_BYTES])
        is_first, number = bool(piece[1] & 0x40), (piece[1] & 0x1F) << 8 | piece[2]
        stream = number if stream is None else stream
        if piece[0] != SYNC or (number == stream and is_first == bool(start)):
            break
        if number != stream or not piece[3] & 0x10:  # another stream, or nothing but padding
            continue
        content = piece[4 + (1 + piece[4] if piece[3] & 0x20 else 0) :]
        if is_first:  # the header of the packet
            content = content[9 + content[8] :] if len(content) > 8 else b""
        parts.append(content)
        found += len(content)
        if found >= size:
            return b"".join(parts)[:size], start + PIECE_BYTES
    return b"", 0
