"""Files with flipped bits, cuts, holes and swapped boxes through the probe: `mutations` of `python jobs/benchmark.py`.

No mutation may kill a worker, hang past the limit or decode differently from ffmpeg. We reject what ffmpeg rejects at
its first error.
"""

from __future__ import annotations

import collections
import io
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.benchmarks.conformance import Outcome, look, outcome_of
from jobs.benchmarks.support import file_surgery
from jobs.benchmarks.support.drawn_frames import drawn_frames
from jobs.benchmarks.support.ffmpeg_truth import truth_of
from jobs.benchmarks.support.media_files import MediaFile, Rule
from pipeline.decode.codec import probe
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.decode.video import encode
from pipeline.records import DecodeError, Kind

LIMITS = Limits(seconds=5.0, memory_gib=2.0)
VIDEOS = {
    "h264.mp4": ("mp4", "libx264", {"g": "12"}),
    "h264.mkv": ("matroska", "libx264", {"g": "12"}),
    "h264.ts": ("mpegts", "libx264", {"g": "12"}),
    "h264.flv": ("flv", "libx264", {"g": "12"}),
    "hevc.mp4": ("mp4", "libx265", {"x265-params": "keyint=12:log-level=none"}),
    "mpeg4.avi": ("avi", "mpeg4", {"g": "12"}),
    "mpeg2.mpg": ("mpeg", "mpeg2video", {"g": "12", "bf": "2"}),
    "vp9.webm": ("webm", "libvpx-vp9", {"g": "12"}),
}
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
NUM_FRAMES, FPS, SIZE = 36, 30, (96, 64)
BROKEN = ("failed",)
"""Reasons that no file may have: they are bugs of ours. The decode process contains crashes, hangs and memory use."""


def mutations(count: int = 10_000, seed: int = 0, num_threads: int = 2) -> dict[str, Any]:
    """Mutate each kind of file in turn; count the outcomes of the mutations, and name those that broke a rule."""
    if not shutil.which("ffmpeg"):
        raise FileNotFoundError("mutations are compared with the ffmpeg command: apt-get install ffmpeg")
    names = sorted(originals())
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_threads) as pool:
        judge = partial(judged, seed=seed, folder=Path(folder))
        verdicts = list(pool.map(judge, range(count), [names[number % len(names)] for number in range(count)]))
    wrong = {number: verdict for number, verdict in enumerate(verdicts) if verdict.startswith("wrong")}
    return {
        "num_broken": sum("broke" in verdict for verdict in wrong.values()),
        "num_unequal": sum("broke" not in verdict for verdict in wrong.values()),
        "verdicts": dict(collections.Counter(verdict.partition(":")[0] for verdict in verdicts)),
        "wrong": {f"{names[number % len(names)]} {number}": verdict for number, verdict in wrong.items()},
        "seed": seed,
    }


def judged(number: int, name: str, *, seed: int, folder: Path) -> str:
    """Return the outcome of a mutation: the reason of its rejection, equal, undecidable or wrong."""
    data = mutated(originals()[name], np.random.default_rng((seed, number)))
    outcome = probed(data, kind_of(name))
    if outcome in BROKEN:
        return f"wrong: broke: {outcome}"
    if outcome != "usable":
        return outcome
    if kind_of(name) == Kind.IMAGE:
        return "undecidable"
    path = folder / f"{number}-{name}"
    path.write_bytes(data)
    file = replace(MediaFile(name=path.name), rule=Rule.MAY, is_numbered=False)
    truth = truth_of(path, file)
    if truth is not None:  # if the beginning is damaged, versions of FFmpeg differ in the start of the clock
        first = isolated(look, data, limits=LIMITS, decoder="pyav")["times"][0]
        truth = replace(truth, times=truth.times - truth.times[0] + first)
    comparison: Outcome = outcome_of(file, data, truth, "pyav")
    path.unlink()
    return f"wrong: {comparison.fault}" if comparison.fault else "unreadable" if comparison.refusal else "equal"


def probed(data: bytes, kind: Kind) -> str:
    """Return `usable`, or the reason for which prepare would reject the file."""
    try:
        isolated(probe, data, limits=LIMITS, kind=kind, start_seconds=None, end_seconds=None, decoder="pyav")
    except DecodeError as error:
        return str(error.reason)
    return "usable"


def kind_of(name: str) -> Kind:
    """Return whether the original with this name is a video or an image."""
    return Kind.VIDEO if name in VIDEOS else Kind.IMAGE


@cache
def originals() -> dict[str, bytes]:
    """Return name → bytes of undamaged files."""
    frames = drawn_frames(NUM_FRAMES, *SIZE)
    files = {
        name: encode(frames, codec, fps=FPS, options=options, format=format)
        for name, (format, codec, options) in VIDEOS.items()
    }
    for format in PICTURES:
        buffer = io.BytesIO()
        Image.fromarray(frames[0]).save(buffer, format)
        files[format] = buffer.getvalue()
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with one or a few flipped bits, cut, with a hole, with bytes between, or with swapped boxes."""
    first, last = np.sort(rng.random(2))
    edit = (
        file_surgery.flips(int(rng.integers(1, 4)), int(rng.integers(2**31)), 0.0, 1.0),
        file_surgery.flips(int(rng.integers(4, 40)), int(rng.integers(2**31)), 0.0, 1.0),
        file_surgery.cut(float(last)),
        file_surgery.hole(float(first), float(min(last, first + 0.1)), filled=bool(rng.integers(2))),
        lambda original: original[: int(first * len(data))] + rng.bytes(7) + original[int(first * len(data)) :],
        file_surgery.swapped_boxes if data[4:8] == b"ftyp" else file_surgery.cut_head(float(first) / 4),
    )[int(rng.integers(6))]
    return edit(data)
