"""Measured throughput, against which tests check the planner's formula. One entry per measurement."""

from __future__ import annotations

from dataclasses import dataclass

DECODE_SECONDS_PER_CLIP = 0.157
"""CPU seconds of one core for fetching, decoding and resizing one clip in the measurements below."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Delivered clips per second, and the conditions of the measurement."""

    what: str
    decode_cores: int
    decode_seconds_per_clip: float
    """CPU seconds of one core for fetching, decoding and resizing one clip."""
    uses_ray: bool
    """True: through Ray Data into a Train worker on the same cores; False: a bare pool of processes."""
    clips_per_second: float
    date: str = "2026-11-23"
    hardware: str = "two cores of an AMD EPYC (virtual machine), Python 3.11, Ray 2.60"


MEASURED = (
    Measured(
        what="`ingest`, bare pool",
        decode_cores=2,
        decode_seconds_per_clip=DECODE_SECONDS_PER_CLIP,
        uses_ray=False,
        clips_per_second=12.7,
    ),
    Measured(
        what="`ingest`, Ray Data to a Train worker",
        decode_cores=2,
        decode_seconds_per_clip=DECODE_SECONDS_PER_CLIP,
        uses_ray=True,
        clips_per_second=10.6,
    ),
)


@dataclass(frozen=True, kw_only=True)
class MeasuredManifest:
    """Cost per clip of a manifest in parts with captions as long as WebVid's, without fetching and decoding."""

    num_clips: int
    """Size of the measured manifest."""
    bytes_per_clip: float = 0.0
    """Size in the store."""
    cpu_us_per_clip: float = 0.0


STORED = MeasuredManifest(num_clips=10_000_000, bytes_per_clip=89)
"""Benchmark `scale`: the written parts."""
LOOKED_UP = MeasuredManifest(num_clips=10_000_000, cpu_us_per_clip=46)
"""Benchmark `scale`: lookup of a step's rows by one of eight decode workers."""
PREPARED = MeasuredManifest(num_clips=1_000_000, cpu_us_per_clip=146)
"""Benchmark `prepare-scale`: `prepare` without decoding."""


def manifest_terms(num_clips: int, clips_per_second: float) -> dict[str, float]:
    """Return the cost of a manifest in parts, as in `Plan.manifest`."""
    return {
        "gb": num_clips * STORED.bytes_per_clip / 1e9,
        "lookup_cores": clips_per_second * LOOKED_UP.cpu_us_per_clip / 1e6,
        "prepare_hours": num_clips * PREPARED.cpu_us_per_clip / 1e6 / 3600,
    }
