"""Decode frames with decord, which has wheels for x86-64 Linux only. The only file that imports decord."""

from __future__ import annotations

import io
from collections.abc import Sequence

import decord
import numpy as np
from decord._ffi.base import DECORDLimitReachedError
from jaxtyping import UInt8

from pipeline.decode.fast_video import FastDecoder
from pipeline.decode.info import VideoInfo

decord.logging.set_level(decord.logging.FATAL)

MIN_WIDTH = 192
"""decord 0.6.0 takes `row bytes // width` for the number of channels wherever the padded row is a multiple of the
width. Rows are padded to 32 or 64 bytes, depending on the CPU: with 32, widths 2, 3, 4, 6, 8, 12, 16, 24, 48 and 72
fail. A multiple of 64 is never padded, and from this width on the padding is less than a channel."""


def read_frames(data: bytes, info: VideoInfo, indices: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"] | None:
    """Implement `FastDecoder.read`."""
    if info.width < MIN_WIDTH and info.width % 64:
        return None
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    try:
        if len(reader) != info.num_frames:
            return None
        frames = reader.get_batch(list(indices)).asnumpy()
        reader.seek(0)  # otherwise packets that it has prefetched leak
    finally:
        del reader
    return frames


DECORD = FastDecoder(
    name="decord",
    read=read_frames,
    errors=(decord.DECORDError, DECORDLimitReachedError, RuntimeError, ValueError, AssertionError),
)
