"""A decoder that costs nothing, for measurements of all the rest. It imports what the decode process has anyway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from pipeline.decode.info import VideoInfo
from pipeline.decode.pixels import stack
from pipeline.decode.timeline import Timeline


class StillVideo:
    """A video that shows one picture, 224×126, in all frames."""

    picture = np.random.default_rng(0).integers(0, 255, (126, 224, 3), np.uint8)

    def __init__(self, data: bytes, known: VideoInfo | None) -> None:
        del data
        assert known is not None
        self.info, self.timeline = known, Timeline.uniform(known)

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`."""
        del size
        return stack([self.picture] * len(indices))

    def __enter__(self) -> StillVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
