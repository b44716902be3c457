"""Memory of a batch's frames that is used again instead of returned to the kernel."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
from numpy.typing import DTypeLike, NDArray

NUM_KEPT = 3
"""Free pieces of memory that are kept: as many as batches exist at a time, in the step, prefetched and being made."""


class RecycledArrays:
    """Allocate arrays in memory that is free again once no array, view or tensor refers to it.

    The kernel clears fresh memory of this size page by page, and a step waits for hundreds of milliseconds where huge
    pages must be compacted first. Safe in several threads.
    """

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque(maxlen=NUM_KEPT)

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """Return an array with arbitrary contents, as `numpy.empty` does."""
        if not (num_bytes := math.prod(shape) * np.dtype(dtype).itemsize):
            return np.empty(shape, dtype)
        memory = self._take(num_bytes) or np.empty(num_bytes, np.uint8).data
        # the base of its views stays this array, as that of a memoryview: NumPy skips bases that are arrays
        array = np.frombuffer(memory, dtype, math.prod(shape))
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)

    def _take(self, num_bytes: int) -> memoryview | None:
        """Return free memory that is large enough and not above twice as large; smaller or larger memory is dropped."""
        while self._free:
            if num_bytes <= len(memory := self._free.popleft()) <= 2 * num_bytes:
                return memory
        return None
