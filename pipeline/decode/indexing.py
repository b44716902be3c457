"""The index of a file's packets: made by its container, and proven on its first, middle and last frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from av.packet import Packet
from jaxtyping import UInt8

from pipeline.decode.formats import TS, Content, refuse_damaged
from pipeline.decode.groups import CutVideo, PacketVideo, packet_of, parameters_of
from pipeline.decode.packets import CORRUPT, KEY, PACKET, SHOWN, PacketIndex, check_of
from pipeline.decode.transport_stream import PIECE_BYTES, packet_at
from pipeline.decode.video import UNTIMED, PyavVideo
from pipeline.records import DecodeError

BESIDE = ("palette", "new_extradata", "param_change", "encryption_info")
"""What a packet may bring beside its bytes that a decoder needs."""
MOST_HEADER_BYTES = 64
"""Of a packet, between the position that FFmpeg names and its first byte: 4 in Matroska, 16 in FLV."""

MOST_SPANS = (2, 8, 32)
"""Of a packet in MPEG-TS, the bytes of the file among which its pieces are looked for, in multiples of its own."""


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
    span: int
    check: int
    is_keyframe: bool
    is_corrupt: bool
    is_discard: bool

    def row(self, pts: int, is_shown: bool) -> tuple[int, ...]:
        """Return the packet as a `PACKET`."""
        flags = KEY * self.is_keyframe + SHOWN * is_shown + CORRUPT * self.is_corrupt
        return pts, pts if self.dts is None else self.dts, self.position, self.size, self.span, self.check, flags


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
        self._data, content = data, bytes(packet)
        if packet.pos is None or self._demuxer in UNTIMED or any(packet.has_sidedata(kind) for kind in BESIDE):
            raise UnindexedError
        find = _pieces if self._demuxer == TS.demuxer else _one_piece
        position, span = find(data, content, packet.pos)
        is_hidden = packet.is_discard or super()._is_invisible(packet)
        times, flags = (packet.pts, packet.dts, packet.duration), (packet.is_keyframe, packet.is_corrupt, is_hidden)
        return LatePacket(*times, len(content), position, span, check_of(content), *flags)

    def _late(self, place: int) -> LatePacket:
        packet: Any = self._packets[place]
        return packet

    def _packet(self, place: int) -> Packet:
        late, pts = self._late(place), self._packet_pts[place]
        return packet_of(np.array(late.row(pts, True), PACKET), self._data, self._stream.time_base or Fraction(1))

    def _is_invisible(self, packet: Any) -> bool:
        return False  # `_kept` has looked

    @cached_property
    def _lacks_presentation_times(self) -> bool:
        if super()._lacks_presentation_times:
            raise UnindexedError
        return False


def _one_piece(data: Content, content: bytes, position: int) -> tuple[int, int]:
    """Return where a packet lies in the file, and how many bytes it spans."""
    found = data.find(content, position, position + len(content) + MOST_HEADER_BYTES)
    if found < 0:
        raise UnindexedError
    return found, len(content)


def _pieces(data: Content, content: bytes, position: int) -> tuple[int, int]:
    """As `_one_piece`, in MPEG-TS."""
    for most in MOST_SPANS:
        found, span = packet_at(data[position : position + most * (len(content) + PIECE_BYTES)], len(content))
        if found == content and span != len(content):
            return position, span
    raise UnindexedError


def _proven(video: IndexedVideo, index: PacketIndex, data: Content) -> PacketIndex:
    """Return the index, with the groups that its frames need more. UnindexedError if by it a clip would have other
    frames, or at other times, than the file. A damaged frame has to be one for both."""
    frames = sorted({0, video.info.num_frames // 2, video.info.num_frames - 1})
    whole = [_shown(video, frame) for frame in frames]
    for spare in (0, 1):
        index = PacketIndex({**index.header, "spare": spare}, index.packets)
        cuts = [index.cut([frame], lambda start, stop: data[start:stop]) for frame in frames]
        shown = [_shown(CutVideo(cut), frame) for cut, frame in zip(cuts, frames, strict=True)]
        if shown == whole and any(whole) and np.array_equal(index.timeline.times, video.timeline.times):
            return index
    raise UnindexedError


def _shown(video: PacketVideo, frame: int) -> bytes | None:
    """Return the pixels of a frame; None if it does not decode."""
    try:
        return video.frames([frame]).tobytes()
    except DecodeError:
        return None
