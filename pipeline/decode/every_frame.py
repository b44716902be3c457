"""Decode all frames of a video in order, resized to a small size, in memory independent of its length and file size."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from pipeline.corpus.fetching import fetch, fetch_start
from pipeline.decode.codec import decode_frames_at, frame_times
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import decode_with_retry
from pipeline.decode.timeline import Timeline
from pipeline.decode.windows import packet_index, reader_of

FRAMES_AT_ONCE = 512
"""Frames per decoding request; decoding starts at the key frame before the first of them."""


def every_frame(
    uri: str, *, size: tuple[int, int], limits: Limits, decoder: str
) -> tuple[Timeline, Iterator[UInt8[np.ndarray, "T H W 3"]]]:
    """Return the timeline of a video, and an iterator over batches of its frames of `size` = (width, height).

    Isolated decode processes open the file; `limits` apply to each batch. DecodeError for an unreadable file, possibly
    after some frames.
    """
    data = fetch_start(uri)
    decode = functools.partial(isolated, decode_frames_at, limits=limits, size=size, decoder=decoder)
    if index := packet_index(data, decoder, limits):
        read, timeline, key_frames = reader_of(uri, data), index.timeline, index.key_frames
        ranges = frame_ranges(len(timeline.times), key_frames)
        return timeline, (
            decode_with_retry(index.cut(frames, read), functools.partial(decode, indices=())) for frames in ranges
        )
    whole = data if isinstance(data, bytes) else fetch(uri)
    *times, end = isolated(frame_times, whole, limits=limits, decoder=decoder).tolist()
    ranges = frame_ranges(len(times), ())
    return Timeline(np.array(times), end), (decode(whole, indices=list(frames)) for frames in ranges)


def frame_ranges(num_frames: int, key_frames: Sequence[int]) -> list[range]:
    """Partition all frames into ranges of about `FRAMES_AT_ONCE`, which begin at a key frame if one is near."""
    starts, keys = [0], np.array(key_frames)
    while (latest := starts[-1] + FRAMES_AT_ONCE) < num_frames:
        near = keys[(keys > latest - FRAMES_AT_ONCE // 2) & (keys <= latest)]
        starts.append(int(near[-1]) if len(near) else latest)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num_frames], strict=True)]
