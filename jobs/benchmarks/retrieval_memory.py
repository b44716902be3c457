"""`retrieval-memory` of `python jobs/benchmark.py`: memory of two-stage retrieval of all clips by all captions.

Vectors are random, and so are the scores of the cross encoder, whose memory is that of one pass; the rest is that of an
evaluation with one rank.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cluster.world import World
from jobs.tasks import retrieval
from jobs.tasks.retrieval import Gallery, Queries, RetrievalOptions, Scored

MIB = 2**20


class DrawnScores(nn.Module):
    """A cross encoder that scores a pair by sums over its ids and tokens."""

    def score(self, token_ids: Tensor, token_mask: Tensor, tokens: Tensor) -> Tensor:
        """Return a number per pair."""
        return (token_ids.sum(1) * 0.37).sin() + tokens.sum((1, 2))


def retrieval_memory(
    num_clips: tuple[int, ...] = (2500, 5000, 10_000), k: int = 100, num_frames: int = 4, width: int = 96
) -> dict[str, Any]:
    """Return peak memory and seconds of scoring and of the metrics, by number of clips, each with one caption."""
    by_clips = {}
    for num in num_clips:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            by_clips[str(num)] = pool.submit(measured, num, k, num_frames, width).result()
    largest = by_clips[str(max(num_clips))]
    return {"peak_mib": largest["peak_mib"], "bytes_per_pair": largest["bytes_per_pair"], "by_clips": by_clips}


def measured(num_clips: int, k: int, num_frames: int, width: int) -> dict[str, float]:
    """Score in this process. Return its peak memory above the start, its time, and two of the metrics."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of memory
    before, wall, cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    scored = drawn_scores(num_clips, k, num_frames, width)
    metrics = retrieval.retrieval_results(scored, np.eye(num_clips, dtype=bool), "test", RetrievalOptions(rerank=k))
    peak = peak_bytes() - before
    return {
        "peak_mib": peak / MIB,
        "bytes_per_pair": peak / num_clips**2,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        **{name: metrics[f"test/{name}/mean_rank"] for name in ("t2v", "v2t")},
    }


def drawn_scores(num_clips: int, k: int, num_frames: int, width: int) -> Scored:
    """Score random captions with random clips; the scores are right more often than not."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(num_clips, 1, width, generator=generator)
    frames = normalize(clips + 0.5 * torch.randn(num_clips, num_frames, width, generator=generator), dim=-1)
    ids = torch.randint(100, (num_clips, 4), generator=generator)
    texts = normalize(clips[:, 0] + 2 * torch.randn(num_clips, width, generator=generator), dim=-1)
    return retrieval.score(
        DrawnScores(),  # pyright: ignore[reportArgumentType]
        Queries(token_ids=ids, token_mask=torch.ones_like(ids, dtype=torch.bool), vectors=texts),
        Gallery(clip_ids=torch.arange(num_clips), frame_tokens=frames[:, :1], frame_vectors=frames),
        World(rank=0, size=1, device=torch.device("cpu")),
        temperature=0.05,
        choose=functools.partial(retrieval.first_of_both, k=k),
    )


def peak_bytes() -> int:
    """Return the highest resident memory of this process since the last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
