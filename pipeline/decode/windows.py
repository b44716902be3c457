"""Decode the windows of a file, each sampled as a clip. The file is demuxed once, and its packets are read for a few
windows at a time, so that memory does not grow with the length of the video."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.corpus.fetching import fetch, fetch_start
from pipeline.decode.clip_media import READERS_OF_PACKETS, fetch_part
from pipeline.decode.codec import clip_indices, decode_frames, fit_long_side, index_packets, open_video, probe
from pipeline.decode.config import Limits, Sampling
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import PacketIndex, decode_with_retry
from pipeline.records import DistantFile, EncodedFrames, Kind, Media, Stored

Span = tuple[float, float]
"""[start, end) in seconds on a player's clock."""
WINDOWS_AT_ONCE = 32
"""Number of windows whose packets and frames are in memory at a time."""


def spans_of(duration_seconds: float, window_seconds: float, stride_seconds: float) -> list[Span]:
    """Return the windows that cover a video; the first window that reaches its end is the last one."""
    last = max(0, int(np.ceil((duration_seconds - window_seconds) / stride_seconds - 1e-9)))
    starts = [index * stride_seconds for index in range(last + 1)]
    return [(start, min(start + window_seconds, duration_seconds)) for start in starts]


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How windows are cut and decoded. `window_seconds` None: the whole video is one window."""

    window_seconds: float | None
    stride_seconds: float
    num_frames: int
    size_px: int
    sampling: Sampling
    decoder: str
    limits: Limits

    def spans(self, duration_seconds: float) -> list[Span]:
        """Return the windows of a video of this length."""
        if self.window_seconds is None:
            return [(0.0, duration_seconds)]
        return spans_of(duration_seconds, self.window_seconds, self.stride_seconds)


def decode_windows(uri: str, settings: WindowSettings) -> Iterator[tuple[list[Span], UInt8[np.ndarray, "W T H V 3"]]]:
    """Yield batches of a video's windows, in order, with their frames (long side `settings.size_px`).

    Isolated decode processes open the file. DecodeError for an unreadable file, possibly after some windows.
    """
    data = fetch_start(uri)
    if index := packet_index(data, settings.decoder, settings.limits):
        yield from _by_packets(reader_of(uri, data), index, settings)
    else:
        yield from _by_file(data if isinstance(data, bytes) else fetch(uri), settings)


def packet_index(data: Stored | DistantFile, decoder: str, limits: Limits) -> PacketIndex | None:
    """Return the index of a file's packets; None if it cannot be indexed or the decoder needs whole files."""
    if decoder not in READERS_OF_PACKETS or isinstance(data, EncodedFrames):
        return None
    packets = np.asarray(isolated(index_packets, data, limits=limits), np.uint8).tobytes()
    return PacketIndex.from_bytes(packets) if packets else None


def reader_of(uri: str, data: Stored | DistantFile) -> Callable[[int, int], bytes]:
    """Return a function that reads the bytes [start, stop) of a file, from `data` if that is in memory."""
    return (lambda start, stop: data[start:stop]) if isinstance(data, bytes) else functools.partial(fetch_part, uri)


def _by_packets(
    read: Callable[[int, int], bytes], index: PacketIndex, settings: WindowSettings
) -> Iterator[tuple[list[Span], UInt8[np.ndarray, "W T H V 3"]]]:
    key_frames_only = settings.sampling.rule == "key_frames"
    decode = functools.partial(
        isolated,
        decode_frames,
        limits=settings.limits,
        kind=Kind.VIDEO,
        num_frames=settings.num_frames,
        size_px=settings.size_px,
        sampling=settings.sampling,
        decoder=settings.decoder,
    )
    for spans in _batches_of_windows(settings.spans(index.timeline.end)):
        indices = [
            clip_indices(
                index.timeline,
                num_frames=settings.num_frames,
                sampling=settings.sampling,
                start_seconds=start,
                end_seconds=end if end < index.timeline.end else None,
                key_frames=index.key_frames if key_frames_only else (),
            )
            for start, end in spans
        ]
        frames = decode_with_retry(
            index.cut(list(itertools.chain(*indices)), read, key_frames_only=key_frames_only), decode
        )
        yield spans, frames.reshape(len(spans), settings.num_frames, *frames.shape[1:])


def _by_file(data: Media, settings: WindowSettings) -> Iterator[tuple[list[Span], UInt8[np.ndarray, "W T H V 3"]]]:
    facts = isolated(
        probe,
        data,
        limits=settings.limits,
        kind=Kind.VIDEO,
        start_seconds=None,
        end_seconds=None,
        decoder=settings.decoder,
    )
    for spans in _batches_of_windows(settings.spans(facts["duration_seconds"])):
        frames = isolated(
            decode_spans,
            data,
            limits=settings.limits,
            spans=spans,
            num_frames=settings.num_frames,
            size_px=settings.size_px,
            sampling=settings.sampling,
            decoder=settings.decoder,
        )
        yield spans, frames.reshape(len(spans), settings.num_frames, *frames.shape[1:])


def decode_spans(
    data: Media, *, spans: Sequence[Span], num_frames: int, size_px: int, sampling: Sampling, decoder: str
) -> UInt8[np.ndarray, "N H V 3"]:
    """Return the concatenated frames of several windows of a file, which is opened once."""
    with open_video(data, decoder) as video:
        indices = [
            clip_indices(
                video.timeline,
                num_frames=num_frames,
                sampling=sampling,
                start_seconds=start,
                end_seconds=end if end < video.timeline.end else None,
                key_frames=getattr(video, "key_frames", ()) if sampling.rule == "key_frames" else (),
            )
            for start, end in spans
        ]
        size = fit_long_side(video.info.width, video.info.height, size_px)
        return video.frames(list(itertools.chain(*indices)), size)


def _batches_of_windows(spans: Sequence[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(spans), WINDOWS_AT_ONCE):
        yield list(spans[first : first + WINDOWS_AT_ONCE])
