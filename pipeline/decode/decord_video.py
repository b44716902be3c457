"""Frames by decord, which has wheels for x86-64 Linux only. The only file that imports it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import decord
import numpy as np
from decord._ffi.base import DECORDLimitReachedError
from jaxtyping import UInt8
from PIL import Image

from pipeline.decode.images import resize
from pipeline.decode.info import VideoInfo
from pipeline.decode.video import FastDecoder

decord.logging.set_level(decord.logging.FATAL)


def read_frames(
    data: bytes, info: VideoInfo, indices: Sequence[int], size: tuple[int, int]
) -> UInt8[np.ndarray, "T H W 3"] | None:
    """As `FastDecoder.read`."""
    width, height = size
    decoded_width = decord_width(width)
    reader = decord.VideoReader(io.BytesIO(data), num_threads=1, width=decoded_width, height=height)
    try:
        if len(reader) != info.num_frames:
            return None
        frames = reader.get_batch(list(indices)).asnumpy()
        reader.seek(0)  # otherwise the packets it has read ahead stay in memory
    finally:
        del reader
    return frames if decoded_width == width else np.stack([resize(Image.fromarray(frame), size) for frame in frames])


def decord_width(width: int) -> int:
    """Return the width to ask decord 0.6.0 for, at least `width`: itself, or the next multiple of 64.

    decord takes `row bytes // width` for the number of channels wherever the padded row is a multiple of the width.
    Rows are padded to 32 or 64 bytes, depending on the CPU: with 32, widths 2, 3, 4, 6, 8, 12, 16, 24, 48 and 72 fail.
    A multiple of 64 is never padded, and from 192 on the padding is less than a channel.
    """
    return width if width >= 192 else -(-width // 64) * 64


DECORD = FastDecoder(
    name="decord",
    read=read_frames,
    errors=(decord.DECORDError, DECORDLimitReachedError, RuntimeError, ValueError, AssertionError),
)
