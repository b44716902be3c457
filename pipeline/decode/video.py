"""Videos with PyAV: timeline, exact frames, key frames, H.264 encoder. Only this package imports av.

PyAV is always installed: it reads the properties of every file, and decodes the files that another decoder cannot.
"""

from __future__ import annotations

import io
import itertools
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from jaxtyping import UInt8
from numpy.typing import NDArray

from pipeline.decode.formats import FORMAT_WHITELIST, Content, container_of
from pipeline.decode.groups import STRICT, PacketVideo, as_decode_errors
from pipeline.decode.info import VideoInfo, refuse_other_length
from pipeline.decode.pictures import UPRIGHT, Picture, orientation
from pipeline.decode.timeline import Timeline
from pipeline.records import DecodeError, Reason

av.logging.set_level(None)

T = TypeVar("T")

MIN_ASPECT_DEVIATION = 0.01
"""Pixels whose aspect ratio deviates less from 1 count as square: encoders that round a size write 640:639."""
PLAIN_CODECS = ("h264", "vp8", "vp9")
RESTRICTED_INPUT = {"format_whitelist": FORMAT_WHITELIST, "protocol_whitelist": "none", "err_detect": "explode"}
"""Options that keep FFmpeg from other demuxers, from anything but the given bytes, and from damaged headers."""
SKIP_PROBE_FRAMES = {"skip_frame": "all"}
"""Option that keeps FFmpeg from decoding frames on opening, to guess what an MP4 states anyway."""
MAX_PRIMING_SECONDS = 0.1
"""Longest encoder delay: audio before time 0 that players skip: 2112 samples of AAC, 80 ms of Opus."""
UNTIMED = ("avi", "h264", "hevc", "m4v", "mpegvideo", "obu")
"""Demuxers of containers without presentation times."""


@runtime_checkable
class Video(Protocol):
    """Interface of a file opened by any decoder. A context manager, since decoders keep the whole file in memory."""

    @property
    def info(self) -> VideoInfo: ...

    @property
    def timeline(self) -> Timeline: ...

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Return the frames at `indices`, RGB, resized to `size` = (width, height); None: the size of the video.

        Indices count in order of display; they may come in any order and repeat.
        """
        ...

    def __enter__(self) -> Video: ...

    def __exit__(self, *exception: object) -> None: ...


class PyavVideo(PacketVideo):
    """All packets of a file, and the presentation times of its frames."""

    def __init__(self, data: Content, known: VideoInfo | None = None) -> None:
        self._demuxer = container_of(data).demuxer
        with as_decode_errors():
            options = RESTRICTED_INPUT | (SKIP_PROBE_FRAMES if self._demuxer == "mov" else {})
            file: Any = io.BytesIO(data) if isinstance(data, bytes) else data
            container: Any = av.open(file, "r", format=self._demuxer, options=options)
            self._container: InputContainer = container
            try:
                self._stream = video_stream(container)
                self._codec = self._stream.codec_context
                packets = (packet for packet in self._container.demux(self._stream) if packet.size)
                packets = with_player_timing(packets) if self._demuxer == "gif" else packets
                self._packets = [self._stored_packet(packet, data) for packet in packets]
                self._numbers = range(len(self._packets))
                self._packet_pts = self._presentation_times()
                self._keys = places_of_keys(self._packets)
                self._pts = self._displayed_pts()
                refuse_other_length(len(self._pts), known)
                self._picture = Picture()
                self.info = known or self._read_info()
            except BaseException:
                self.close()
                raise

    @cached_property
    def timeline(self) -> Timeline:
        """Return when each frame is on screen, on a clock that starts with the file's first stream, as in a player."""
        unit = float(self._stream.time_base or 1)
        times = np.array(self._pts_on_screen) * unit - self._zero
        last = self._packets[self._packet_pts.index(self._pts[-1])]
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / (rate or 1.0)
        return Timeline(times, float(times[-1] + ((last.duration or 0) * unit or gap)))

    @cached_property
    def _zero(self) -> float:
        """Return the stream time, in seconds, at which a player's clock shows 0."""
        start, first = self._container.start_time, self._pts[0] * float(self._stream.time_base or 1)
        if start is None:
            return first
        return min(0.0, first) if -MAX_PRIMING_SECONDS <= start / 1e6 <= 0 else start / 1e6

    @property
    def key_frames(self) -> list[int]:
        """Return the indices of the displayed key frames, ascending."""
        keys = {self._packet_pts[place] for place in self._keys}
        return [index for index, pts in enumerate(self._pts) if pts in keys]

    @property
    def codec(self) -> str:
        """Return FFmpeg's name of the decoder."""
        return self._codec.name

    def close(self) -> None:
        """Close the container."""
        self._container.close()

    def __enter__(self) -> PyavVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @cached_property
    def is_plain(self) -> bool:
        """Return whether a decoder that addresses frames by number gives the same ones: MP4 or Matroska without edit
        list, with closed groups and upright square 8-bit pixels."""
        starts = [self._packet_pts[self._keys[bisect_right(self._keys, place) - 1]] for place in range(len(self._pts))]
        is_closed = all(map(operator.ge, self._packet_pts, starts))
        return (
            self._demuxer in ("mov", "matroska")
            and self._codec.name in PLAIN_CODECS
            and (self._codec.pix_fmt, self._codec.color_range) in (("yuv420p", 0), ("yuv420p", 1))
            and len(self._pts) == len(self._packets)
            and self._pts[0] == 0
            and is_closed
            and self._first_frame[1] == (self.info.width, self.info.height)
            and bool((self._first_frame[0] == UPRIGHT).all())
        )

    def _stored_packet(self, packet: Packet, data: Content) -> Any:
        """Return what to store of a packet: itself, or an object with the same attributes."""
        return packet

    def _displayed_pts(self) -> list[int]:
        """Return the presentation times of the displayed frames, ascending, in units of the stream.

        Frames that an edit list removes, or that precede the first key frame in the file or in time, are not displayed.
        """
        if not self._keys:
            raise DecodeError(
                Reason.NO_FRAMES,
                "the video stream has no key frame" if self._packets else "the video stream has no frames",
            )
        first = self._keys[0]
        shown = {
            pts
            for packet, pts in [*self._timed_packets][first:]
            if not packet.is_discard and not self._is_invisible(packet)
            if pts >= self._packet_pts[first] or self._lacks_presentation_times
        }
        if not shown:
            raise DecodeError(Reason.NO_FRAMES, "the video stream has no frames")
        return sorted(shown)

    def _presentation_times(self) -> list[int]:
        """Return the presentation time of each packet. A raw stream has none, so its frames are spaced by its rate. In
        AVI the decoding time is used: FFmpeg's guess is wrong if a packet holds two frames."""
        rate, unit = self._stream.guessed_rate or self._stream.average_rate or 25, self._stream.time_base or 1
        times = []
        for place, packet in enumerate(self._packets):
            if packet.pts is None or (self._demuxer == "avi" and packet.dts is not None):
                packet.pts = round(place / (rate * unit)) if packet.dts is None else packet.dts
            times.append(packet.pts)
        return times

    def _is_invisible(self, packet: Any) -> bool:
        """Return whether a packet is a VP8 frame that is only a reference. In other codecs, such a frame shares a
        packet with a displayed one."""
        return self._codec.name == "vp8" and not bytes(packet)[0] & 0x10

    @cached_property
    def _lacks_presentation_times(self) -> bool:
        """Return whether times only count packets in decoding order, as in AVI, and in MXF as FFmpeg reads it."""
        return bool(self._codec.has_b_frames) and self._demuxer in (*UNTIMED, "mxf") and self._has_one_lag

    @cached_property
    def _is_counted(self) -> bool:
        return self._demuxer in UNTIMED and self._has_one_lag

    @cached_property
    def _has_one_lag(self) -> bool:
        return len({None if packet.dts is None else pts - packet.dts for packet, pts in self._timed_packets}) == 1

    @property
    def _timed_packets(self) -> Iterator[tuple[Any, int]]:
        return zip(self._packets, self._packet_pts, strict=True)

    @cached_property
    def _pts_on_screen(self) -> list[int]:
        """Return when each frame is on screen, in units of the stream: at the time of its packet, unless times only
        count packets. Then FFmpeg shows a frame when the decoder outputs it, at the time of the last packet read."""
        first = self._packets[0]
        if not self._is_counted or first.dts is None:
            return [*self._pts]
        lag = first.dts - self._packet_pts[0]
        shown = [pts + lag for pts in self._pts]
        if self._lacks_presentation_times:
            self._codec.flush_buffers()
            delay = next(count for count, packet in enumerate([*self._packets, None]) if self._codec.decode(packet))
            step = min(map(operator.sub, shown[1:], shown), default=1)
            shown = shown[delay:] + [shown[-1] + number * step for number in range(1, delay + 1)]
        return shown

    @cached_property
    def _first_frame(self) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Return orientation and (width, height) of a frame, which only a decoded frame has."""
        _, frame = next(self._decode({self._first_pts()}, lambda frame: frame))
        return orientation(frame), (frame.width, frame.height)

    def _read_info(self) -> VideoInfo:
        matrix, (width, height) = self._first_frame
        aspect = float(self._stream.sample_aspect_ratio or self._codec.sample_aspect_ratio or 1)
        if abs(aspect - 1) > MIN_ASPECT_DEVIATION:
            width = max(1, round(width * aspect))
        timeline, num_frames = self.timeline, len(self._pts)
        rate, first = float(self._stream.average_rate or self._stream.guessed_rate or 0), float(timeline.times[0])
        fps, end = timeline.fps, timeline.end
        if rate and abs(num_frames / rate - (end - first)) < 0.5 / rate:  # constant: as the file states
            fps, end = rate, first + num_frames / rate
        if matrix[0, 1]:
            width, height = height, width
        return VideoInfo(num_frames=num_frames, fps=fps, width=width, height=height, duration_seconds=end)

    def _first_pts(self) -> int:
        """Return the time of the frame from which size and orientation are read."""
        return self._pts[0]

    def _decode(self, times: set[int], keep: Callable[[av.VideoFrame], T]) -> Iterator[tuple[int, T]]:
        return (self._decode_in_order if self._lacks_presentation_times else super()._decode)(times, keep)

    def _decode_in_order(self, times: set[int], keep: Callable[[av.VideoFrame], T]) -> Iterator[tuple[int, T]]:
        """Do what `_decode` does, for files in which only the order of the decoded frames determines their times."""
        remaining = {self._pts.index(pts) for pts in times}
        self._codec.flush_buffers()
        self._codec.skip_frame = "DEFAULT"
        count = 0
        for packet in [*self._packets[self._keys[0] :], None]:
            for frame in self._codec.decode(packet):
                if count in remaining and not frame.is_corrupt:
                    remaining.remove(count)
                    yield self._pts[count], keep(frame)
                count += 1
            if not remaining:
                return
        raise DecodeError(Reason.UNREADABLE, f"frame {min(remaining)} does not decode")


def places_of_keys(packets: Sequence[Any]) -> list[int]:
    """Return the positions of the packets at which decoding can begin. If some carry a palette, only those: a palette
    also applies to later packets."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    keyed = [packets[place] for place in keys]
    with_palette = [isinstance(packet, Packet) and packet.has_sidedata("palette") for packet in keyed]
    return [*itertools.compress(keys, with_palette)] or keys


def video_stream(container: InputContainer) -> av.VideoStream:
    """Return the first video stream that is not cover art, set to one thread and to treat damage as an error."""
    streams = [video for video in container.streams.video if not video.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {"a cover" if stream.type == "video" else stream.type for stream in container.streams}
        raise DecodeError(Reason.NO_VIDEO_STREAM, f"the file holds {', '.join(sorted(kinds)) or 'nothing'}, no video")
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(Reason.UNSUPPORTED_CODEC, "FFmpeg has no decoder for the video stream")
    stream.thread_count = 1
    stream.codec_context.options = STRICT
    return stream


def with_player_timing(packets: Iterable[Packet]) -> Iterator[Packet]:
    """Yield the packets of a GIF with the times of players, which show frames of less than 20 ms for 100 ms. Units are
    1/100 s."""
    later = 0
    for packet in packets:
        packet.pts = packet.dts = (packet.pts or 0) + later
        if (duration := packet.duration or 0) < 2:
            packet.duration, later = 10, later + 10 - duration
        yield packet


class KeyFrameVideo(PyavVideo):
    """Decodes key frames only, each from its own packet."""

    def _first_pts(self) -> int:
        return self._pts[(self.key_frames or [0])[0]]

    def _decode(self, times: set[int], keep: Callable[[av.VideoFrame], T]) -> Iterator[tuple[int, T]]:
        for place in self._keys:
            if (pts := self._packet_pts[place]) in times:
                frames, damage = self._decode_group(place, place + 1, {pts}, keep)
                if not frames or damage:
                    raise DecodeError(Reason.UNREADABLE, f"frame {self._pts.index(pts)} does not decode: {damage}")
                yield from frames.items()


def encode_video(frames: NDArray[np.uint8], *, fps: int, crf: int = 23, gop: int = 250) -> bytes:
    """Encode `frames` (T, H, W, 3) RGB as an H.264 MP4; H and W must be even (4:2:0 chroma)."""
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 4:2:0 needs an even height and width, got {height}×{width}")
    options = {"crf": str(crf), "g": str(gop), "preset": "veryfast", "threads": "1"}
    options |= {"x264-params": "mbtree=0"}  # with mbtree, bytes for the same frames varied on CPUs with AVX-512
    return encode(frames, "libx264", fps=fps, options=options)


def encode(
    frames: NDArray[np.uint8], codec: str, *, fps: int, options: Mapping[str, str], format: str = "mp4"
) -> bytes:
    """Encode `frames` (T, H, W, 3) RGB with an encoder of FFmpeg and its `options`; return the bytes of the file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", dict(options)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
