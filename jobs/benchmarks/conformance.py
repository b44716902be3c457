"""Unusual files through each available decoder, compared with the frames of the ffmpeg command.

drawn frames ─► ffmpeg, bytes changed ─► file ─┬─► ffmpeg: frames, times ─► checked against the drawn frames ─┐
                                               └─► each decoder, isolated: frames, times ─────────────────────┴─► page
"""

from __future__ import annotations

import collections
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jobs.benchmarks.support.drawn_frames import read_number
from jobs.benchmarks.support.ffmpeg_truth import SIZE_PX, Truth, doubts, drawn_way_up, truth_of
from jobs.benchmarks.support.media_files import MediaFile, Rule, Workshop
from jobs.benchmarks.support.media_table import FILES
from pipeline.decode import decoders
from pipeline.decode.codec import VideoInfo, fit_long_side, open_video
from pipeline.decode.config import Limits
from pipeline.decode.isolation import isolated
from pipeline.decode.video import PyavVideo
from pipeline.records import DecodeError

LIMITS = Limits(seconds=20.0)
NUM_CLIPS, NUM_FRAMES = 3, 8
"""Clips per file, sampled as in training, and frames per clip; another clip has all frames."""
SAME_DB = 99.0
"""PSNR that stands for identical frames."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A decoder's outcome on a file."""

    file: MediaFile
    decoder: str
    fault: str = ""
    """The fault of its frames; empty: none."""
    refusal: str = ""
    worst_db: float | None = None
    worst_seconds: float | None = None
    """Largest distance in seconds between the time that the decoder reports for a frame and its true time."""

    is_own: bool = True
    """Whether the decoder reads the file itself; otherwise PyAV reads it as the fallback."""

    def __str__(self) -> str:
        """Return the text for the page."""
        if self.refusal:
            return f"**{self.refusal}**" if self.fault else self.refusal
        if self.fault:
            return f"**{self.fault}**"
        shown = "equal" if self.worst_db == SAME_DB else f"{self.worst_db:.0f} dB"
        return shown if self.is_own else "by pyav"


def conformance(only: str = "", page: str | None = None, folder: str | None = None) -> dict[str, Any]:
    """Decode the files of the table whose name contains `only` with each available decoder; return totals.

    `page`: the Markdown file to write; `folder`: keeps the files, which are removed by default.
    """
    if not shutil.which("ffmpeg"):
        raise FileNotFoundError("the suite makes its files with the ffmpeg command: apt-get install ffmpeg")
    start, files = time.perf_counter(), [file for file in FILES if only in file.name]
    names = [name for name in decoders.loadable() if name != "torchcodec-cuda"]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        root = Path(folder or scratch)
        root.mkdir(parents=True, exist_ok=True)
        tried = list(pool.map(partial(tried_file, workshop=Workshop(root, FILES), names=names), files))
    outcomes = [outcome for _, _, of_file in tried for outcome in of_file]
    wrong = {file.name: doubted for (_, doubted, _), file in zip(tried, files, strict=True) if doubted}
    result = summary(files, outcomes) | {"doubts": wrong, "seconds": round(time.perf_counter() - start, 1)}
    if page:
        Path(page).write_text(written_page(files, [truth for truth, _, _ in tried], outcomes, names, result))
    return result


def tried_file(
    file: MediaFile, *, workshop: Workshop, names: list[str]
) -> tuple[Truth | None, list[str], list[Outcome]]:
    """Return the frames that ffmpeg shows of a file, their contradictions to the drawn ones, and the outcome of each
    decoder."""
    path = workshop.path(file.name)
    truth, data = truth_of(path, file), path.read_bytes()
    outcomes = [outcome_of(file, data, truth, name) for name in names]
    for outcome in outcomes:
        if outcome.fault and not file.known_fault:
            print(f"{file.name}: {outcome.decoder}: {outcome.fault} {outcome.refusal}".rstrip(), flush=True)
    return truth, doubts(truth, file), outcomes


def outcome_of(file: MediaFile, data: bytes, truth: Truth | None, decoder: str) -> Outcome:
    """Decode a file and compare it."""
    make = partial(Outcome, file=file, decoder=decoder)
    try:
        facts = isolated(look, data, limits=LIMITS, decoder=decoder)
        times, is_own, info = np.array(facts.pop("times")), facts.pop("is_own"), VideoInfo(**facts)
        size, clips = fit_long_side(info.width, info.height, SIZE_PX), drawn_clips(len(times))
        height, width = truth.frames.shape[1:3] if truth else size[::-1]
        if max(abs(size[0] - width), abs(size[1] - height)) > 1:
            return make(fault=f"{info.width}x{info.height} is another shape", worst_db=0.0)
        shown = isolated(show, data, limits=LIMITS, decoder=decoder, clips=clips, known=info, size=(width, height))
    except DecodeError as error:
        is_unread = error.reason in ("crashed", "timeout", "out_of_memory", "failed")
        return make(refusal=f"{error.reason}: {error.detail[:100]}", fault="broke" if is_unread else "")
    if file.rule == Rule.REFUSE or truth is None:
        return make(fault="is not refused" if file.rule == Rule.REFUSE else "ffmpeg refuses it", worst_db=0.0)
    decibel, seconds = compared(shown, times[np.concatenate(clips)], truth, file)
    problems = faults(decibel, seconds, times, truth, file)
    return make(fault=", ".join(problems), worst_db=decibel, worst_seconds=seconds, is_own=is_own)


def look(data: bytes, *, decoder: str) -> dict[str, Any]:
    """Return a decoder's facts about a file, the times of its frames, and whether it reads the file itself."""
    with open_video(data, decoder) as video:
        facts = asdict(video.info) | {"times": video.timeline.times.tolist()}
    with PyavVideo(data) as indexed:
        return facts | {"is_own": decoder == "pyav" or indexed.is_plain}


def show(
    data: bytes, *, decoder: str, clips: list[list[int]], known: VideoInfo, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return the concatenated frames of several clips; the file is opened for each clip, as in training."""
    parts = []
    for clip in clips:
        with open_video(data, decoder, known) as video:
            parts.append(video.frames(clip, size))
    return np.concatenate(parts)


def drawn_clips(num_frames: int) -> list[list[int]]:
    """Return the clips to decode, as frame indices: all frames, sampled clips, and the last frame."""
    rng, count = np.random.default_rng(num_frames), min(NUM_FRAMES, num_frames)
    drawn = [sorted(rng.choice(num_frames, count, replace=False).tolist()) for _ in range(NUM_CLIPS)]
    return [list(range(num_frames)), *drawn, [num_frames - 1]]


def compared(
    shown: UInt8[np.ndarray, "T h w 3"], times: np.ndarray, truth: Truth, file: MediaFile
) -> tuple[float, float]:
    """Return the least PSNR (dB) between a frame and ffmpeg's frame of the same time, and the largest error in time
    (s)."""
    least_db, most_seconds = SAME_DB, 0.0
    for frame, seconds in zip(shown, times, strict=True):
        distance = np.abs(truth.times - seconds)
        at_its_time = np.flatnonzero(distance <= max(truth.half_frame, distance.min()))
        least_db = min(least_db, max(psnr(frame, truth.frames[place]) for place in at_its_time))
        number = read_number(drawn_way_up(frame, file.turned)) if file.is_numbered else None
        same = [place for place, other in enumerate(truth.numbers) if other == number and number is not None]
        if not same:  # it shows no number: take the most similar picture
            alike = np.array([psnr(frame, other) for other in truth.frames])
            same = np.flatnonzero(alike >= min(alike.max(), file.min_db))
        most_seconds = max(most_seconds, float(distance[same].min()))
    return least_db, most_seconds


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB, at most `SAME_DB`."""
    error = float(np.square(one.astype(np.int32) - other).mean())
    return min(SAME_DB, 10 * np.log10(255**2 / error)) if error else SAME_DB


def faults(least_db: float, most_seconds: float, times: np.ndarray, truth: Truth, file: MediaFile) -> list[str]:
    """Return the faults of the frames that a decoder shows."""
    problems = [f"{least_db:.1f} dB"] if least_db < file.min_db else []
    problems += [f"{most_seconds:.3f} s away"] if most_seconds > truth.half_frame else []
    missing = [seconds for seconds in truth.times if np.abs(times - seconds).min() > truth.half_frame]
    if missing and file.rule == Rule.READ:
        problems.append(f"{len(missing)} of {len(truth.times)} frames are missing, the first at {missing[0]:.3f} s")
    return problems


def summary(files: list[MediaFile], outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the totals: of all pairs, and by decoder."""
    shown = [outcome for outcome in outcomes if outcome.worst_db is not None and not outcome.fault]
    read = {outcome.file.name for outcome in shown}
    failures: dict[str, list[str]] = collections.defaultdict(list)
    for outcome in outcomes:
        failures[outcome.decoder] += [outcome.file.name] * bool(outcome.fault and not outcome.file.known_fault)
    return {
        "num_files": len(files),
        "num_pairs": len(outcomes),
        "num_accepted": sum(not outcome.refusal for outcome in outcomes),
        "num_failures": {decoder: len(names) for decoder, names in failures.items()},
        "failures": dict(failures),
        "known_faults": sorted({out.file.name for out in outcomes if out.fault and out.file.known_fault}),
        "num_read_itself": dict(collections.Counter(out.decoder for out in shown if out.is_own)),
        "unread": [file.name for file in files if file.rule == Rule.READ and file.name not in read],
        "worst_db": worst_db(shown, 40.0),
        "worst_db_of_hdr": worst_db(shown, 30.0),
        "worst_frame_time": round(max((out.worst_seconds or 0.0 for out in shown), default=0.0), 4),
    }


def worst_db(outcomes: list[Outcome], wanted: float) -> float:
    """Return the least PSNR of the files that require `wanted` dB."""
    values = [outcome.worst_db for outcome in outcomes if outcome.file.min_db == wanted]
    return round(min((value for value in values if value is not None), default=SAME_DB), 1)


def written_page(
    files: list[MediaFile],
    truths: list[Truth | None],
    outcomes: list[Outcome],
    names: list[str],
    result: dict[str, Any],
) -> str:
    """Return the page of the docs."""
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    cells = {(outcome.file.name, outcome.decoder): str(outcome).replace("|", "/") for outcome in outcomes}
    lines = [PAGE.format(version=version, decoders=" and ".join(names), **result)]
    for rule in Rule:
        lines += [f"## {rule.capitalize()}", "", *_row("file", "codec", "shown", *names)]
        for file, truth in zip(files, truths, strict=True):
            if file.rule == rule:
                shown = (truth.codec, f"{len(truth.times)} frames") if truth else ("", "refused")
                lines += _row(f"`{file.name}`", *shown, *(cells[file.name, name] for name in names))[:1]
        lines.append("")
    known = [f"- `{file.name}`: {file.known_fault}." for file in files if file.known_fault]
    return "\n".join([*lines, "## Known faults", "", *known, ""])


def _row(*cells: str) -> list[str]:
    """Return a row of a table; after the heading also the separator line."""
    return [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]


PAGE = """# Conformance: what each decoder shows of odd files

`python jobs/benchmark.py conformance --page docs/reference/conformance.md` writes this page: {num_files} files, made on
the spot, through {decoders}. The measure is what ffmpeg {version} shows (`-fps_mode passthrough`, autorotated, RGB by
its defaults), checked against the numbers and colours that were drawn. Compared are all frames of a file, then clips as
training draws them, with a long side of 224 pixels and the filter of `pipeline/decode/images.py`: what ffmpeg shows
within half a frame's time must be equal within 40 dB, 30 dB where the picture is HDR.

- HDR (PQ, HLG) is shown by its matrix and range, without tone mapping. Transparent pictures are shown on white.
- Interlaced frames stay woven. Pixels become square by the width. A slanted display matrix is left as it is.
- A frame of a GIF that lasts less than 20 ms lasts 100 ms, as in players. A turn that only some frames name is refused.
- What is damaged is measured by ffmpeg with `-err_detect explode -xerror`.

A cell names the worst PSNR of a frame, or the refusal; "by pyav": the decoder might show another picture of the world,
so PyAV reads all clips of the file; **bold** is a fault. Worst over all files: {worst_db} dB,
{worst_db_of_hdr} dB of HDR, {worst_frame_time} s.
"""
