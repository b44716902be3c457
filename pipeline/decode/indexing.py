"""Index a file's packets from its container, and verify the index on the first, middle and last frame."""

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

REQUIRED_SIDE_DATA = ("palette", "new_extradata", "param_change", "encryption_info")
"""Side data of a packet that a decoder needs. The index does not store them, so such files are read whole."""
MAX_HEADER_BYTES = 64
"""Largest number of bytes between the position that FFmpeg reports and the packet: 4 in Matroska, 16 in FLV."""

MAX_SPANS = (2, 8, 32)
"""Bytes of an MPEG-TS file that are searched for the pieces of a packet, as multiples of its size."""


class UnindexedError(Exception):
    """Raised if a file cannot be indexed: its packets are not contiguous in the file, or have no times."""


def index_packets(data: Content) -> UInt8[np.ndarray, " N"]:
    """Return `PacketIndex.to_bytes` of a file; empty if it cannot be indexed and must be read whole.

    DecodeError if it is not a video, or damaged.
    """
    refuse_damaged(data)
    try:
        with IndexedVideo(data) as video:
            return np.frombuffer(_verified(video, video.index(len(data)), data).to_bytes(), np.uint8)
    except UnindexedError:
        return np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class DeferredPacket:
    """A packet whose bytes stay in the file until it is decoded."""

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
    """A file of any size, whose packets are read twice: for indexing and for decoding."""

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
        packets = [self._deferred(place).row(pts, pts in shown) for place, pts in enumerate(self._packet_pts)]
        return PacketIndex(header, np.array(packets, PACKET))

    def _stored_packet(self, packet: Packet, data: Content) -> Any:
        self._data, content = data, bytes(packet)
        if (
            packet.pos is None
            or self._demuxer in UNTIMED
            or any(packet.has_sidedata(kind) for kind in REQUIRED_SIDE_DATA)
        ):
            raise UnindexedError
        find = _pieces if self._demuxer == TS.demuxer else _one_piece
        position, span = find(data, content, packet.pos)
        is_hidden = packet.is_discard or super()._is_invisible(packet)
        times, flags = (packet.pts, packet.dts, packet.duration), (packet.is_keyframe, packet.is_corrupt, is_hidden)
        return DeferredPacket(*times, len(content), position, span, check_of(content), *flags)

    def _deferred(self, place: int) -> DeferredPacket:
        packet: Any = self._packets[place]
        return packet

    def _packet(self, place: int) -> Packet:
        late, pts = self._deferred(place), self._packet_pts[place]
        return packet_of(np.array(late.row(pts, True), PACKET), self._data, self._stream.time_base or Fraction(1))

    def _is_invisible(self, packet: Any) -> bool:
        return False  # `_stored_packet` has already recorded it as `is_discard`

    @cached_property
    def _lacks_presentation_times(self) -> bool:
        if super()._lacks_presentation_times:
            raise UnindexedError
        return False


def _one_piece(data: Content, content: bytes, position: int) -> tuple[int, int]:
    """Locate a packet in the file; return its position and the number of bytes that it spans."""
    start = data.find(content, position, position + len(content) + MAX_HEADER_BYTES)
    if start < 0:
        raise UnindexedError
    return start, len(content)


def _pieces(data: Content, content: bytes, position: int) -> tuple[int, int]:
    """Do what `_one_piece` does, in MPEG-TS."""
    for max_span in MAX_SPANS:
        packet, span = packet_at(data[position : position + max_span * (len(content) + PIECE_BYTES)], len(content))
        if packet == content and span != len(content):
            return position, span
    raise UnindexedError


def _verified(video: IndexedVideo, index: PacketIndex, data: Content) -> PacketIndex:
    """Verify an index, and return it with the number of extra groups (`spare`) that its frames need. UnindexedError if
    frames or times differ from those of the whole file. A damaged frame must fail with both."""
    frames = sorted({0, video.info.num_frames // 2, video.info.num_frames - 1})
    whole = [_decoded_bytes(video, frame) for frame in frames]
    for num_extra_groups in (0, 1):
        index = PacketIndex({**index.header, "spare": num_extra_groups}, index.packets)
        cuts = [index.cut([frame], lambda start, stop: data[start:stop]) for frame in frames]
        shown = [_decoded_bytes(CutVideo(cut), frame) for cut, frame in zip(cuts, frames, strict=True)]
        if shown == whole and any(whole) and np.array_equal(index.timeline.times, video.timeline.times):
            return index
    raise UnindexedError


def _decoded_bytes(video: PacketVideo, frame: int) -> bytes | None:
    """Decode the pixels of a frame; return None if that fails."""
    try:
        return video.frames([frame]).tobytes()
    except DecodeError:
        return None
