"""The index of a file's packets: made by its container, and proven on its first, middle and last frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.packet import Packet
from jaxtyping import UInt8

from pipeline.decode.formats import Content, refuse_damaged
from pipeline.decode.groups import CutVideo, packet_of, parameters_of
from pipeline.decode.packets import CORRUPT, KEY, PACKET, SHOWN, PacketIndex, check_of
from pipeline.decode.video import UNTIMED, PyavVideo
from pipeline.records import DecodeError

BESIDE = ("palette", "new_extradata", "param_change", "encryption_info")
"""What a packet may bring beside its bytes that a decoder needs."""
MOST_HEADER_BYTES = 64
"""Of a packet, between the position that FFmpeg names and its first byte: 4 in Matroska, 16 in FLV."""


class UnindexedError(Exception):
    """What a container gives is not what lies in the file in one piece, and at a time."""


def index_packets(data: Content) -> UInt8[np.ndarray, " N"]:
    """Return `PacketIndex.to_bytes` of a file; nothing where it has none and has to be read whole.

    DecodeError if the file is none, or damaged.
    """
    refuse_damaged(data)
    try:
        with IndexedVideo(data) as video:
            return np.frombuffer(_proven(video, video.index(len(data)), data).to_bytes(), np.uint8)
    except UnindexedError:
        return np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class LatePacket:
    """A packet whose bytes stay in the file, where they are read when they are decoded."""

    pts: int | None
    dts: int | None
    duration: int | None
    size: int
    position: int
    check: int
    is_keyframe: bool
    is_corrupt: bool
    is_discard: bool

    def row(self, pts: int, is_shown: bool) -> tuple[int, ...]:
        """Return the packet as a `PACKET`."""
        flags = KEY * self.is_keyframe + SHOWN * is_shown + CORRUPT * self.is_corrupt
        return pts, pts if self.dts is None else self.dts, self.position, self.size, self.check, flags


class IndexedVideo(PyavVideo):
    """A file of any size, whose packets are read twice: to be indexed, and to be decoded."""

    def __enter__(self) -> IndexedVideo:
        return self

    def index(self, num_bytes: int) -> PacketIndex:
        """Return the index of the packets of the file, which has `num_bytes`."""
        base = self._stream.time_base
        if base is None:
            raise UnindexedError
        header = parameters_of(self._codec) | {
            "time_base": [base.numerator, base.denominator],
            "unit": float(base),
            "zero_seconds": self._zero,
            "end_seconds": self.timeline.end,
            "matrix": self._first_frame[0].tolist(),
            "info": asdict(self.info),
            "num_bytes": num_bytes,
            "spare": 0,
        }
        shown = set(self._pts)
        packets = [self._late(place).row(pts, pts in shown) for place, pts in enumerate(self._packet_pts)]
        return PacketIndex(header, np.array(packets, PACKET))

    def _kept(self, packet: Packet, data: Content) -> Any:
        self._data, content, start = data, bytes(packet), packet.pos
        position = (
            -1
            if start is None or self._demuxer in UNTIMED
            else data.find(content, start, start + len(content) + MOST_HEADER_BYTES)
        )
        if position < 0 or any(packet.has_sidedata(kind) for kind in BESIDE):
            raise UnindexedError
        is_hidden = packet.is_discard or super()._is_invisible(packet)
        flags = packet.is_keyframe, packet.is_corrupt, is_hidden
        return LatePacket(packet.pts, packet.dts, packet.duration, len(content), position, check_of(content), *flags)

    def _late(self, place: int) -> LatePacket:
        packet: Any = self._packets[place]
        return packet

    def _packet(self, place: int) -> Packet:
        late, pts = self._late(place), self._packet_pts[place]
        return packet_of(np.array(late.row(pts, True), PACKET), self._data, self._stream.time_base or Fraction(1))

    def _is_invisible(self, packet: Any) -> bool:
        return False  # `_kept` has looked


def _proven(video: IndexedVideo, index: PacketIndex, data: Content) -> PacketIndex:
    """Return the index, with the groups that its frames need more. UnindexedError if by it a clip would have other
    frames, or at other times, than the file."""
    frames = sorted({0, video.info.num_frames // 2, video.info.num_frames - 1})
    for spare in (0, 1):
        index = PacketIndex({**index.header, "spare": spare}, index.packets)
        cut = index.cut(frames, lambda start, stop: data[start:stop])
        try:
            same = np.array_equal(CutVideo(cut).frames(frames), video.frames(frames))
        except DecodeError:
            continue
        if same and np.array_equal(index.timeline.times, video.timeline.times):
            return index
    raise UnindexedError
