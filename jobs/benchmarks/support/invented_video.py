"""Decoders without a codec, for measurements of everything else. They import only what the decode process has
anyway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from pipeline.decode.info import VideoInfo
from pipeline.decode.pixels import stack
from pipeline.decode.timeline import Timeline


class InventedVideo:
    """A video whose frames repeat the bytes of its file, which may be few, with another offset in each frame."""

    def __init__(self, data: bytes, known: VideoInfo | None) -> None:
        assert known is not None
        self.data, self.info, self.timeline = np.frombuffer(data, np.uint8), known, Timeline.uniform(known)

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Return frames as `Video.frames` does."""
        width, height = size or (self.info.width, self.info.height)
        return stack([np.resize(np.roll(self.data, index), (height, width, 3)) for index in indices])

    def __enter__(self) -> InventedVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class StillVideo(InventedVideo):
    """A video that shows one picture, 224×126, in all frames."""

    picture = np.random.default_rng(0).integers(0, 255, (126, 224, 3), np.uint8)

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Return frames as `Video.frames` does."""
        del size
        return stack([self.picture] * len(indices))
