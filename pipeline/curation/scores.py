"""Score a manifest's clips by their pixels, aspect ratio and captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from pipeline.curation import measures
from pipeline.curation.language import share_in
from pipeline.decode.clip_frames import clip_frames
from pipeline.decode.codec import encode_image
from pipeline.decode.config import Limits, Sampling
from pipeline.offline.kept import result_schema
from pipeline.records import DecodeError, Kind

VERSION = 2
"""Increment it whenever the same clip would get different scores."""
SAMPLING, NUM_FRAMES, SIZE_PX = Sampling(rule="fps", frames_per_second=8.0), 16, 256
NAMES = (
    *("motion", "blur", "black", "static", "letterbox", "text", "aspect", "caption_words", "caption_language"),
    "match",
)
SCORES = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("uri", pa.string()),
        ("motion", pa.float64()),  # share of the long side per second; null: an image
        ("blur", pa.float64()),  # width of edges in pixels, of a long side of 256
        ("black", pa.float64()),  # share of frames
        ("static", pa.float64()),  # share of frames; null: an image
        ("letterbox", pa.float64()),  # share of the picture in black bars
        ("text", pa.float64()),  # share of the picture covered by text
        ("strip", pa.binary()),  # JPEG of some frames
    ]
)
"""Scores of a clip's pixels."""
STRIP_FRAMES, STRIP_STEP, STRIP_QUALITY = 4, 2, 70


def scores_of(frames: UInt8[np.ndarray, "T H W 3"], kind: Kind) -> dict[str, float | None]:
    """Compute the scores of a clip's pixels."""
    luma = measures.luma(frames)
    is_video = kind == Kind.VIDEO
    return {
        "motion": measures.motion(luma, SAMPLING.frames_per_second) if is_video else None,
        "blur": measures.blur(luma[:: max(1, len(luma) // STRIP_FRAMES)]),
        "black": measures.black(luma),
        "static": measures.static(luma) if is_video else None,
        "letterbox": measures.letterbox(luma),
        "text": measures.text(luma[:: max(1, len(luma) // STRIP_FRAMES)]),
    }


def known_scores(clip: Mapping[str, Any], language: str) -> dict[str, float | None]:
    """Return the scores that follow from a manifest row alone: width / height, number of words of the shortest caption,
    and the share of its captions in `language`."""
    words = [len(caption.split()) for caption in clip["captions"]]
    return {
        "aspect": clip["width"] / clip["height"],
        "caption_words": min(words, default=None),
        "caption_language": share_in(language, clip["captions"]),
    }


def score_clips(clips: pa.Table, limits: Limits, decoder: str) -> pa.Table:
    """Score each clip, a manifest row with a key; a clip that cannot be decoded gets the reason instead."""
    return pa.Table.from_pylist([_row(clip, limits, decoder) for clip in clips.to_pylist()], result_schema(SCORES))


def _row(clip: dict[str, Any], limits: Limits, decoder: str) -> dict[str, Any]:
    row = {name: clip[name] for name in ("clip_id", "uri", "key")}
    asked = {"num_frames": NUM_FRAMES, "size_px": SIZE_PX, "sampling": SAMPLING}
    try:
        frames = clip_frames(clip, **asked, limits=limits, decoder=decoder)
    except DecodeError as error:
        return row | {"reason": str(error.reason), "detail": error.detail}
    return row | scores_of(frames, Kind(clip["kind"])) | {"strip": strip_of(frames)}


def strip_of(frames: UInt8[np.ndarray, "T H W 3"]) -> bytes:
    """Return `STRIP_FRAMES` of the frames side by side, at half their size, as a JPEG."""
    places = sorted(set(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int).tolist()))
    shown = np.concatenate([frames[place, ::STRIP_STEP, ::STRIP_STEP] for place in places], axis=1)
    return encode_image(shown, quality=STRIP_QUALITY)
