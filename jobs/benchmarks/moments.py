"""Moments in long videos: `moments` of `python jobs/benchmark.py`.

The clips of a test split are joined into a few long files, with breaks of random length between them. The index has
windows of the median clip's length with half of it as the stride; each clip's caption is a question.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from jobs.inference.index import EmbedConfig
from jobs.inference.indexed_files import Filters
from jobs.inference.local_index import embed_here
from jobs.run import run_files
from jobs.run.run_identity import config_of
from jobs.serving.library import Library, Moment
from pipeline.corpus.media import read
from pipeline.decode.codec import encode_video, open_video
from pipeline.records import Kind
from pipeline.stream.source import split_rows

BREAK_SECONDS = (0.5, 3.0)
NUM_RESULTS = 5
MIN_COVERED, MAX_LENGTH = 0.5, 2.0
"""As shares of the clip's length: the least overlap of a hit with the clip, and the greatest length of a hit."""


@dataclass(frozen=True, kw_only=True)
class JoinedClip:
    """The position of a clip in a long file."""

    name: str
    start_seconds: float
    end_seconds: float
    caption: str


def moments(
    run: str = "runs/tiny", folder: str | None = None, num_files: int = 10, max_clips: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Return the share of captions whose clip is hit by the first, and by one of the first five moments; and the median
    seconds between the start of the clip and of the first moment in its file.

    `run`: a trained run, whose config names the test split. `folder` keeps the long files and their index.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        data = config_of(run).data
        rows = split_rows(data.manifest, data.test_split)[Kind.VIDEO].slice(0, max_clips)
        clips = write_long_files(root / "videos", rows, num_files, seed)
        seconds = float(np.median([clip.end_seconds - clip.start_seconds for clip in clips]))
        index = str(root / "index")
        embed_here(
            EmbedConfig(
                run=run, videos=str(root / "videos"), out=index, window_seconds=seconds, stride_seconds=seconds / 2
            )
        )
        library = Library.open(index)
        answers = [library.by_text(clip.caption, Filters(), num=NUM_RESULTS) for clip in clips]
    clip_level = run_files.read_json(f"{run}/results.json")["test/t2v/r5"]
    return measured(clips, answers) | {
        "clip_level_r5": clip_level,
        "hit_at_5_over_r5": measured(clips, answers)["hit_at_5"] / clip_level,
        "window_seconds": seconds,
        "num_windows": len(library.index),
        "num_files": num_files,
    }


def write_long_files(folder: Path, rows: pa.Table, num_files: int, seed: int) -> list[JoinedClip]:
    """Join clips in random order into `num_files` videos of `folder`; return the position of each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    joined: list[JoinedClip] = []
    for number, places in enumerate(np.array_split(rng.permutation(len(rows)), num_files)):
        parts: list[UInt8[np.ndarray, "T H W 3"]] = []
        name, rate, length = f"{number:02}.mp4", 0.0, 0
        for row in rows.take(places).to_pylist():
            with open_video(read(row["uri"])) as video:
                frames, rate = video.frames(range(video.info.num_frames)), video.info.fps
            pause = np.full((round(rate * rng.uniform(*BREAK_SECONDS)), *frames.shape[1:]), 128, np.uint8)
            parts += [pause, frames]
            start, length = length + len(pause), length + len(pause) + len(frames)
            joined.append(
                JoinedClip(name=name, start_seconds=start / rate, end_seconds=length / rate, caption=row["captions"][0])
            )
        (folder / name).write_bytes(encode_video(np.concatenate(parts), fps=round(rate)))
    return joined


def measured(clips: Sequence[JoinedClip], answers: Sequence[Sequence[Moment]]) -> dict[str, Any]:
    """Return the measures over all questions."""
    hits = np.array([place_of_hit(clip, answer) for clip, answer in zip(clips, answers, strict=True)])
    off = [seconds_off(clip, answer) for clip, answer in zip(clips, answers, strict=True)]
    in_file = [seconds for seconds in off if seconds is not None]
    return {
        "hit_at_1": float((hits == 0).mean()),
        "hit_at_5": float((hits < NUM_RESULTS).mean()),
        "seconds_off": float(np.median(in_file)),
        "share_in_file": len(in_file) / len(clips),
        "num_questions": len(clips),
    }


def place_of_hit(clip: JoinedClip, answer: Sequence[Moment]) -> int:
    """Return the rank of the first hit, from 0; `NUM_RESULTS` if there is none."""
    return next((place for place, moment in enumerate(answer) if is_hit(clip, moment)), NUM_RESULTS)


def is_hit(clip: JoinedClip, moment: Moment) -> bool:
    """Return whether a moment covers at least half of a clip, and is at most twice as long."""
    if moment.name != clip.name or moment.start_seconds is None or moment.end_seconds is None:
        return False
    length = clip.end_seconds - clip.start_seconds
    covered = min(moment.end_seconds, clip.end_seconds) - max(moment.start_seconds, clip.start_seconds)
    is_short = moment.end_seconds - moment.start_seconds <= MAX_LENGTH * length
    return is_short and covered >= MIN_COVERED * length - 1e-9


def seconds_off(clip: JoinedClip, answer: Sequence[Moment]) -> float | None:
    """Return the seconds between the start of the clip and of the first moment in its file; None without such a
    moment."""
    in_file = (moment.start_seconds for moment in answer if moment.name == clip.name)
    return next((abs(start - clip.start_seconds) for start in in_file if start is not None), None)
