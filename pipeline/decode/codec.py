"""Decode clips to frames: the public interface of this package.

    media ──open_video──► timeline ──sampling──► indices ──frames(indices, size)──► uint8 ──letterbox──► square clip

The container's packets (PyAV) determine when each frame is on screen; a decoder from the table in `decoders.py` turns
the sampled frames into pixels. Every fault of a file raises the same exception, `DecodeError`.
`isolation.py` guards the process that opens a file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from pipeline.decode import decoders, indexing
from pipeline.decode.config import Sampling
from pipeline.decode.formats import Content, container_of, refuse_damaged
from pipeline.decode.groups import CutVideo
from pipeline.decode.images import (
    DecodedClip,
    ImagesVideo,
    decode_image,
    encode_image,
    fit_long_side,
    letterbox,
)
from pipeline.decode.info import VideoInfo, known_info
from pipeline.decode.sampling import SEGMENTS, Policy, clip_indices
from pipeline.decode.timeline import Timeline
from pipeline.decode.video import Video, encode_video
from pipeline.records import DecodeError, DistantFile, EncodedFrames, EncodedPackets, Kind, Media

__all__ = [
    "DecodeError",
    "DecodedClip",
    "Timeline",
    "Video",
    "VideoInfo",
    "clip_indices",
    "decode_clip",
    "decode_frames",
    "decode_frames_at",
    "decode_image",
    "encode_image",
    "encode_video",
    "fit_long_side",
    "frame_times",
    "known_info",
    "letterbox",
    "open_video",
    "probe",
    "time_decoding",
]

PROBE_SIZE_PX = 64
"""Long side of the frames that `probe` decodes."""


def decode_clip(data: Media, *, size_px: int, **settings: Any) -> DecodedClip:
    """Return `decode_frames` padded to a square of `size_px`."""
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
    decoder: str = decoders.AUTO,
    known: VideoInfo | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return `num_frames` frames of a video, or the one frame of an image, their long side `size_px`.

    Only the sampled frames are converted; `EncodedPackets` are already sampled. `known`: the video's properties from
    `prepare`; with it no frame is decoded to learn the size, and a file with another number of frames is rejected. PyAV
    always decodes key frames. DecodeError if the file has no such clip.
    """
    if kind == Kind.IMAGE:
        return decode_image(data, size_px)[None]
    by_key_frames = sampling.rule == "key_frames"
    with open_video(data, decoders.KEY_FRAMES if by_key_frames else decoder, known) as video:
        indices = (
            data.frame_numbers
            if isinstance(data, EncodedPackets)
            else clip_indices(
                video.timeline,
                num_frames=num_frames,
                sampling=sampling,
                policy=policy,
                rng=rng,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                key_frames=getattr(video, "key_frames", ()) if by_key_frames else (),
            )
        )
        return video.frames(indices, fit_long_side(video.info.width, video.info.height, size_px))


def probe(
    data: Media, *, kind: Kind, start_seconds: float | None, end_seconds: float | None, decoder: str
) -> dict[str, Any]:
    """Return the manifest columns of a clip that need its file, by name.

    The first, middle and last frame are decoded to prove the clip usable. DecodeError if it is not.
    """
    if kind == Kind.IMAGE:
        height, width, _ = decode_image(data).shape
        return {"width": width, "height": height, "num_frames": 1}
    with open_video(data, decoder) as video:
        info = video.info
        if isinstance(data, EncodedPackets):
            needed = data.frame_numbers
        else:
            needed = frames_to_probe(video.timeline.window(start_seconds, end_seconds))
        video.frames(needed, fit_long_side(info.width, info.height, PROBE_SIZE_PX))
    return asdict(info)


def decode_frames_at(
    data: Media, *, indices: Sequence[int], size: tuple[int, int], decoder: str
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return frames by number, of `size` = (width, height); of `EncodedPackets`, the frames they were cut for."""
    with open_video(data, decoder) as video:
        return video.frames(data.frame_numbers if isinstance(data, EncodedPackets) else indices, size)


def frame_times(data: Media, *, decoder: str) -> Float64[np.ndarray, " T_plus_1"]:
    """Return when each frame of a video appears, and when the last one disappears, in seconds."""
    with open_video(data, decoder) as video:
        return np.append(video.timeline.times, video.timeline.end)


def frames_to_probe(window: range) -> list[int]:
    """Return the frames of a window that must decode to prove it usable: first, middle, last."""
    return sorted({window[0], window[len(window) // 2], window[-1]})


def index_packets(data: Content) -> UInt8[np.ndarray, " N"]:
    """Call `indexing.index_packets`. Defined here so that one decode process serves it and the functions above."""
    return indexing.index_packets(data)


def time_decoding(data: Media, **settings: Any) -> dict[str, float]:
    """Return the seconds and the CPU seconds, over all threads, that `decode_frames` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    decode_frames(data, **settings)
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def open_video(data: Media, decoder: str = decoders.AUTO, known: VideoInfo | None = None) -> Video:
    """Open a video; the result is a context manager.

    DecodeError if the file is not a readable video; ValueError for a decoder that does not load.
    """
    opener = decoders.load(decoder)
    if isinstance(data, EncodedFrames):
        return ImagesVideo(data, known)
    if isinstance(data, EncodedPackets):
        return CutVideo(data, known)
    if isinstance(data, DistantFile):
        raise ValueError("a distant file is indexed, and its packets are decoded")
    container_of(data)  # check before any decoder sees it: decord and torchcodec run FFmpeg's probes
    refuse_damaged(data)
    return opener(data, known)
