"""What fine-tuning and two-stage retrieval give: `downstream` and `two-stage` of `python jobs/benchmark.py`."""

from __future__ import annotations

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

from jobs import evaluation
from jobs.evaluation import Gallery, Queries, Scored, highest, reranked
from jobs.model import Model, load
from pipeline.loader import split_rows
from pipeline.records import Kind
from snps3_model.metrics import bootstrap_intervals, placements, recalls_at
from snps3_model.snps3 import dual_scores

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
    """Time and R@1 of text-to-video retrieval whose first k clips the cross encoder orders, against all clips.

    `total` is everything after decoding: encoding videos and texts, and scoring.
    """
    model = load(run)
    manifest = many_tests(Path(folder), num_clips)
    rows = split_rows(manifest, "test")[Kind.VIDEO].slice(0, num_clips).to_pylist()
    paths, texts = [row["uri"] for row in rows], [row["captions"][0] for row in rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        frames = list(pool.map(partial(decode, run=run, num_frames=num_frames), paths, chunksize=50))
    relevant = evaluation.same_caption(texts)
    videos, video_seconds = timed(lambda: encoded(model, frames))
    asked, text_seconds = timed(lambda: model.embed_texts(texts))
    queries = Queries(token_ids=asked.token_ids, token_mask=asked.token_mask, vectors=asked.vectors)
    found: dict[int, tuple[np.ndarray, float]] = {}
    for count in (num_clips, *KS):
        scores, seconds = timed(partial(scored_in_two_stages, model, queries, videos, count))
        found[count] = (recalls_at(1, placements(scores, relevant)), seconds)
    exhaustive, all_seconds = found[num_clips]
    encoding = video_seconds + text_seconds
    curve = [
        {
            "k": count,
            "r1": float(hits.mean()),
            "difference": float((hits - exhaustive).mean()),
            "difference_interval": bootstrap_intervals((hits - exhaustive)[:, None], np.ones(len(hits)))[:, 0].tolist(),
            "scoring_seconds": seconds,
            "scoring_speedup": all_seconds / seconds,
            "total_speedup": (all_seconds + encoding) / (seconds + encoding),
        }
        for count, (hits, seconds) in sorted(found.items())
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


def many_tests(folder: Path, num_clips: int) -> str:
    """Path of the manifest of an embedded corpus with so many test clips, made if it is not there."""
    from jobs.prepare import PrepareConfig, prepare
    from pipeline.synthetic.clips import CorpusConfig
    from pipeline.synthetic.corpus import make_corpus

    root = folder / f"embedded-{num_clips}-tests"
    path = root / "manifest" / "manifest.parquet"
    if not path.exists():
        sizes = CorpusConfig(
            num_train_videos=70, num_train_images=10, num_val=8, num_test=num_clips, num_temporal_groups=2
        )
        make_corpus(sizes, root, num_processes=len(os.sched_getaffinity(0)))
        annotations = tuple(sorted(str(file) for file in (root / "annotations").glob("*.jsonl")))
        prepare(PrepareConfig(corpus=root.name, root=str(root), out=str(path.parent), annotations=annotations))
    return str(path)


def decode(path: str, run: str, num_frames: int) -> np.ndarray:
    """A video's frames, in a process of its own."""
    return load(run).with_frames(num_frames).decode(path)


def encoded(model: Model, frames: list[np.ndarray]) -> Gallery:
    """All videos, some at a time."""
    parts = [
        model.embed_frames(np.stack(frames[start : start + CLIPS_AT_ONCE]))
        for start in range(0, len(frames), CLIPS_AT_ONCE)
    ]
    tokens, vectors = torch.cat([part.tokens for part in parts]), torch.cat([part.vectors for part in parts])
    return Gallery(clip_ids=torch.arange(len(frames)), frame_tokens=tokens, frame_vectors=vectors)


def scored_in_two_stages(model: Model, queries: Queries, gallery: Gallery, k: int) -> np.ndarray:
    """The scores that order the clips of each text: of the cross encoder too for the first k."""
    dual = dual_scores(queries.vectors, gallery.frame_vectors, model.temperature).numpy()
    text, clip = np.nonzero(highest(dual, k))
    cross = np.full(dual.shape, np.nan, dual.dtype)
    cross[text, clip] = evaluation.cross_scores(model.network, queries, gallery, text, clip).numpy()
    return reranked(Scored(clip_ids=gallery.clip_ids.numpy(), dual=dual, cross=cross), k)


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What `function` gives, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start
