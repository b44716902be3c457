"""The encoders of the conformance suite, as arguments of the ffmpeg command."""

from __future__ import annotations

from typing import Any

from jobs.benchmarks.support.media_files import MediaFile

X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -crf 16"
X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -crf 14 -x265-params log-level=none:keyint=25"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 14 -b:v 0 -g 20"
H264, HEVC = (
    "-c:v libx264 -preset veryfast -crf 16",
    "-c:v libx265 -preset ultrafast -crf 14 -x265-params log-level=none",
)
AV1 = "-c:v libsvtav1 -preset 12 -crf 16 -g 20"
MPEG2 = "-c:v mpeg2video -q:v 2 -g 12"
ANY = ()
"""Numbers of a file that shows a part of its source: any ascending sequence."""


def clip(name: str, encode: str | None = None, **settings: Any) -> MediaFile:
    """Return a file of the table."""
    return MediaFile(name=name, encode=encode, **settings)


def with_sound(seconds: float, codec: str = "aac") -> str:
    """Return ffmpeg's arguments for a tone as a second stream."""
    return f"-f lavfi -i sine=duration={seconds} -map 0:v -map 1:a -c:a {codec}"


def paused(name: str, every: int, pause: int, encode: str) -> MediaFile:
    """Return a file that pauses for the time of `pause` frames after each `every` frames."""
    command = f"-vf setpts=N+floor(N/{every})*{pause} -fps_mode passthrough {encode}"
    return clip(name, command, seconds=lambda number: (number + number // every * pause) / 25)


def tagged(matrix: str, primaries: str, transfer: str, range: str = "tv", pixels: str = "yuv420p") -> str:
    """Return ffmpeg's arguments that convert to a colour space, and tag the file with it."""
    return (
        f"-vf scale=out_color_matrix={matrix}:out_range={range}:flags=accurate_rnd+full_chroma_int,format={pixels} "
        f"-colorspace {'bt2020nc' if matrix == 'bt2020' else matrix} -color_primaries {primaries} "
        f"-color_trc {transfer} -color_range {range}"
    )
