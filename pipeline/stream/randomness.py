"""Random numbers of a clip: a function of (seed, epoch, clip, purpose), independent of the number of workers."""

from __future__ import annotations

import hashlib
import struct
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class Purpose(StrEnum):
    """Purposes of a clip's random numbers; each has a separate stream."""

    CAPTION = "caption"
    FRAMES = "frames"
    WINDOW = "window"
    MASKS = "masks"
    WORDS = "words"
    SIZE = "size"
    AUGMENTATION = "augmentation"


class _HashedSeed(ISeedSequence):
    """Seed material that is already well mixed, so that NumPy's own slower mixing is skipped."""

    __slots__ = ("_digest",)

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self._digest, dtype=dtype, count=n_words)


def clip_rng(seed: int, epoch: int, clip_id: int, purpose: Purpose | str) -> np.random.Generator:
    """Return a generator that depends only on the four arguments, and is the same on every machine."""
    message = struct.pack("<qqq", seed, epoch, clip_id) + str(purpose).encode()
    seeded: Any = _HashedSeed(hashlib.blake2b(message, digest_size=32).digest())
    return np.random.Generator(np.random.PCG64(seeded))
