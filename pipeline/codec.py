"""Encoded video and frames. The only file that imports a video decoder or encoder."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray


def encode_video(frames: NDArray[np.uint8], *, fps: int, crf: int = 23, gop: int = 250) -> bytes:
    """`frames` (T, H, W, 3) RGB as the bytes of an H.264 MP4; H and W must be even (4:2:0 chroma)."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 4:2:0 needs an even height and width, got {height}×{width}")
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "g": str(gop), "preset": "veryfast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
