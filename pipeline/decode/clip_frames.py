"""Decode frames of a manifest's clip for passes over a corpus: in an isolated process, from the bytes they need."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pipeline.decode.clip_media import fetch_clip
from pipeline.decode.codec import decode_frames, known_info
from pipeline.decode.config import Limits, Sampling
from pipeline.decode.decoders import AUTO
from pipeline.decode.isolation import isolated
from pipeline.decode.packets import decode_with_retry
from pipeline.decode.sampling import SEGMENTS
from pipeline.records import Kind


def clip_frames(
    clip: dict[str, Any],
    *,
    num_frames: int,
    size_px: int,
    limits: Limits,
    sampling: Sampling = SEGMENTS,
    decoder: str = AUTO,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return `num_frames` frames of the clip in a row of a manifest (one of an image). Their long side is `size_px`, or
    that of the clip if it is shorter. DecodeError if the clip cannot be fetched or decoded."""
    kind = Kind(clip["kind"])
    sampling_arguments = {name: clip[name] for name in ("start_seconds", "end_seconds")}
    sampling_arguments |= {"num_frames": num_frames if kind == Kind.VIDEO else 1, "sampling": sampling}
    decode = partial(
        isolated,
        decode_frames,
        limits=limits,
        kind=kind,
        size_px=min(size_px, max(clip["width"], clip["height"])),
        decoder=decoder,
        known=known_info(clip) if kind == Kind.VIDEO else None,
        **sampling_arguments,
    )
    return decode_with_retry(fetch_clip(clip, decoder, **sampling_arguments), decode)
