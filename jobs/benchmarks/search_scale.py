"""`search-scale` of `python jobs/benchmark.py`: an index of a million windows, searched in a separate process.

The windows are random: vectors of uniform directions, and windows of a Gaussian mixture that is fitted to a model's
vectors of the clips of an embedded corpus and rotated into the width of the index. The queries are uniform vectors for
the former, and the model's vectors of captions for the latter. The reference of recall is the dual scores of all
windows.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from jobs.benchmarks.two_stage import clips_and_captions, encoded
from jobs.inference.index import EMBEDDED, ROWS_PER_FILE
from jobs.inference.index_files import write_tensors
from jobs.inference.model import load
from jobs.inference.window_index import WindowIndex
from pipeline import storage
from snps3_model.snps3 import dual_scores

MODEL = "drawn"
NUM_COMPONENTS, NUM_ROUNDS = 32, 20
"""Components of the mixture, and rounds of k-means that fit them."""
NUM_FIRST, NUM_EXACT = 10, 5
"""Windows of an answer, and questions for which the exhaustive search is timed."""
MIB = 2**20
Draw = Callable[[int], Float[Tensor, "n T D"]]


def search_scale(
    run: str = "runs/benchmark/main-job",
    folder: str = "corpora/benchmark",
    num_windows: int = 1_000_000,
    width: int = 256,
    num_queries: int = 200,
    num_clips: int = 1000,
) -> dict[str, Any]:
    """Return the time to build, open and search an index, its memory and its recall; for the worse of two kinds of
    windows.

    The mixture is fitted to `num_clips` of the embedded corpus in `folder`. Raise ValueError for a `width` below that
    of the model of `run`.
    """
    model = load(run)
    if width < model.network.config.hidden:
        raise ValueError(f"--width must be at least the {model.network.config.hidden} of the model, got {width}")
    frames, captions = clips_and_captions(model, folder, num_clips, model.data.num_frames)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(width, model.network.config.hidden, generator=generator)).Q.T
    texts = model.embed_texts(captions[:num_queries]).vectors @ turn
    draw_mixture = mixture(encoded(model, frames).vectors, generator)
    kinds: dict[str, tuple[Draw, Tensor]] = {
        "uniform": (
            lambda count: normalize(torch.randn(count, 1, width, generator=generator), dim=-1),
            normalize(torch.randn(num_queries, width, generator=generator), dim=-1),
        ),
        "mixture": (lambda count: draw_mixture(count) @ turn, texts),
    }
    results = {}
    for name, (draw, queries) in kinds.items():
        with tempfile.TemporaryDirectory(dir=folder) as index:
            results[name] = measured(index, draw, queries, model.temperature, num_windows)
        print(json.dumps({name: results[name]}), file=sys.stderr, flush=True)
    highest = {name: max(result[name] for result in results.values()) for name in ("p50_ms", "p95_ms", "start_seconds")}
    recall = min(result["recall_at_10"] for result in results.values())
    return highest | {"recall_at_10": recall, "num_windows": num_windows, "width": width} | results


def mixture(windows: Float[Tensor, "n T D"], generator: torch.Generator) -> Draw:
    """Fit Gaussians with full covariance to windows by k-means; return a function that draws windows of unit vectors.

    A Gaussian with the mean and the covariance of n rows is their mean and a sum of their deviations times n normal
    numbers over √n.
    """
    rows = windows.flatten(1)
    centers = rows[torch.randperm(len(rows), generator=generator)[:NUM_COMPONENTS]]
    for _ in range(NUM_ROUNDS):
        member = torch.cdist(rows, centers).argmin(1)
        groups = [rows[member == number] for number in member.unique()]
        centers = torch.stack([group.mean(0) for group in groups])
    shares = torch.tensor([len(group) for group in groups], dtype=torch.float32)

    def draw(count: int) -> Float[Tensor, "n T D"]:
        counts = torch.multinomial(shares, count, replacement=True, generator=generator).bincount(minlength=len(groups))
        parts = [
            center + torch.randn(int(num), len(group), generator=generator) @ (group - center) / len(group) ** 0.5
            for num, group, center in zip(counts, groups, centers, strict=True)
        ]
        return normalize(torch.cat(parts).unflatten(1, windows.shape[1:]), dim=-1)

    return draw


def measured(
    folder: str, draw: Draw, queries: Float[Tensor, "Q D"], temperature: float, num_windows: int
) -> dict[str, Any]:
    """Write an index of random windows, search it in a new process, and compare with the dual scores of all windows."""
    build_seconds = build_cpu_seconds = 0.0
    for start in range(0, num_windows, ROWS_PER_FILE):
        vectors = draw(min(ROWS_PER_FILE, num_windows - start))
        wall, cpu = time.perf_counter(), time.process_time()
        write_part(f"{folder}/part-{start:09}.parquet", vectors)
        build_seconds += time.perf_counter() - wall
        build_cpu_seconds += time.process_time() - cpu
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows, facts = pool.submit(asked, folder, queries, temperature).result()
    truth = best_of_all(WindowIndex.open(folder, MODEL, queries.shape[1]), queries, temperature)
    hits = [len({*row.tolist()} & {*true.tolist()}) for row, true in zip(rows, truth, strict=True)]
    return facts | {
        "recall_at_10": sum(hits) / truth.numel(),
        "build_seconds": build_seconds,
        "build_cpu_seconds": build_cpu_seconds,
        "disk_mib": sum(file.stat().st_size for file in Path(folder).iterdir()) / MIB,
        "frames": vectors.shape[1],
    }


def write_part(path: str, vectors: Float[Tensor, "n T D"]) -> None:
    """Write windows as `embed` does, without tokens and strips."""
    write_tensors(path, vectors, vectors[:, :0].clone(), MODEL)
    rows = [{"uri": path, "version": "", "start_seconds": 5.0 * place} for place in range(len(vectors))]
    storage.write_table(path, pa.Table.from_pylist(rows, schema=EMBEDDED))


def asked(
    folder: str, queries: Float[Tensor, "Q D"], temperature: float
) -> tuple[list[Int[Tensor, " K"]], dict[str, float]]:
    """Open an index and search it sequentially. Return the rows of each answer, times and memory."""
    before = psutil.Process().memory_info()
    start, start_cpu = time.perf_counter(), time.process_time()
    index = WindowIndex.open(folder, MODEL, queries.shape[1])
    index.first(queries[:1], NUM_FIRST, temperature)
    start_seconds, start_cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    rows, wall, cpu = zip(*(timed(index, query, temperature) for query in queries.split(1)), strict=True)
    after = psutil.Process().memory_info()
    every = WindowIndex(index.parts, exact_bytes=sys.maxsize)
    exact = [timed(every, query, temperature)[1] for query in queries[:NUM_EXACT].split(1)]
    return [*rows], {
        "p50_ms": 1e3 * float(np.percentile(wall, 50)),
        "p95_ms": 1e3 * float(np.percentile(wall, 95)),
        "cpu_p50_ms": 1e3 * float(np.percentile(cpu, 50)),
        "cpu_p95_ms": 1e3 * float(np.percentile(cpu, 95)),
        "all_windows_p50_ms": 1e3 * float(np.median(exact)),
        "start_seconds": start_seconds,
        "start_cpu_seconds": start_cpu_seconds,
        "anonymous_mib": ((after.rss - after.shared) - (before.rss - before.shared)) / MIB,
        "mapped_mib": (after.shared - before.shared) / MIB,
    }


def timed(
    index: WindowIndex, query: Float[Tensor, "1 D"], temperature: float
) -> tuple[Int[Tensor, " K"], float, float]:
    """Return the rows that answer a question, its seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows, _ = index.first(query, NUM_FIRST, temperature)
    return rows, time.perf_counter() - wall, time.process_time() - cpu


def best_of_all(index: WindowIndex, queries: Float[Tensor, "Q D"], temperature: float) -> Int[Tensor, "Q 10"]:
    """Return the rows with the highest dual scores, part by part."""
    values, rows = [], []
    for part, start in zip(index.parts, [0, *index.stops.tolist()], strict=False):
        top = dual_scores(queries, part.vectors, temperature).topk(min(NUM_FIRST, len(part)))
        values.append(top.values)
        rows.append(top.indices + start)
    return torch.cat(rows, 1).gather(1, torch.cat(values, 1).topk(NUM_FIRST).indices)
