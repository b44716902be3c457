"""A decoded frame as the picture that a viewer sees: in RGB, on its ground, upright, resized by the one filter."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode.images import GROUND, resize
from pipeline.records import DecodeError, Reason

IN_RGB = int(Interpolation.BICUBIC)
FILTER = IN_RGB | int(Interpolation.ACCURATE_RND)
"""The one filter of all decoders: frames in RGB at their own size, then bicubic over the area that a pixel covers.
`images.resize` is the same."""
REC_601 = 5
AS_COLOUR_SPACE = {space: space for space in (0, 1, 2, 4, 5, 6, 7, 9)} | {10: 9}
"""Numbers of `AVColorSpace` → that which libswscale converts from; all others are read as Rec. 601."""
LEAST_SIDE_PX = 64
"""libswscale's filter is another one at the edges, which is most of a smaller picture."""
TWO_LEVELS = ("monob", "monow")
"""Formats whose greys are dots of black and white, of which libswscale's filter makes other greys."""
UPRIGHT = np.eye(2, dtype=np.int64)


class Picture:
    """Makes pictures of frames, of one video: tables of its formats and sizes are kept. `matrix`: how all of them are
    turned, as `orientation` says; None where the first tells."""

    def __init__(self, matrix: NDArray[np.int64] | None = None) -> None:
        self._to_rgb, self._to_size, self._matrix = VideoReformatter(), VideoReformatter(), matrix
        self._is_told_by_frames = False

    def of(self, frame: av.VideoFrame, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Return a frame upright, in RGB, of `size` = (width, height). DecodeError if others are turned differently.

        H.264 and HEVC may name a turn at key frames alone, which FFmpeg does not keep for the frames that follow.
        """
        if self._matrix is None:
            self._matrix, self._is_told_by_frames = orientation(frame), True
        elif self._is_told_by_frames and not np.array_equal(self._matrix, orientation(frame)):
            detail = "only some frames name how they are turned: encode the video anew, with ffmpeg -i IN OUT.mp4"
            raise DecodeError(Reason.UNSUPPORTED_CODEC, detail)
        matrix = self._matrix
        width, height = size[::-1] if matrix[0, 1] else size
        image = in_rgb(frame, self._to_rgb)
        if min(image.width, image.height) <= LEAST_SIDE_PX or frame.format.name in TWO_LEVELS:
            return upright(resize(Image.fromarray(image.to_ndarray()), (width, height)), matrix)
        image = self._to_size.reformat(image, width, height, interpolation=FILTER, threads=1)
        return upright(image.to_ndarray(), matrix)


def in_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> av.VideoFrame:
    """Return a frame in RGB, on `images.GROUND` where it is transparent.

    Chroma stands in the middle of its pixels and fields are not told apart, as in the FFmpeg of every other decoder:
    newer ones heed where the stream says that it stands.
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
    on_ground = np.rint(pixels[..., :3] * alpha + np.array(GROUND) * (1 - alpha)).astype(np.uint8)
    return av.VideoFrame.from_ndarray(on_ground, format="rgb24")


def without_marks(frame: av.VideoFrame) -> av.VideoFrame:
    """Return a copy of a frame with nothing but its pixels, colour space and range."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for old, new in zip(frame.planes, copy.planes, strict=True):
        buffer: Any = old
        rows = np.frombuffer(buffer, np.uint8).reshape(-1, old.line_size)[:, : new.line_size]
        new.update(np.pad(rows, ((0, 0), (0, new.line_size - rows.shape[1]))).tobytes())
    copy.color_range = frame.color_range
    copy.colorspace = AS_COLOUR_SPACE.get(int(frame.colorspace), REC_601)
    return copy


def orientation(frame: av.VideoFrame) -> NDArray[np.int64]:
    """Return the signs of the display matrix M, (2, 2): the pixel at (x, y) is shown at M (x, y). A slanted picture is
    left as it is."""
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
