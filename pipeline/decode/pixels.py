"""Concatenated pixels of clips, in memory that a worker shares with its decode processes.

    decode process: `stack(images)` ──► memfd ──► `PixelBuffer.memory`, the single data buffer of a column: worker

Its size is sealed: a compromised decode process can neither truncate it under the worker nor fill the machine with it.
Without memfd, pixels come through the channel of `isolation.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from pipeline.records import DecodeError, Reason

REUSABLE_BYTES = 32 * 2**20
"""Buffers up to this size are reused: page faults of fresh memory cost as much as the rest of a clip's transfer."""
MAX_IDLE = 2
_SLOT = struct.Struct("QQ")
_idle: list[int] = []
"""Memfds that wait for reuse."""


class PixelBuffer:
    """The pixels of several clips, `capacity` bytes at most."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self._num_frames, self._size_px = 0, 0
        self._received = bytearray()
        self.fd = _take(capacity) if hasattr(os, "memfd_create") else None

    def expecting(self, num_frames: int, size_px: int) -> PixelBuffer:
        """Set the number of frames and the largest side of the next clip; return this buffer."""
        self._num_frames, self._size_px = num_frames, size_px
        return self

    def encode_slot(self) -> bytes:
        """Encode offset and size of the next clip for the decode process; empty without shared memory."""
        return b"" if self.fd is None else _SLOT.pack(self.used, self._num_frames * self._size_px**2 * 3)

    def add(self, shape: Any, content: bytes) -> tuple[int, int, int, int]:
        """Append a clip of `shape` (T, H, W, 3), whose `content` came through the channel if memory is not shared.

        DecodeError if the shape is wrong: a compromised decode process may send anything.
        """
        is_shape = isinstance(shape, list) and [type(length) for length in shape] == [int] * 4
        num_frames, height, width, channels = shape if is_shape else (0, 0, 0, 0)
        sides = range(1, self._size_px + 1)
        if (num_frames, channels) != (self._num_frames, 3) or height not in sides or width not in sides:
            expected = f"{self._num_frames} frames of at most {self._size_px}×{self._size_px}"
            raise DecodeError(Reason.FAILED, f"the decoder gave something else than {expected}")
        if self.fd is None and len(content) != math.prod(shape):
            raise DecodeError(Reason.FAILED, "the decoder gave fewer pixels than it says")
        self.used += math.prod(shape)
        self._received += content
        return num_frames, height, width, channels

    def renew(self) -> None:
        """Move to new memory, since a killed process may still write to the old one for a while."""
        if self.fd is None:
            return
        fresh = _take(self.capacity)
        if self.used:
            with mmap.mmap(self.fd, self.used, prot=mmap.PROT_READ) as old, mmap.mmap(fresh, self.used) as new:
                new[:] = old
        os.close(self.fd)
        self.fd = fresh

    def memory(self) -> Any:
        """Return the pixels of all clips, as an object with Python's buffer protocol. Its memory is reused once nothing
        refers to it. Nothing can be added afterwards."""
        if self.fd is None or not self.used:
            return self._received
        mapped, fd, self.fd = mmap.mmap(self.fd, self.used, prot=mmap.PROT_READ), self.fd, None
        weakref.finalize(mapped, _give_back, fd, self.capacity).atexit = False
        return mapped

    def __del__(self) -> None:
        if (fd := getattr(self, "fd", None)) is not None:
            _give_back(fd, self.capacity)


def _take(capacity: int) -> int:
    """Return a memfd of at least `capacity` bytes."""
    if capacity <= REUSABLE_BYTES:
        with contextlib.suppress(IndexError):
            return _idle.pop()
    fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, max(capacity, REUSABLE_BYTES))  # pages are allocated only when they are written
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _give_back(fd: int, capacity: int) -> None:
    if capacity <= REUSABLE_BYTES and len(_idle) < MAX_IDLE:
        _idle.append(fd)
    else:
        os.close(fd)


class SharedSlot:
    """The place for a clip in the shared memory, in the decode process."""

    def __init__(self, fd: int, place: bytes) -> None:
        self._fd, (self._start, self._size) = fd, _SLOT.unpack(place)
        self.frames: NDArray[np.uint8] | None = None
        """Frames written there; None: none yet."""

    def write(self, images: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """Write images of equal shape there; return them as an array of that memory. ValueError if they do not fit."""
        shape, num_bytes = (len(images), *images[0].shape), images[0].nbytes
        if len({(image.dtype.str, image.shape) for image in images}) > 1 or images[0].dtype != np.uint8:
            raise ValueError(f"images of uint8 and one shape were expected, got {images[0].dtype} {shape}")
        if len(images) * num_bytes > self._size:
            raise ValueError(f"frames of shape {shape} do not fit into {self._size} bytes")
        for place, image in enumerate(images):  # writing to a mapping would cost a page fault for each page
            os.pwrite(self._fd, np.ascontiguousarray(image).data, self._start + place * num_bytes)
        skipped = self._start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._fd, skipped + len(images) * num_bytes, offset=self._start - skipped)
        self.frames = np.frombuffer(mapped, np.uint8)[skipped:].reshape(shape)
        return self.frames

    def ensure_written(self, frames: NDArray[Any]) -> None:
        """Write frames there, unless they are already there."""
        if frames is not self.frames:
            self.write([*frames.copy()])

    def close(self) -> None:
        """Close the memory."""
        os.close(self._fd)


_slots: list[SharedSlot] = []
"""The place of the clip that this process decodes, if it shares memory."""


@contextlib.contextmanager
def stacking_into(slot: SharedSlot | None) -> Iterator[None]:
    """Let the first `stack` in this context write its frames to `slot`, if there is one."""
    _slots.extend([slot] if slot else [])
    try:
        yield
    finally:
        _slots.clear()


def stack(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "T H W 3"]:
    """Return `np.stack(images)`, in the shared memory if there is some: the only copy in this process."""
    if _slots and _slots[-1].frames is None:
        return _slots[-1].write(images)
    return np.stack(images)
