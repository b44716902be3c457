"""Properties of a video that are known without decoding it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from pipeline.records import DecodeError, Reason

_DECORD_PREFIX = re.compile(r"\[[0-9:]+\] \S+\.cc:[0-9]+: ")  # varying time and line: equal failures give equal details


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Number, rate and size of the frames as they are displayed (after rotation)."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration_seconds: float


def known_info(row: dict[str, Any]) -> VideoInfo:
    """Return the `VideoInfo` in a row of a manifest."""
    return VideoInfo(**{field.name: row[field.name] for field in fields(VideoInfo)})


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 300 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _DECORD_PREFIX.sub("", line)[:300]


def refuse_other_length(num_frames: int, known: VideoInfo | None, of: str = "frames") -> None:
    """Raise DecodeError if the number of frames differs from that in the manifest: the file has changed."""
    if known is not None and num_frames != known.num_frames:
        detail = f"{num_frames} {of}, but the manifest says {known.num_frames}: prepare the corpus again"
        raise DecodeError(Reason.UNREADABLE, detail)
