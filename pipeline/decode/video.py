"""Videos by PyAV: the container's index, exact frames, key frames, the H.264 encoder. The only file that imports av.

PyAV is the decoder that is always there: it says what a file holds, and it decodes where another decoder fails.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8
from numpy.typing import NDArray

from pipeline.decode.formats import FORMAT_WHITELIST, container_of
from pipeline.decode.info import VideoInfo, first_line, refuse_other_length
from pipeline.records import DecodeError, Reason

log = logging.getLogger(__name__)

av.logging.set_level(None)

BYTES_ALONE = {"format_whitelist": FORMAT_WHITELIST, "protocol_whitelist": "none"}
"""FFmpeg opens no other demuxer, and nothing but the bytes that it is given."""


@runtime_checkable
class Video(Protocol):
    """What every decoder offers of an opened file. A context manager: decoders keep the whole file in memory."""

    @property
    def info(self) -> VideoInfo: ...

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """The frames at `indices`, RGB, resized to `size` = (width, height).

        Indices count in order of display; they may come in any order and repeat.
        """
        ...

    def __enter__(self) -> Video: ...

    def __exit__(self, *exception: object) -> None: ...


class PyavVideo:
    """The container's index, and frames by seeking to the key frame before each and decoding up to it.

    Frames that the codec marks as damaged are refused, not shown.
    """

    def __init__(self, data: bytes, known: VideoInfo | None = None) -> None:
        with _refusals():
            self._container: InputContainer = av.open(
                io.BytesIO(data), mode="r", format=container_of(data).demuxer, container_options=BYTES_ALONE
            )
            try:
                self._stream = self._video_stream()
                self._pts, self._key_pts = self._index()
                self.info, self._quarter_turns = self._read_info()
                refuse_other_length(self.info.num_frames, known)
            except BaseException:
                self.close()
                raise

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`. DecodeError if one of them does not decode."""
        times = sorted({self._pts[index] for index in indices})
        with _refusals():
            images = {frame.pts: self._image(frame, size) for frame in self._decode(times) if not frame.is_corrupt}
        if missing := [pts for pts in times if pts not in images]:
            first = self._pts.index(missing[0])
            detail = f"{len(missing)} of {len(times)} frames do not decode, the first is frame {first}"
            raise DecodeError(Reason.UNREADABLE, detail)
        return np.stack([images[self._pts[index]] for index in indices])

    @property
    def key_frames(self) -> list[int]:
        """Indices of the key frames that are shown, ascending."""
        keys = set(self._key_pts)
        return [index for index, pts in enumerate(self._pts) if pts in keys]

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def __enter__(self) -> PyavVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _video_stream(self) -> av.VideoStream:
        if not self._container.streams.video:
            kinds = ", ".join(sorted({str(stream.type) for stream in self._container.streams})) or "nothing"
            raise DecodeError(Reason.NO_VIDEO_STREAM, f"the file holds {kinds}, no video")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            raise DecodeError(Reason.UNSUPPORTED_CODEC, "FFmpeg has no decoder for the video stream")
        stream.thread_count = 1
        return stream

    def _index(self) -> tuple[list[int], list[int]]:
        """Presentation times of the shown frames and of the key frames, both ascending, in units of the stream."""
        shown, keys = [], []
        for packet in self._container.demux(self._stream):
            if packet.size and packet.pts is not None:
                keys += [packet.pts] * packet.is_keyframe
                shown += [packet.pts] * (not packet.is_discard)
        if not shown:
            raise DecodeError(Reason.NO_FRAMES, "the video stream has no frames")
        return sorted(shown), sorted(keys)

    def _read_info(self) -> tuple[VideoInfo, int]:
        """The info, and the counter-clockwise quarter turns to the upright picture, which only a frame knows."""
        frame = next(iter(self._decode(self._first_pts())), None)
        if frame is None:
            raise DecodeError(Reason.UNREADABLE, "the first frame does not decode")
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if not rate:
            raise DecodeError(Reason.UNREADABLE, "the video stream has no frame rate")
        quarter_turns = round(frame.rotation / 90) % 4
        width, height = (frame.height, frame.width) if quarter_turns % 2 else (frame.width, frame.height)
        num_frames = len(self._pts)
        info = VideoInfo(
            num_frames=num_frames, fps=rate, width=width, height=height, duration_seconds=num_frames / rate
        )
        return info, quarter_turns

    def _first_pts(self) -> list[int]:
        """Presentation time of the frame that tells size and rotation."""
        return self._pts[:1]

    def _decode(self, times: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames at the presentation `times` (ascending); those that do not decode are left out."""
        for key_pts, group in itertools.groupby(times, key=self._key_before):
            left = list(group)
            self._container.seek(key_pts, stream=self._stream, backward=True)
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    continue
                if frame.pts in left:
                    yield frame
                left = [pts for pts in left if pts > frame.pts]
                if not left:
                    break

    def _key_before(self, pts: int) -> int:
        """Presentation time of the last key frame at or before `pts`."""
        return self._key_pts[max(0, bisect_right(self._key_pts, pts) - 1)] if self._key_pts else pts

    def _image(self, frame: av.VideoFrame, size: tuple[int, int] | None) -> UInt8[np.ndarray, "H W 3"]:
        width, height = size or (self.info.width, self.info.height)
        if self._quarter_turns % 2:
            width, height = height, width
        image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
        return np.rot90(image, self._quarter_turns)


class KeyFrameVideo(PyavVideo):
    """Key frames, each decoded from its own packet: no other packet reaches the decoder."""

    def _first_pts(self) -> list[int]:
        return [self._pts[index] for index in self.key_frames[:1]]

    def _decode(self, times: list[int]) -> Iterator[av.VideoFrame]:
        for pts in times:
            self._container.seek(pts, stream=self._stream, backward=True)
            packet = next((packet for packet in self._container.demux(self._stream) if packet.pts == pts), None)
            if packet is not None:
                yield from self._stream.decode(packet)
                yield from self._stream.decode(None)  # the next seek makes the decoder ready again


@dataclass(frozen=True, kw_only=True)
class FastDecoder:
    """A decoder that gives frames by their index and resizes them itself; PyAV does all the rest.

    Called as `decoder(data, known)`, it opens a video.
    """

    name: str
    read: Callable[[bytes, VideoInfo, Sequence[int], tuple[int, int]], NDArray[np.uint8] | None]
    """`read(data, info, indices, (width, height))`: frames (T, H, W, 3), RGB; None where the decoder counts other
    frames than the container (edit lists: the same number would name another frame)."""
    errors: tuple[type[Exception], ...] = (RuntimeError, ValueError, AssertionError)
    """What `read` raises when it gives up."""
    check: Callable[[], None] | None = None
    """Raises ValueError with the remedy where the library loads and cannot be used."""

    def __call__(self, data: bytes, known: VideoInfo | None = None) -> FastVideo:
        return FastVideo(self, data, known)


class FastVideo:
    """Frames by a `FastDecoder`, or by PyAV, which gives the verdict, where that one gives up.

    On a busy machine decord gives up on good files. The container is indexed only where nothing is known of it.
    """

    def __init__(self, decoder: FastDecoder, data: bytes, known: VideoInfo | None = None) -> None:
        self._decoder, self._data = decoder, data
        self._pyav = PyavVideo(data) if known is None else None
        self.info = known or self._indexed().info

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`."""
        size = size or (self.info.width, self.info.height)
        try:
            frames = self._decoder.read(self._data, self.info, indices, size)
        except self._decoder.errors as error:
            log.info("%s gave up, PyAV decodes this clip: %s", self._decoder.name, first_line(error))
            frames = None
        return self._indexed().frames(indices, size) if frames is None else frames

    def _indexed(self) -> PyavVideo:
        if self._pyav is None:
            self._pyav = PyavVideo(self._data, self.info)
        return self._pyav

    def __enter__(self) -> FastVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pyav is not None:
            self._pyav.close()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn FFmpeg's refusal of a file into DecodeError."""
    try:
        yield
    except (FFmpegError, ValueError) as error:
        match error:
            case av.error.DecoderNotFoundError() | av.error.PatchWelcomeError():
                reason = Reason.UNSUPPORTED_CODEC
            case av.error.MemoryError():
                reason = Reason.OUT_OF_MEMORY
            case _:
                reason = Reason.UNREADABLE
        raise DecodeError(reason, first_line(error)) from error


def encode_video(frames: NDArray[np.uint8], *, fps: int, crf: int = 23, gop: int = 250) -> bytes:
    """Return `frames` (T, H, W, 3) RGB as the bytes of an H.264 MP4; H and W must be even (4:2:0 chroma)."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 4:2:0 needs an even height and width, got {height}×{width}")
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "g": str(gop), "preset": "veryfast", "threads": "1"}
        stream.options |= {"x264-params": "mbtree=0"}  # with it the same frames gave other bytes, on CPUs with AVX-512
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
