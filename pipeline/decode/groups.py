"""Decode exact frames from packets: from the key frame before each, skipping frames that no other frame refers to.

The packets come from an open file (`PyavVideo`), or were cut out of it for the frames of one clip (`CutVideo`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

import av
import av.error
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from jaxtyping import UInt8

from pipeline.decode.formats import Content
from pipeline.decode.info import VideoInfo, first_line
from pipeline.decode.packets import CORRUPT, KEY, content_of, group_of
from pipeline.decode.pictures import Picture
from pipeline.decode.pixels import stack
from pipeline.decode.timeline import Timeline
from pipeline.records import DecodeError, EncodedPackets, Reason

T = TypeVar("T")

SKIPPING_CODECS = ("h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "vc1", "wmv3")
"""Decoders that respect changes of `skip_frame` between packets; libdav1d reads it only once."""
STRICT = {"err_detect": "explode"}
"""Option of every decoder: treat damage as an error."""
PARAMETERS = (
    *("width", "height", "pix_fmt", "bits_per_coded_sample", "reorder_depth"),
    *("color_range", "colorspace", "color_primaries", "color_trc"),
)
"""Attributes that a container may set on a decoder, besides the codec's tag and extradata."""


class PacketVideo:
    """Decodes frames from packets. Subclasses set the attributes below.

    Frames that no other refers to are decoded only if requested. Frames that depend on a damaged packet raise
    DecodeError.
    """

    info: VideoInfo
    _codec: VideoCodecContext
    _packets: list[Any]
    _packet_pts: list[int]
    _keys: list[int]
    """Positions of the key frames in `_packets`."""
    _numbers: Sequence[int]
    """Number of each packet in the file: packets may be missing, and nothing is decoded across a gap."""
    _pts: Sequence[int]
    """Presentation time of each frame, by its number."""
    _picture: Picture

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Implement `Video.frames`. DecodeError if one of them does not decode."""
        size = size or (self.info.width, self.info.height)
        pts = [self._time_of(index) for index in indices]
        with as_decode_errors():
            images = dict(self._decode(set(pts), functools.partial(self._picture.of, size=size)))
        return stack([images[time] for time in pts])

    def _time_of(self, index: int) -> int:
        return self._pts[index]

    def _number_of(self, pts: int) -> int:
        return self._pts.index(pts)

    def _packet(self, place: int) -> Packet:
        return self._packets[place]

    def _decode(self, times: set[int], keep: Callable[[av.VideoFrame], T]) -> Iterator[tuple[int, T]]:
        """Yield (time, `keep(frame)`) of the frames at the presentation `times`. DecodeError if one does not decode."""
        places = {pts: place for place, pts in enumerate(self._packet_pts) if pts in times}
        groups: dict[int, set[int]] = {}
        for pts in sorted(times):
            groups.setdefault(group_of(self._keys, self._packet_pts, pts, places[pts]), set()).add(pts)
        for group, needed in groups.items():
            stop = max(places[pts] for pts in needed) + 1
            frames: dict[int, T] = {}
            damage = ""
            for start in self._starts(group, stop):
                frames, damage = self._decode_group(start, stop, needed, keep)
                if frames.keys() == needed and not damage:
                    break
            else:
                missing = min(needed - frames.keys(), default=min(needed))
                detail = f"frame {self._number_of(missing)} does not decode" + (f": {damage}" if damage else "")
                raise DecodeError(Reason.UNREADABLE, detail)
            yield from frames.items()

    def _starts(self, group: int, stop: int) -> list[int]:
        """Return the key packets to start decoding from, in the order to try them: frames after a key frame may refer
        to frames before it."""
        starts = [self._keys[start] for start in dict.fromkeys((group, max(0, group - 1), 0))]
        return [start for start in starts if self._numbers[stop - 1] - self._numbers[start] == stop - 1 - start]

    def _decode_group(
        self, start: int, stop: int, needed_pts: set[int], keep: Callable[[av.VideoFrame], T]
    ) -> tuple[dict[int, T], str]:
        """Decode the packets [start, stop), which begin with a key frame; return time → `keep(frame)` for the frames at
        `needed_pts`, and a description of damage. Full-size frames are not collected: a group may have hundreds."""
        frames: dict[int, T] = {}
        damage = ""
        self._codec.flush_buffers()
        for place in [*range(start, stop), None]:
            if place is not None and self._packet_pts[place] < self._packet_pts[start]:
                continue  # displayed before the key frame: may refer to frames before it, and is not referred to
            packet = None if place is None else self._packet(place)
            if packet is not None and packet.is_corrupt:
                damage = damage or "the container marks a packet as damaged"
            is_needed = place is None or self._packet_pts[place] in needed_pts or not self._can_skip
            self._codec.skip_frame = "DEFAULT" if is_needed else "NONREF"
            try:
                for frame in self._codec.decode(packet):
                    if frame.pts in needed_pts and not frame.is_corrupt:
                        frames[frame.pts] = keep(frame)
            except FFmpegError as error:
                damage = damage or first_line(error)
        return frames, damage

    @cached_property
    def _can_skip(self) -> bool:
        """Return whether the decoder can skip frames marked as unreferenced, and the mark is reliable. In an HEVC
        stream with temporal layers, it only holds within its layer (H.265, 7.4.2.2)."""
        if self._codec.name != "hevc":
            return self._codec.name in SKIPPING_CODECS
        _, header, parameters = (self._codec.extradata or b"").partition(b"\x40\x01")  # header of a VPS
        return bool(header) and not parameters[1] >> 1 & 7


class CutVideo(PacketVideo):
    """Decodes the frames that `EncodedPackets` were cut for, by their numbers in the file. Opens no container."""

    def __init__(self, data: EncodedPackets, known: VideoInfo | None = None) -> None:
        header = data.header
        self.info = known or VideoInfo(**header["info"])
        self._picture = Picture(np.array(header["matrix"]))
        self._packet_pts, self._numbers = data.packets["pts"].tolist(), data.packets["number"].tolist()
        self._keys = np.flatnonzero(data.packets["flags"] & KEY).tolist()
        self._pts = data.pts
        self._times = dict(zip(data.frame_numbers, data.pts, strict=True))
        with as_decode_errors():
            self._codec = codec_of(header)
            base = Fraction(*header["time_base"])
            self._packets = [packet_of(row, data.data, base) for row in data.packets]

    @property
    def timeline(self) -> Timeline:
        """Raise AttributeError: these packets have no timeline, and were selected by `PacketIndex.timeline`."""
        raise AttributeError("packets that were cut out of a video have no timeline")

    def _time_of(self, index: int) -> int:
        return self._times[index]

    def _number_of(self, pts: int) -> int:
        return next(number for number, time in self._times.items() if time == pts)

    def __enter__(self) -> CutVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing: no container is open."""


def parameters_of(codec: VideoCodecContext) -> dict[str, Any]:
    """Return the description from which `codec_of` makes an equivalent decoder."""
    return {
        "codec": codec.name,
        "tag": codec.codec_tag.encode("latin-1").hex(),
        "extradata": (codec.extradata or b"").hex(),
        "parameters": {name: value for name in PARAMETERS if (value := getattr(codec, name)) is not None},
    }


def codec_of(header: Any) -> VideoCodecContext:
    """Return a decoder for the packets of the stream that `header` describes."""
    codec: Any = av.CodecContext.create(header["codec"], "r")
    codec.thread_count, codec.options = 1, STRICT
    if header["tag"] != "00000000":
        codec.codec_tag = bytes.fromhex(header["tag"]).decode("latin-1")
    extradata = bytes.fromhex(header["extradata"])
    for padding in (64, 0) if extradata else ():  # FFmpeg needs 64 zeros after it; PyAV adds none
        codec.extradata = extradata + bytes(padding)
    for name, value in header["parameters"].items():
        setattr(codec, name, int(value) if name != "pix_fmt" else value)
    return codec


def packet_of(row: Any, data: Content, time_base: Fraction) -> Packet:
    """Return the packet in `data` that a row of `PACKET` describes."""
    position, size, span = (int(row[name]) for name in ("position", "size", "span"))
    packet = Packet(size)  # unlike `Packet(bytes)`, it has the zero padding that FFmpeg reads past the end
    packet.update(content_of(data[position : position + span], size))
    packet.pts, packet.dts, packet.time_base = int(row["pts"]), int(row["dts"]), time_base
    packet.is_keyframe, packet.is_corrupt = bool(row["flags"] & KEY), bool(row["flags"] & CORRUPT)
    return packet


@contextlib.contextmanager
def as_decode_errors() -> Iterator[None]:
    """Turn FFmpeg's errors into DecodeError."""
    try:
        yield
    except (FFmpegError, ValueError, IndexError) as error:
        match error:
            case av.error.DecoderNotFoundError() | av.error.PatchWelcomeError():
                reason = Reason.UNSUPPORTED_CODEC
            case av.error.MemoryError():
                reason = Reason.OUT_OF_MEMORY
            case _:
                reason = Reason.UNREADABLE
        raise DecodeError(reason, first_line(error)) from error
