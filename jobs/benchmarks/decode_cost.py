"""CPU seconds per clip of our exact frames against decord's: `decode` of `python jobs/benchmark.py`.

Each clip has 8 frames, one drawn from each of 8 segments, at a long side of 224 pixels. The decoders alternate on
the same draws, each with one thread. Generated files have 300 frames of 568×320 at 30 frames per second, with the
encoder's defaults except for the options that a row names.
"""

from __future__ import annotations

import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import av
import decord
import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.data_path import Clips, moving_texture
from jobs.benchmarks.support.fixtures import NUM_FRAMES, SIZE_PX, data_folder
from pipeline.decode.codec import fit_long_side
from pipeline.decode.pictures import Picture
from pipeline.decode.sampling import Policy, sample_frames
from pipeline.decode.video import PyavVideo, encode

GENERATED: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "h264 GOP 250": ("libx264", {"g": "250"}),
        "h264 GOP 30": ("libx264", {"g": "30"}),
        "hevc GOP 250": ("libx265", {"x265-params": "keyint=250:log-level=error"}),
        "hevc GOP 30": ("libx265", {"x265-params": "keyint=30:log-level=error"}),
        "vp9": ("libvpx-vp9", {"b": "800k", "cpu-used": "4", "row-mt": "0"}),
        "av1": ("libsvtav1", {"preset": "8"}),
    }
)
"""Row → encoder, and the options that are set."""
SIZE, RATE = (568, 320), 30


def decode(data: str | None = None, num_draws: int = 8, num_rounds: int = 3) -> dict[str, Any]:
    """Return the CPU seconds of our reader over decord's on each file, and whether its pixels equal a full decode.

    AV1, which decord does not read, is compared with a full decode by PyAV.
    """
    texture = moving_texture(0, Clips(width=SIZE[0], height=SIZE[1], fps=RATE))
    files = {
        name: encode(texture, codec, fps=RATE, options=options, format="webm" if "vp9" in codec else "mp4")
        for name, (codec, options) in GENERATED.items()
    }
    videos = sorted((data_folder(data, "the real clips") / "videos").glob("*.mp4"))
    files |= {f"h264 {path.stem}": path.read_bytes() for path in videos}
    rows = []
    for name, content in files.items():
        rows.append({"name": name} | row_of(content, num_draws, num_rounds))
        print(rows[-1], file=sys.stderr, flush=True)
    ratios = {row["name"]: row["ratio"] for row in rows}
    h264 = [ratio for name, ratio in ratios.items() if name.startswith("h264")]
    return {
        "cpu_over_decord": max(h264),
        "cpu_over_decord_median": statistics.median(h264),
        "cpu_over_others": max(ratio for name, ratio in ratios.items() if not name.startswith("h264")),
        "identical": all(row["identical"] for row in rows),
        "rows": rows,
    }


def row_of(data: bytes, num_draws: int, num_rounds: int) -> dict[str, Any]:
    """Return the median CPU milliseconds of a clip by each decoder, and the ratio of the two."""
    with PyavVideo(data) as video:
        info, codec = video.info, video.codec
    size = fit_long_side(info.width, info.height, SIZE_PX)
    rng = np.random.default_rng(0)
    draws = [sample_frames(NUM_FRAMES, info.num_frames, Policy.RANDOM, rng=rng) for _ in range(num_draws)]
    whole = full_decode(data, size)

    def ours(indices: Sequence[int]) -> NDArray[np.uint8]:
        with PyavVideo(data, info) as video:
            return video.frames(indices, size)

    def theirs(indices: Sequence[int]) -> NDArray[np.uint8]:
        if codec == "libdav1d":
            return full_decode(data, size)[indices]
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1, width=size[0], height=size[1])
        return reader.get_batch(list(indices)).asnumpy()

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for indices, _ in itertools.product(draws, range(num_rounds)):
        for name, read in (("ours", ours), ("theirs", theirs)):
            seconds[name].append(cpu_seconds(read, indices))
    cpu_ms = {name: 1e3 * statistics.fmean(values) for name, values in seconds.items()}
    return {
        "ratio": cpu_ms["ours"] / cpu_ms["theirs"],
        "cpu_ms": cpu_ms["ours"],
        "cpu_ms_of_other": cpu_ms["theirs"],
        "other": "PyAV, full decode" if codec == "libdav1d" else "decord",
        "identical": all(np.array_equal(ours(indices), whole[indices]) for indices in draws),
    }


def cpu_seconds(read: Callable[[Sequence[int]], NDArray[np.uint8]], indices: Sequence[int]) -> float:
    """Return the CPU seconds of all threads."""
    before = time.process_time()
    read(indices)
    return time.process_time() - before


def full_decode(data: bytes, size: tuple[int, int]) -> NDArray[Any]:
    """Return every frame of a file, (T, H, W, 3), decoded in order by PyAV with one thread."""
    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].thread_count = 1
        picture = Picture()
        return np.stack([picture.of(frame, size) for frame in container.decode(video=0)])
