"""Convert a decoded frame to the picture that a viewer sees: RGB, opaque, upright, resized by one common filter."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode.images import BACKGROUND, resize
from pipeline.records import DecodeError, Reason

IN_RGB = int(Interpolation.BICUBIC)
FILTER = IN_RGB | int(Interpolation.ACCURATE_RND)
"""The filter of all decoders: conversion to RGB at the original size, then bicubic with antialiasing. `images.resize`
is equivalent."""
REC_601 = 5
AS_COLOUR_SPACE = {space: space for space in (0, 1, 2, 4, 5, 6, 7, 9)} | {10: 9}
"""`AVColorSpace` → the one that libswscale converts from; all others are treated as Rec. 601."""
MAX_PILLOW_SIDE_PX = 64
"""Pictures up to this side are resized by Pillow: libswscale filters edges differently, and they are most of a small
picture."""
BILEVEL_FORMATS = ("monob", "monow")
"""1-bit formats, which dither greys. Pillow resizes them, since libswscale's filter gives other greys."""
UPRIGHT = np.eye(2, dtype=np.int64)


class Picture:
    """Converts the frames of one video, and caches conversion tables for its formats and sizes. `matrix`: orientation
    of all frames, as `orientation` returns it; None: that of the first frame."""

    def __init__(self, matrix: NDArray[np.int64] | None = None) -> None:
        self._to_rgb, self._to_size, self._matrix = VideoReformatter(), VideoReformatter(), matrix
        self._is_matrix_from_frames = False

    def of(self, frame: av.VideoFrame, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Return a frame upright, in RGB, of `size` = (width, height). DecodeError if orientations differ.

        H.264 and HEVC may state the orientation at key frames only, and FFmpeg does not apply it to later frames.
        """
        if self._matrix is None:
            self._matrix, self._is_matrix_from_frames = orientation(frame), True
        elif self._is_matrix_from_frames and not np.array_equal(self._matrix, orientation(frame)):
            detail = "only some frames name how they are turned: encode the video anew, with ffmpeg -i IN OUT.mp4"
            raise DecodeError(Reason.UNSUPPORTED_CODEC, detail)
        matrix = self._matrix
        width, height = size[::-1] if matrix[0, 1] else size
        image = in_rgb(frame, self._to_rgb)
        if min(image.width, image.height) <= MAX_PILLOW_SIDE_PX or frame.format.name in BILEVEL_FORMATS:
            return upright(resize(Image.fromarray(image.to_ndarray()), (width, height)), matrix)
        image = self._to_size.reformat(image, width, height, interpolation=FILTER, threads=1)
        return upright(image.to_ndarray(), matrix)


def in_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> av.VideoFrame:
    """Return a frame in RGB, composited on `images.BACKGROUND` where it is transparent.

    Chroma is taken as centred and interlacing is ignored, as in the FFmpeg versions of the other decoders. Newer
    versions would respect the chroma location that the stream states.
    """
    name, is_fast = frame.format.name, frame.format.name in ("yuv420p", "yuvj420p") and not frame.width % 2
    if name.startswith(("yuv", "p0")) and (
        frame.interlaced_frame or not is_fast or AS_COLOUR_SPACE.get(int(frame.colorspace)) != int(frame.colorspace)
    ):
        frame = without_marks(frame)
    if not any(component.is_alpha for component in frame.format.components):
        return reformatter.reformat(frame, format="rgb24", interpolation=IN_RGB, threads=1)
    pixels = reformatter.reformat(frame, format="rgba", interpolation=IN_RGB, threads=1).to_ndarray()
    alpha = pixels[..., 3:] / 255
    on_ground = np.rint(pixels[..., :3] * alpha + np.array(BACKGROUND) * (1 - alpha)).astype(np.uint8)
    return av.VideoFrame.from_ndarray(on_ground, format="rgb24")


def without_marks(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a copy of a frame with only its pixels, colour space and range."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for old, new in zip(frame.planes, copy.planes, strict=True):
        buffer: Any = old
        rows = np.frombuffer(buffer, np.uint8).reshape(-1, old.line_size)[:, : new.line_size]
        new.update(np.pad(rows, ((0, 0), (0, new.line_size - rows.shape[1]))).tobytes())
    copy.color_range = frame.color_range
    copy.colorspace = AS_COLOUR_SPACE.get(int(frame.colorspace), REC_601)
    return copy


def orientation(frame: av.VideoFrame) -> NDArray[np.int64]:
    """Return the signs of the display matrix M, (2, 2): the pixel at (x, y) is displayed at M (x, y). Rotations that
    are no multiple of 90° are ignored."""
    parts: Any = frame.side_data
    for part in parts:
        if part.type != SideDataType.DISPLAYMATRIX:
            continue
        a, b, _, c, d = np.sign(np.frombuffer(bytes(part), "<i4")[:5])
        matrix = np.array([[a, c], [b, d]], np.int64)
        if abs(np.linalg.det(matrix)) == 1 and np.count_nonzero(matrix) == 2:
            return matrix
    return UPRIGHT


def upright(image: UInt8[np.ndarray, "H W 3"], matrix: NDArray[np.int64]) -> UInt8[np.ndarray, "h w 3"]:
    """Turn and flip an image as `orientation` says."""
    image = image.transpose(1, 0, 2) if matrix[0, 1] else image
    return image[:: matrix[1].sum(), :: matrix[0].sum()]
