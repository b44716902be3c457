"""Index of the packets of one file: byte ranges, presentation times, and the parameters of the decoder.

    prepare:  file ──index_packets──► PacketIndex, stored beside the manifest
    training: PacketIndex ──timeline, sampling──► frames ──needed──► packets ──byte ranges──► EncodedPackets

So a clip costs only the bytes of the groups that its frames need. `check_of` detects that the file has changed: the
checksum in the manifest is of the whole file, which is not read.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.timeline import Timeline
from pipeline.decode.transport_stream import packet_at
from pipeline.records import DecodeError, EncodedPackets, Media, Reason

T = TypeVar("T")
T_bytes = TypeVar("T_bytes", bytes, memoryview)

PACKET = np.dtype(
    [
        *(("pts", "<i8"), ("dts", "<i8"), ("position", "<i8"), ("size", "<i8"), ("span", "<i8")),
        *(("check", "<u2"), ("flags", "u1")),
    ]
)
"""A packet, in file order. Times are in units of the stream. Its `size` bytes are in the `span` bytes from `position`
on: contiguous, or in pieces of MPEG-TS."""
CUT = np.dtype([*PACKET.descr, ("number", "<i8")])
"""A packet of `EncodedPackets`: contiguous, with its position in the cut out bytes."""
KEY, SHOWN, CORRUPT = 1, 2, 4
"""Flags: decoding can begin here; its frame is displayed; the container marks it as damaged."""
MAX_GAP_BYTES = 2**16
"""Ranges with a gap up to this are fetched in one request: a store sends that much in the time of another request."""
ALL = -1


def check_of(data: bytes | memoryview) -> int:
    """Return a 16-bit checksum of a packet."""
    return zlib.crc32(data) & 0xFFFF


def content_of(data: T_bytes, size: int) -> T_bytes | bytes:
    """Extract the `size` bytes of a packet from the bytes that it spans in its file."""
    return data if len(data) == size else packet_at(data, size)[0]


def group_of(keys: Sequence[int], packet_pts: Sequence[int] | NDArray[np.int64], pts: int, place: int) -> int:
    """Return the number of the last key frame that precedes a packet both in the file and in presentation time."""
    group = max(0, bisect_right(keys, place) - 1)
    while group and packet_pts[keys[group]] > pts:
        group -= 1
    return group


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """The packets of one file. DecodeError if they are inconsistent with the size of the file."""

    header: Mapping[str, Any]
    """Parameters of the decoder and the video, and the file's size `num_bytes` (`IndexedVideo.index`)."""
    packets: NDArray[Any]
    """`PACKET`s."""

    def __post_init__(self) -> None:
        first, stop = self.packets["position"], self.packets["position"] + self.packets["span"]
        if not (
            len(self.keys)
            and len(self._displayed_pts)
            and (first >= 0).all()
            and (stop <= self.header["num_bytes"]).all()
        ):
            raise DecodeError(Reason.UNREADABLE, "the index of packets is damaged: prepare the corpus again")

    @cached_property
    def keys(self) -> list[int]:
        """Return the positions of the packets at which decoding can begin."""
        return np.flatnonzero(self.packets["flags"] & KEY).tolist()

    @cached_property
    def timeline(self) -> Timeline:
        """Return `Video.timeline`."""
        return Timeline(
            self._displayed_pts * self.header["unit"] - self.header["zero_seconds"], self.header["end_seconds"]
        )

    @cached_property
    def key_frames(self) -> list[int]:
        """Return `PyavVideo.key_frames`."""
        return np.flatnonzero(np.isin(self._displayed_pts, self.packets["pts"][self.keys])).tolist()

    @cached_property
    def _displayed_pts(self) -> NDArray[np.int64]:
        return np.unique(self.packets["pts"][(self.packets["flags"] & SHOWN) > 0])

    @cached_property
    def _by_time(self) -> NDArray[np.int64]:
        return np.argsort(self.packets["pts"], kind="stable")

    def cut(
        self,
        frames: Sequence[int],
        read: Callable[[int, int], bytes],
        *,
        key_frames_only: bool = False,
        num_extra_groups: int | None = None,
    ) -> EncodedPackets:
        """Cut out the packets that decoding `frames` needs; `read(start, stop)` reads bytes of the file.

        `num_extra_groups`: groups before each frame's own, for frames that refer to them, or ALL; by default the number
        needed when the file was indexed. `key_frames_only`: all frames are key frames, and nothing else is decoded.
        """
        num_extra_groups = int(self.header["spare"]) if num_extra_groups is None else num_extra_groups
        pts = self._displayed_pts[list(frames)]
        places = self._by_time[np.searchsorted(self.packets["pts"][self._by_time], pts, "right") - 1]
        runs = [
            self._run(int(time), int(place), num_extra_groups, key_frames_only)
            for time, place in zip(pts, places, strict=True)
        ]
        numbers = np.unique(np.concatenate([np.arange(first, stop) for first, stop in runs]))
        packets = self.packets[numbers]
        cut = np.zeros(len(packets), CUT)
        for name in PACKET.names or ():
            cut[name] = packets[name]
        cut["span"], cut["number"], cut["position"] = (
            packets["size"],
            numbers,
            np.cumsum(packets["size"]) - packets["size"],
        )
        wider = (
            {0: 1, 1: ALL}.get(num_extra_groups)
            if not key_frames_only and any(first > self.keys[0] for first, _ in runs)
            else None
        )
        return EncodedPackets(
            header=self.header,
            packets=cut,
            frame_numbers=tuple(frames),
            pts=tuple(pts.tolist()),
            data=_packets_in(packets, read),
            wider=None if wider is None else lambda: self.cut(frames, read, num_extra_groups=wider),
        )

    def _run(self, pts: int, place: int, num_extra_groups: int, key_frames_only: bool) -> tuple[int, int]:
        """Return the range [first, stop) of the packets that decoding a frame needs."""
        if key_frames_only:
            return place, place + 1
        group = group_of(self.keys, self.packets["pts"], pts, place)
        return self.keys[0 if num_extra_groups == ALL else max(0, group - num_extra_groups)], place + 1

    def to_bytes(self) -> bytes:
        """Compress the index: columns are stored as differences of neighbours, split into byte planes."""
        columns = self.packets.copy()
        columns["span"] -= self.packets["size"]
        columns["position"][1:] -= self.packets["position"][:-1] + self.packets["span"][:-1]
        for name in ("pts", "dts"):
            columns[name][1:] -= self.packets[name][:-1]
        planes = [_planes(columns[name]) for name in PACKET.names or ()]
        return zlib.compress(b"\n".join([json.dumps(dict(self.header)).encode(), b"".join(planes)]))

    @staticmethod
    def from_bytes(data: bytes) -> PacketIndex:
        """Invert `to_bytes`. DecodeError if the bytes are damaged."""
        try:
            head, _, body = zlib.decompress(data).partition(b"\n")
            header = json.loads(head)
            packets = np.zeros(len(body) // PACKET.itemsize, PACKET)
            start = 0
            for name in PACKET.names or ():
                kind = PACKET[name]
                stop = start + len(packets) * kind.itemsize
                planes = np.frombuffer(body[start:stop], np.uint8).reshape(kind.itemsize, -1)
                packets[name], start = np.ascontiguousarray(planes.T).view(kind)[:, 0], stop
            for name in ("pts", "dts"):
                packets[name] = np.cumsum(packets[name])
            packets["span"] += packets["size"]
            packets["position"] = np.cumsum(packets["position"]) + np.cumsum(packets["span"]) - packets["span"]
            return PacketIndex(header, packets)
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            detail = f"the index of packets is damaged ({error}): prepare the corpus again"
            raise DecodeError(Reason.UNREADABLE, detail) from error


def decode_with_retry(packets: Media, decode: Callable[[Media], T]) -> T:
    """Return `decode` of a clip. If its packets are not sufficient, retry with more of them."""
    while True:
        try:
            return decode(packets)
        except DecodeError as error:
            wider = packets.wider if isinstance(packets, EncodedPackets) else None
            if wider is None or error.reason != Reason.UNREADABLE:
                raise
            packets = wider()


def _planes(column: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(column).view(np.uint8).reshape(len(column), -1).T.tobytes()


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort byte ranges [start, stop), and merge those with a gap of at most `MAX_GAP_BYTES`."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1] + MAX_GAP_BYTES:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _packets_in(packets: NDArray[Any], read: Callable[[int, int], bytes]) -> bytes:
    """Return the concatenated bytes of packets. DecodeError if they differ from those that were indexed."""
    starts = packets["position"].tolist()
    ranges = list(zip(starts, (packets["position"] + packets["span"]).tolist(), strict=True))
    blocks = {start: memoryview(read(start, stop)) for start, stop in merge_ranges(ranges)}
    firsts, parts = sorted(blocks), []
    for (start, stop), size, check in zip(ranges, packets["size"].tolist(), packets["check"].tolist(), strict=True):
        first = firsts[bisect_right(firsts, start) - 1]
        part = content_of(blocks[first][start - first : stop - first], size)
        if check_of(part) != check:
            detail = f"bytes {start} to {stop} are not those that prepare has seen: prepare the corpus again"
            raise DecodeError(Reason.WRONG_CHECKSUM, detail)
        parts.append(part)
    return b"".join(parts)
