"""Quality of the filter scores on clips with known motion, blur, black bars and letters: `python jobs/benchmark.py
filters`.

Clips are encoded as H.264 and scored by `pipeline/curation/scores.py`, with two decoders if both are installed; a
threshold at the median of each score shows how often the decoders agree.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.support.fixtures import manifest_row
from jobs.benchmarks.support.measured_clips import FPS, measured_clip
from pipeline.corpus.manifest import SCHEMA
from pipeline.curation.scores import NUM_FRAMES, SAMPLING, SIZE_PX, scores_of
from pipeline.decode import decoders
from pipeline.decode.codec import decode_frames, encode_video, known_info
from pipeline.records import Kind

RANKED = ("motion", "blur", "letterbox", "text")
DECODERS = ("pyav", "decord")


def filters(num_clips: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return the rank correlation of each score with the truth, and the share of clips on which two decoders agree."""
    names = [name for name in DECODERS if name in decoders.loadable()]
    truths: dict[str, list[tuple[float, float]]] = {name: [] for name in RANKED}
    scores: dict[str, list[list[float]]] = {name: [] for name in names}
    cpu_seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_clips):
            clip = measured_clip(seed, number)
            path = Path(folder, f"{number}.mp4")
            path.write_bytes(encode_video(clip.frames, fps=FPS))
            before = time.process_time()
            by_decoder = {name: scored(path, name) for name in names}
            cpu_seconds += (time.process_time() - before) / len(names)
            for name, truth in clip.truth.items():
                truths[name].append((truth, by_decoder[names[0]][name]))
            for name in names:
                scores[name].append([by_decoder[name][score] for score in RANKED])
    result: dict[str, Any] = {"num_clips": num_clips, "clips_per_cpu_second": round(num_clips / cpu_seconds, 1)}
    for name, pairs in truths.items():
        result[f"rank_correlation/{name}"] = round(rank_correlation(*np.array(pairs).T), 4)
    if len(names) > 1:
        first, second = (np.array(scores[name]) for name in names)
        result["same_decision"] = float(((first >= np.median(first, 0)) == (second >= np.median(first, 0))).mean())
    return result


def scored(path: Path, decoder: str) -> dict[str, Any]:
    """Return the scores of a clip, in this process."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names) | manifest_row("measured", path, "")
    size_px = min(SIZE_PX, max(row["width"], row["height"]))
    options = {"num_frames": NUM_FRAMES, "size_px": size_px, "sampling": SAMPLING, "decoder": decoder}
    frames = decode_frames(path.read_bytes(), kind=Kind.VIDEO, known=known_info(row), **options)
    return scores_of(frames, Kind.VIDEO)


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's correlation; equal values share the mean of their ranks."""

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[places]

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])
