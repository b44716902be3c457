"""Savings of two-stage retrieval: `two-stage` of `python jobs/benchmark.py`."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.benchmarks.support.fixtures import cores, embedded_corpus, process_pool
from jobs.inference.model import Model, Videos, decode, load
from jobs.tasks import retrieval
from jobs.tasks.retrieval import Queries, Scored, highest, reranked
from pipeline.records import Kind
from pipeline.stream.source import split_rows
from snps3_model.metrics import bootstrap_intervals, placements, recalls_at

KS = (10, 20, 50, 100, 200, 500)
CLIPS_AT_ONCE = 64
T = TypeVar("T")


def two_stage(
    run: str = "runs/benchmark/main-job",
    folder: str = "corpora/benchmark",
    num_clips: int = 1000,
    num_frames: int = 16,
    k: int = 100,
) -> dict[str, Any]:
    """Return time and R@1 of text-to-video retrieval if the cross encoder re-ranks the first k clips, or all clips.

    `total` is everything after decoding: encoding videos and texts, and scoring. Measured in a process with the
    environment of jobs/evaluate.py's workers.
    """
    os.environ |= WORKER_ENVIRONMENT
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(both_stages, run, folder, num_clips, num_frames, k).result()


def both_stages(run: str, folder: str, num_clips: int, num_frames: int, k: int) -> dict[str, Any]:
    """Measure `two_stage` in this process."""
    model = load(run)
    frames, texts = clips_and_captions(model, folder, num_clips, num_frames)
    relevant = retrieval.true_of(texts, [[text] for text in texts])
    videos, video_seconds = timed(lambda: encoded(model, frames))
    queries, text_seconds = timed(lambda: model.embed_texts(texts))
    hits_and_seconds: dict[int, tuple[np.ndarray, float]] = {}
    for count in (num_clips, *KS):
        scores, seconds = timed(partial(scored_in_two_stages, model, queries, videos, count))
        hits_and_seconds[count] = (recalls_at(1, placements(scores, relevant)), seconds)
    exhaustive, all_seconds = hits_and_seconds[num_clips]
    encoding = video_seconds + text_seconds
    curve = [
        {
            "k": count,
            "r1": float(hits.mean()),
            "difference": float((hits - exhaustive).mean()),
            "difference_interval": bootstrap_intervals((hits - exhaustive)[:, None])[:, 0].tolist(),
            "scoring_seconds": seconds,
            "scoring_speedup": all_seconds / seconds,
            "total_speedup": (all_seconds + encoding) / (seconds + encoding),
        }
        for count, (hits, seconds) in sorted(hits_and_seconds.items())
    ]
    chosen = next(point for point in curve if point["k"] == k)
    return {
        "r1_difference": chosen["difference"],
        "scoring_speedup": chosen["scoring_speedup"],
        "total_speedup": chosen["total_speedup"],
        "r1_exhaustive": float(exhaustive.mean()),
        "seconds_for_videos": video_seconds,
        "seconds_for_texts": text_seconds,
        "num_clips": num_clips,
        "num_frames": num_frames,
        "threads": torch.get_num_threads(),
        "curve": curve,
    }


def clips_and_captions(
    model: Model, folder: str, num_clips: int, num_frames: int
) -> tuple[list[np.ndarray], list[str]]:
    """Decode the test clips of an embedded corpus in `folder` for a model; create the corpus if it does not exist."""
    root = Path(folder, f"embedded-{num_clips}-tests")
    manifest = embedded_corpus(root, num_test=num_clips, num_processes=cores())
    rows = split_rows(manifest, "test")[Kind.VIDEO].slice(0, num_clips).to_pylist()
    data = dataclasses.replace(model.data, num_frames=num_frames)
    with process_pool() as pool:
        frames = list(pool.map(partial(decode, data=data), [row["uri"] for row in rows], chunksize=50))
    return frames, [row["captions"][0] for row in rows]


def encoded(model: Model, frames: list[np.ndarray]) -> Videos:
    """Encode all videos, 64 at a time."""
    starts = range(0, len(frames), CLIPS_AT_ONCE)
    parts = [model.embed_frames(np.stack(frames[start : start + CLIPS_AT_ONCE])) for start in starts]
    return Videos(tokens=torch.cat([p.tokens for p in parts]), vectors=torch.cat([p.vectors for p in parts]))


def scored_in_two_stages(model: Model, queries: Queries, videos: Videos, k: int) -> np.ndarray:
    """Return the scores that rank the clips of each text; the cross encoder re-ranks the first k."""
    dual = model.dual_scores(queries, videos).numpy()
    text, clip = np.nonzero(highest(dual, k))
    cross = np.full(dual.shape, np.nan, dual.dtype)
    cross[text, clip] = retrieval.cross_scores(model.network, queries, videos.tokens, text, clip).numpy()
    return reranked(Scored(clip_ids=np.arange(len(videos.vectors)), dual=dual, cross=cross), k)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `function`, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
