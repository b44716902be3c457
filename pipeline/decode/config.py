"""Settings of decoding. Imports nothing slow, since every command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video make a clip."""

    rule: Literal["segments", "dense", "fps", "key_frames"] = "segments"
    """`segments`: one from each of as many equal parts. `dense`: every `stride`-th of one stretch. `fps`:
    `frames_per_second` of one stretch. `key_frames`: frames that the file stores whole, and no others are decoded."""
    stride: int = 4
    """Distance in frames under `dense`."""
    frames_per_second: float = 2.0
    """Rate of a clip under `fps`; above the video's own, frames repeat."""
    clock: Literal["time", "index"] = "time"
    """How places are counted. `time`: as a player shows them, even if the rate varies or a stream begins late.
    `index`: in frames, as published: seconds times the mean rate."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"data.sampling.stride must be at least 1, got {self.stride}")
        if not self.frames_per_second > 0:
            raise ValueError(f"data.sampling.frames_per_second must be above 0, got {self.frames_per_second}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on decoding one clip. A clip that exceeds them twice is rejected."""

    seconds: float = 60.0
    """Time for one clip."""
    memory_gib: float = 4.0
    """Memory of the process that decodes, the file's bytes included."""

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_gib"):
            if getattr(self, name) <= 0:
                raise ValueError(f"the limit {name} must be above 0, got {getattr(self, name)}")
