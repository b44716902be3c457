"""The display times of a video's frames. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipeline.decode.info import VideoInfo
from pipeline.records import DecodeError, Reason

ROUNDING_SECONDS = 0.001
"""Containers round times: Matroska and FLV to milliseconds."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Times in seconds on a player's clock, which starts at 0 with the first stream of the file."""

    times: Float64[np.ndarray, " N"]
    """When each displayed frame appears, ascending."""
    end: float
    """When the last frame disappears."""

    @staticmethod
    def uniform(info: VideoInfo) -> Timeline:
        """Return the timeline of a video that starts at 0 and has a constant rate."""
        return Timeline(np.arange(info.num_frames) / info.fps, info.num_frames / info.fps)

    @property
    def fps(self) -> float:
        """Return the mean number of frames per second."""
        return round(len(self.times) / (self.end - float(self.times[0])), 6)

    def on_screen(self, seconds: Float64[np.ndarray, " K"]) -> list[int]:
        """Return the index of the frame on screen at each time; 0 before the first frame."""
        return (np.searchsorted(self.times, seconds + self._rounding, "right") - 1).clip(0).tolist()

    def window(self, start_seconds: float | None, end_seconds: float | None) -> range:
        """Return the frames on screen in [start, end); None: from the start, to the end.

        ValueError for an impossible window, DecodeError for one without any frame.
        """
        start = 0.0 if start_seconds is None else start_seconds
        end = self.end if end_seconds is None else end_seconds
        if start < 0 or (end_seconds is not None and start >= end):
            raise ValueError(f"a clip needs 0 <= start < end, got start {start_seconds} s and end {end_seconds} s")
        if start >= self.end - self._rounding:
            detail = f"the clip starts at {start_seconds} s, the video ends at {self.end:.3f} s"
            raise DecodeError(Reason.OUT_OF_RANGE, detail)
        if end <= self.times[0]:
            detail = f"the clip ends at {end_seconds} s, the first frame appears at {self.times[0]:.3f} s"
            raise DecodeError(Reason.OUT_OF_RANGE, detail)
        first = self.on_screen(np.array([start]))[0]
        stop = int(np.searchsorted(self.times, end - self._rounding))
        return range(first, max(stop, first + 1))

    @property
    def _rounding(self) -> float:
        return min(ROUNDING_SECONDS, 0.25 / self.fps)
