"""A file too large for memory, as a decode process sees it: it reads blocks, which the worker fetches."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import overload

BLOCK_BYTES, NUM_CACHED = 2**24, 4
"""Size of a block, and number of cached blocks."""


class DistantBytes(io.RawIOBase):
    """A file object for FFmpeg, with the part of the interface of `bytes` that `formats.py` uses."""

    def __init__(self, num_bytes: int, read: Callable[[int, int], bytes]) -> None:
        self._num_bytes, self._read, self._position = num_bytes, read, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return self._num_bytes

    @overload
    def __getitem__(self, part: int) -> int: ...
    @overload
    def __getitem__(self, part: slice) -> bytes: ...
    def __getitem__(self, part: int | slice) -> int | bytes:
        if isinstance(part, int):
            return self[part : part + 1][0]
        start, stop, step = part.indices(self._num_bytes)
        return b"".join(self._parts(start, stop))[::step]

    def __iter__(self) -> Iterator[int]:  # pyright: ignore[reportIncompatibleMethodOverride]  # bytes, not lines
        return (self[place] for place in range(self._num_bytes))

    def find(self, content: bytes, start: int = 0, stop: int | None = None) -> int:
        """Implement `bytes.find`."""
        start, stop, _ = slice(start, stop).indices(self._num_bytes)
        offset = b"".join(self._parts(start, stop)).find(content)
        return offset if offset < 0 else start + offset

    def startswith(self, content: bytes, start: int = 0) -> bool:
        """Implement `bytes.startswith`."""
        return b"".join(self._parts(start, min(start + len(content), self._num_bytes))) == content

    def read(self, size: int = -1, /) -> bytes:
        """Implement `io.RawIOBase.read`."""
        stop = self._num_bytes if size < 0 else min(self._position + size, self._num_bytes)
        start, self._position = self._position, max(stop, self._position)
        return b"".join(self._parts(start, stop))

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Implement `io.RawIOBase.seek`."""
        self._position = offset + (0, self._position, self._num_bytes)[whence]
        return self._position

    def tell(self) -> int:
        """Implement `io.RawIOBase.tell`."""
        return self._position

    def readable(self) -> bool:
        """Implement `io.RawIOBase.readable`."""
        return True

    def seekable(self) -> bool:
        """Implement `io.RawIOBase.seekable`."""
        return True

    def _parts(self, start: int, stop: int) -> list[bytes]:
        numbers = range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)) if start < stop else ()
        return [
            self._block(number)[max(0, start - number * BLOCK_BYTES) : stop - number * BLOCK_BYTES]
            for number in numbers
        ]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * BLOCK_BYTES
            self._blocks[number] = self._read(start, min(start + BLOCK_BYTES, self._num_bytes))
            if len(self._blocks) > NUM_CACHED:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]
