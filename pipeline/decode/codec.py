"""Encoded video and frames. The only file that imports a video decoder or encoder.

    media ──open_video──► info ──sampling──► indices ──frames(indices, size)──► uint8 ──letterbox──► square clip

The container's index (PyAV, headers and packet list only) says what a file holds; a decoder, chosen by name, turns
chosen frames into pixels. Whatever is wrong with a file becomes one exception, `DecodeError`. What a file does to the
process that opens it is the business of `pipeline/decode/isolation.py`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import av
import av.error
import av.logging
import decord
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from decord._ffi.base import DECORDLimitReachedError
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.corpus.media import EncodedFrames, Media
from pipeline.decode.config import Sampling
from pipeline.decode.sampling import SEGMENTS, Policy, choose, sample_window, window
from pipeline.records import DecodeError, Kind, Reason

log = logging.getLogger(__name__)

av.logging.set_level(None)
decord.logging.set_level(decord.logging.FATAL)


PROBE_SIZE_PX = 64
"""Long side of the frames that prove a clip usable: a width that decord needs no detour for."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the container says about the frames, as they are to be shown (rotation applied)."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_seconds: float


def known_info(row: dict[str, Any]) -> VideoInfo:
    """What a row of a manifest says of its video."""
    return VideoInfo(**{field.name: row[field.name] for field in fields(VideoInfo)})


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


class DecodedClip(NamedTuple):
    """`frames` uint8 (T, S, S, 3), RGB, zero where `pad_mask` bool (T, S, S) is True; `num_frames` = T."""

    frames: UInt8[np.ndarray, "T S S 3"]
    pad_mask: Bool[np.ndarray, "T S S"]
    num_frames: int


def decode_clip(data: Media, *, size_px: int, **settings: Any) -> DecodedClip:
    """`decode_frames` in a square of `size_px`: what the aspect ratio leaves free, right or below, is padding."""
    return letterbox(decode_frames(data, size_px=size_px, **settings), size_px)


def decode_frames(
    data: Media,
    *,
    kind: Kind,
    num_frames: int,
    size_px: int,
    sampling: Sampling = SEGMENTS,
    policy: Policy = Policy.MIDDLE,
    rng: np.random.Generator | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    decoder: str = "decord",
    known: VideoInfo | None = None,
    reference: bool = False,
) -> UInt8[np.ndarray, "T H W 3"]:
    """`num_frames` frames of a video, or the one frame of an image, their long side `size_px`.

    Only the sampled frames are converted. `known` is what prepare found of the video: with it the container is not
    indexed a second time, which halves the cost of a short clip. Key frames are always PyAV's work. DecodeError if the
    file gives no such clip.
    """
    if kind == Kind.IMAGE:
        return decode_image(data, size_px)[None]
    with open_video(data, "key-frames" if sampling.rule == "key_frames" else decoder, known) as video:
        indices = clip_indices(
            video.info,
            num_frames=num_frames,
            sampling=sampling,
            policy=policy,
            rng=rng,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            key_frames=video.key_frames if isinstance(video, KeyFrameVideo | ImagesVideo) else (),
            reference=reference,
        )
        return video.frames(indices, fit_long_side(video.info.width, video.info.height, size_px))


def probe(
    data: Media, *, kind: Kind, start_seconds: float | None, end_seconds: float | None, decoder: str
) -> dict[str, Any]:
    """What only the file knows of a clip, by the names of the manifest's columns.

    The first, middle and last frame are decoded, so a clip that passes can be used. DecodeError if it cannot.
    """
    if kind == Kind.IMAGE:
        height, width, _ = decode_image(data).shape
        return {"width": width, "height": height, "num_frames": 1}
    with open_video(data, decoder) as video:
        info = video.info
        indices = window_indices(info, start_seconds, end_seconds)
        needed = sorted({indices[0], indices[len(indices) // 2], indices[-1]})
        video.frames(needed, fit_long_side(info.width, info.height, PROBE_SIZE_PX))
    return asdict(info)


def time_decoding(data: Media, **settings: Any) -> dict[str, float]:
    """Seconds, and CPU seconds over all threads, of `decode_frames`."""
    wall, cpu = time.perf_counter(), time.process_time()
    decode_frames(data, **settings)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def clip_indices(
    info: VideoInfo,
    *,
    num_frames: int,
    sampling: Sampling = SEGMENTS,
    policy: Policy = Policy.MIDDLE,
    rng: np.random.Generator | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    key_frames: Sequence[int] = (),
    reference: bool = False,
) -> list[int]:
    """Frame indices of a clip; `reference` knows segments only.

    DecodeError: out_of_range if it starts after the end of the video, no_frames if key frames are asked for and none
    of `key_frames` lies in it.
    """
    if reference and not (start_seconds is None and end_seconds is None):
        start = start_seconds or 0.0
        return sample_window(
            num_frames,
            info.num_frames,
            policy,
            fps=info.fps,
            start_seconds=start,
            end_seconds=start + info.duration_seconds if end_seconds is None else end_seconds,
            rng=rng,
            reference=True,
        )
    frames: Sequence[int] = window_indices(info, start_seconds, end_seconds)
    if sampling.rule == "key_frames":
        frames = [index for index in key_frames if index in frames]
        if not frames:
            raise DecodeError(Reason.NO_FRAMES, "no key frame lies in the clip: choose another data.sampling.rule")
    chosen = choose(sampling, num_frames, len(frames), policy, fps=info.fps, rng=rng, reference=reference)
    return [frames[index] for index in chosen]


def window_indices(info: VideoInfo, start_seconds: float | None, end_seconds: float | None) -> range:
    """All frames of a window, cut to the video; None: from the start, to the end. DecodeError if it starts later."""
    first = int((start_seconds or 0.0) * info.fps)
    if first >= info.num_frames:
        detail = f"the clip starts at {start_seconds} s, the video ends at {info.duration_seconds:.3f} s"
        raise DecodeError(Reason.OUT_OF_RANGE, detail)
    if end_seconds is None:
        return range(first, info.num_frames)
    _, stop = window(fps=info.fps, start_seconds=start_seconds or 0.0, end_seconds=end_seconds)
    return range(first, min(stop, info.num_frames))


def fit_long_side(width: int, height: int, size_px: int) -> tuple[int, int]:
    """(width, height) with the same aspect ratio and a long side of `size_px`."""
    scale = size_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def letterbox(frames: UInt8[np.ndarray, "T H W 3"], size_px: int) -> DecodedClip:
    """`frames` in the upper left corner of a square of `size_px`, zeros elsewhere."""
    num_frames, height, width = frames.shape[:3]
    square = np.zeros((num_frames, size_px, size_px, 3), np.uint8)
    square[:, :height, :width] = frames
    pad_mask = np.ones((num_frames, size_px, size_px), bool)
    pad_mask[:, :height, :width] = False
    return DecodedClip(square, pad_mask, num_frames)


def decode_image(data: Media, size_px: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """A JPEG or PNG as RGB, turned as its EXIF tag says; long side `size_px` if given."""
    image = _open_image(data.images[0] if isinstance(data, EncodedFrames) else data)
    if size_px is not None:
        image = image.resize(fit_long_side(*image.size, size_px), Image.Resampling.BICUBIC)
    return np.array(image)


def _open_image(data: bytes) -> Image.Image:
    if not data:
        raise DecodeError(Reason.EMPTY, "the file has no bytes")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cut = isinstance(error, OSError) and "truncated" in str(error)
        raise DecodeError(Reason.TRUNCATED if cut else Reason.UNREADABLE, _first_line(error)) from error


def open_video(data: Media, decoder: str = "decord", known: VideoInfo | None = None) -> Video:
    """An opened video, a context manager. DecodeError says why a file is none; an unusable decoder is refused."""
    make = KeyFrameVideo if decoder == "key-frames" else DECODERS[usable(decoder)]
    if isinstance(data, EncodedFrames):
        return ImagesVideo(data, known)
    refuse_damaged_container(data)
    return make(data, known)


def refuse_damaged_container(data: bytes) -> None:
    """Nothing, if an MP4, AVI or Matroska file is as long as it announces; otherwise DecodeError.

    Decoders do not notice: they repeat the last frame they have, or try again for minutes.
    """
    if not data:
        raise DecodeError(Reason.EMPTY, "the file has no bytes")
    if data[4:8] == b"ftyp":
        announced = _mp4_length(data)
    elif data[:4] == b"RIFF":
        announced = 8 + int.from_bytes(data[4:8], "little")
    elif data[:4] == b"\x1a\x45\xdf\xa3":
        announced = _matroska_length(data)
    else:
        announced = 0
    if announced > len(data):
        raise DecodeError(
            Reason.TRUNCATED, f"the file has {len(data)} bytes, {announced - len(data)} fewer than it announces"
        )


def _mp4_length(data: bytes) -> int:
    """End of the last outer box."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a 64-bit size follows the type
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0: to the end of the file; otherwise bytes of another kind, which players ignore
            return len(data)
        position += size
    return position


def _matroska_length(data: bytes) -> int:
    """End of the first segment; 0 if it was written as a stream, without a length."""
    header_size, position = _ebml_size(data, 4)
    segment_size, first = _ebml_size(data, position + (header_size or 0) + 4)
    return 0 if segment_size is None else first + segment_size


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """The variable-length size at `position` (None: unknown) and the position after it."""
    if position >= len(data) or not data[position]:
        return None, position
    length = 9 - data[position].bit_length()
    size = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return None if size == (1 << 7 * length) - 1 else size, position + length


class PyavVideo:
    """The container's index, and frames by seeking to the key frame before each and decoding up to it.

    Frames that the codec marks as damaged are refused, not shown.
    """

    _opened: InputContainer | None = None

    def __init__(self, data: bytes, known: VideoInfo | None = None) -> None:
        self._data = data
        self._index_container()
        refuse_other_length(self.info, known)

    def _index_container(self) -> None:
        data = self._data
        try:
            self._opened = av.open(io.BytesIO(data), mode="r")
        except (FFmpegError, ValueError) as error:
            raise _refused(error) from error
        try:
            self._stream = self._video_stream()
            self._pts, self._key_pts = self._index()
            self.info, self._quarter_turns = self._read_info()
        except (FFmpegError, ValueError) as error:
            self.close()
            raise _refused(error) from error
        except DecodeError:
            self.close()
            raise

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`. DecodeError if one of them does not decode."""
        wanted = sorted({self._pts[index] for index in indices})
        try:
            images = {frame.pts: self._image(frame, size) for frame in self._decode(wanted) if not frame.is_corrupt}
        except (FFmpegError, ValueError) as error:
            raise _refused(error) from error
        if len(images) < len(wanted):
            first = self._pts.index(next(pts for pts in wanted if pts not in images))
            missing = len(wanted) - len(images)
            raise DecodeError(
                Reason.UNREADABLE, f"{missing} of {len(wanted)} frames do not decode, the first is frame {first}"
            )
        return np.stack([images[self._pts[index]] for index in indices])

    @property
    def _container(self) -> InputContainer:
        assert self._opened is not None, "the container is indexed before it is read"
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

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

    def _decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """The frames at the presentation times `wanted` (ascending); those that do not decode are left out."""
        for key_pts, group in itertools.groupby(wanted, key=self._key_before):
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

    @property
    def key_frames(self) -> list[int]:
        """Indices of the key frames that are shown, ascending."""
        keys = set(self._key_pts)
        return [index for index, pts in enumerate(self._pts) if pts in keys]

    def _first_pts(self) -> list[int]:
        return [self._pts[index] for index in self.key_frames[:1]]

    def _decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        for pts in wanted:
            self._container.seek(pts, stream=self._stream, backward=True)
            packet = next((one for one in self._container.demux(self._stream) if one.pts == pts), None)
            if packet is not None:
                yield from self._stream.decode(packet)
                yield from self._stream.decode(None)  # the next seek makes the decoder ready again


class FastVideo(PyavVideo):
    """Frames by another decoder, which resizes them itself.

    PyAV decodes instead, and gives the verdict, where the decoder's index differs from the container's (edit lists: the
    same number would name another frame) and where it fails: on a busy machine decord gives up on good files.
    """

    def __init__(self, data: bytes, known: VideoInfo | None = None) -> None:
        if known is None:
            super().__init__(data)
        else:
            self._data, self.info = data, known

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`."""
        size = size or (self.info.width, self.info.height)
        try:
            frames = self._fast_frames(indices, size)
        except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, ValueError, AssertionError) as error:
            log.info("%s gave up, PyAV decodes this clip: %s", type(self).__name__, _first_line(error))
            frames = None
        if frames is not None:
            return frames
        if self._opened is None:
            known = self.info
            self._index_container()
            refuse_other_length(self.info, known)
        return super().frames(indices, size)

    def _fast_frames(self, indices: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"] | None:
        """The frames; None if the decoder counts other frames than the container."""
        raise NotImplementedError


class DecordVideo(FastVideo):
    """Frames by decord."""

    def _fast_frames(self, indices: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"] | None:
        width, height = size
        asked_width = decord_width(width)
        reader = decord.VideoReader(io.BytesIO(self._data), num_threads=1, width=asked_width, height=height)
        try:
            if len(reader) != self.info.num_frames:
                return None
            frames = reader.get_batch(list(indices)).asnumpy()
            reader.seek(0)  # otherwise the packets it has read ahead stay in memory
        finally:
            del reader
        return frames if asked_width == width else _resize(frames, size)


class ImagesVideo:
    """A video that is kept as images. Without better knowledge they are one second apart."""

    def __init__(self, data: EncodedFrames, known: VideoInfo | None = None) -> None:
        self._images = data.images
        self.key_frames = list(range(len(data.images)))
        self.info = known or self._look()
        if len(self._images) != self.info.num_frames:
            detail = (
                f"{len(self._images)} images, but the manifest says {self.info.num_frames}: prepare the corpus again"
            )
            raise DecodeError(Reason.UNREADABLE, detail)

    def _look(self) -> VideoInfo:
        width, height = _open_image(self._images[0]).size
        length = len(self._images)
        return VideoInfo(num_frames=length, fps=1.0, width=width, height=height, duration_seconds=float(length))

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Video.frames`."""
        size = size or (self.info.width, self.info.height)
        images = {index: self._image(index, size) for index in set(indices)}
        return np.stack([images[index] for index in indices])

    def _image(self, index: int, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        image = _open_image(self._images[index])
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))

    def __enter__(self) -> ImagesVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class TorchcodecVideo(FastVideo):
    """Frames by torchcodec, with the FFmpeg of the system. It resizes bilinearly, the others bicubically."""

    def _fast_frames(self, indices: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"] | None:
        decoders, transforms = _torchcodec()
        resize = transforms.Resize((size[1], size[0]))
        decoder = decoders.VideoDecoder(self._data, dimension_order="NHWC", transforms=[resize])
        if len(decoder) != self.info.num_frames:
            return None
        return decoder.get_frames_at(list(indices)).data.numpy()


class TorchcodecCudaVideo(FastVideo):
    """Frames by torchcodec on the video unit of a GPU."""

    def _fast_frames(self, indices: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W 3"] | None:
        decoder = _torchcodec()[0].VideoDecoder(self._data, device="cuda")
        if len(decoder) != self.info.num_frames:
            return None
        frames = decoder.get_frames_at(list(indices)).data.float()
        resized = _torch().nn.functional.interpolate(frames, size=(size[1], size[0]), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def refuse_other_length(info: VideoInfo, known: VideoInfo | None) -> None:
    """DecodeError if the file is not the one that was looked at before."""
    if known is not None and info.num_frames != known.num_frames:
        detail = f"{info.num_frames} frames, but the manifest says {known.num_frames}: prepare the corpus again"
        raise DecodeError(Reason.UNREADABLE, detail)


DECODERS: dict[str, Callable[[bytes, VideoInfo | None], Video]] = {
    "decord": DecordVideo,
    "pyav": PyavVideo,
    "torchcodec": TorchcodecVideo,
    "torchcodec-cuda": TorchcodecCudaVideo,
}


@functools.cache
def usable(decoder: str) -> str:
    """`decoder`; ValueError with the remedy if there is none of this name or if it does not load on this machine."""
    if decoder not in DECODERS:
        raise ValueError(f"there is no decoder {decoder!r}; choose one of {', '.join(DECODERS)}")
    if decoder.startswith("torchcodec"):
        try:
            _torchcodec()
        except ModuleNotFoundError as error:
            raise ValueError(f"the decoder {decoder} needs a package: pip install 'torchcodec>=0.13'") from error
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                f"the decoder {decoder} does not load: torchcodec needs the FFmpeg libraries of the system, 4 to 8 "
                f"(apt-get install ffmpeg), and the torch it was built for ({_first_line(error)})"
            ) from error
    if decoder == "torchcodec-cuda" and not _torch().cuda.is_available():
        raise ValueError("the decoder torchcodec-cuda needs a GPU, and this machine has none: choose torchcodec")
    return decoder


def usable_decoders() -> list[str]:
    """The decoders that load on this machine."""
    found = []
    for decoder in DECODERS:
        with contextlib.suppress(ValueError):
            found.append(usable(decoder))
    return found


def _torch() -> Any:
    """Only what needs it waits the two seconds that it takes to import."""
    import torch

    return torch


def _torchcodec() -> tuple[Any, Any]:
    """The optional package's decoders and transforms."""
    from torchcodec import decoders, transforms  # pyright: ignore[reportMissingImports]

    return decoders, transforms


_DECORD_PREFIX = re.compile(r"\[[0-9:]+\] \S+\.cc:[0-9]+: ")  # time and line: equal failures give equal details


def decord_width(width: int) -> int:
    """The width to ask decord 0.6.0 for, at least `width`: itself, or the next multiple of 64.

    decord takes `row bytes // width` for the number of channels wherever the padded row is a multiple of the width.
    Rows are padded to 32 or 64 bytes, depending on the CPU: with 32, widths 2, 3, 4, 6, 8, 12, 16, 24, 48 and 72 fail.
    A multiple of 64 is never padded, and from 192 on the padding is less than a channel.
    """
    return width if width >= 192 else -(-width // 64) * 64


def _resize(frames: UInt8[np.ndarray, "T H W1 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T H W2 3"]:
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def _refused(error: FFmpegError | ValueError) -> DecodeError:
    """What FFmpeg's refusal of a file is called here."""
    match error:
        case av.error.DecoderNotFoundError() | av.error.PatchWelcomeError():
            reason = Reason.UNSUPPORTED_CODEC
        case av.error.MemoryError():
            reason = Reason.OUT_OF_MEMORY
        case _:
            reason = Reason.UNREADABLE
    return DecodeError(reason, _first_line(error))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _DECORD_PREFIX.sub("", line)[:300]


def encode_image(frame: UInt8[np.ndarray, "H W 3"], *, quality: int) -> bytes:
    """A frame as a JPEG. `quality` in [1, 95]."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


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
        stream.options |= {"x264-params": "mbtree=0"}  # with it the same frames gave other bytes, on CPUs with AVX-512
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
