"""Throughput that was measured, against which the planner's formula is checked. One row per measurement."""

from __future__ import annotations

from dataclasses import dataclass

DECODE_SECONDS_PER_CLIP = 0.157
"""CPU seconds of one core for fetching, decoding and resizing one clip, as the throughputs below were measured with."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Clips that arrived per second, and under which conditions."""

    what: str
    decode_cores: int
    decode_seconds_per_clip: float
    """CPU seconds of one core for fetching, decoding and resizing one clip."""
    uses_ray: bool
    """Through Ray Data into a Train worker on the same cores; otherwise a bare pool of processes."""
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
    """What clips took in a manifest in parts, beside fetching and decoding."""

    what: str
    num_clips: int
    bytes_per_clip: float | None = None
    """In the store."""
    cpu_us_per_clip: float | None = None


MANIFESTS = (
    MeasuredManifest(what="`scale`, parts as written", num_clips=10_000_000, bytes_per_clip=89),
    MeasuredManifest(what="`scale`, one of eight decode workers", num_clips=10_000_000, cpu_us_per_clip=46),
    MeasuredManifest(what="`prepare-scale`", num_clips=300_000, cpu_us_per_clip=128),
)
