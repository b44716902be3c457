"""`serve` of `python jobs/benchmark.py`: clients that query an index of random windows while a replica is killed."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from torch.nn.functional import normalize

from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.benchmarks.support.search_clients import ask_for
from jobs.benchmarks.support.served_app import served_app
from jobs.inference.index import EMBEDDED, ROWS_PER_FILE
from jobs.inference.index_files import INDEX, parts_in, write_tensors
from jobs.inference.indexed_files import IndexedFiles
from jobs.inference.model import load
from jobs.run import run_files
from jobs.serving.app import make_app
from jobs.serving.library import Library
from jobs.serving.replicas import RETRY_SECONDS, GoneError, Replicas, ask_actor, start_replicas
from pipeline import storage
from pipeline.synthetic.clips import CorpusConfig, clips_of

WARM_SECONDS = 2.0
WINDOWS_PER_FILE, WINDOW_SECONDS = 128, 10.0


def serve(
    run: str = "runs/tiny",
    num_windows: int = 100_000,
    num_clients: int = 16,
    num_replicas: int = 2,
    seconds: float = 20.0,
    reranked: int = 50,
    rate: float = 60.0,
) -> dict[str, Any]:
    """Return response times of `rate` dual searches a second with and without a killed replica, and of searches whose
    first `reranked` windows the cross encoder re-ranks; the same for clients without a pause; and CPU milliseconds of
    clients, server and replicas per request.

    The windows have uniform directions; the sentences are those of the embedded corpus. A request without moments in
    its answer is lost. Without replicas the server's own process answers, nothing is killed, and no Ray starts.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_index(folder, run, num_windows)
        actors, library = [], None
        if num_replicas:
            stack.enter_context(connected_ray(worker_environment=WORKER_ENVIRONMENT))
            actors = start_replicas(folder, run, count=num_replicas, num_cpus=1, rerank=reranked)
            library = Replicas(IndexedFiles.read(parts_in(folder), "/videos"), actors)
        with served_app(make_app(library or Library.open(folder))) as port:
            ask = functools.partial(asked, actors, port=port, num_clients=num_clients)
            ask(seconds=WARM_SECONDS)
            results = {
                "dual": ask(seconds=seconds, rate=rate),
                **({"killed": ask(seconds=seconds, rate=rate, kills=True)} if actors else {}),
                f"rerank_{reranked}": ask(seconds=seconds, rate=rate, rerank=reranked),
                "unpaced": ask(seconds=seconds),
                f"unpaced_rerank_{reranked}": ask(seconds=seconds, rerank=reranked),
            }
    sizes = {"num_windows": num_windows, "num_clients": num_clients, "num_replicas": num_replicas}
    lost = sum(result["lost"] for result in results.values())
    return sizes | results["dual"] | results | {"lost": lost}


def write_index(folder: str, run: str, num_windows: int) -> None:
    """Write an index of random windows for a model."""
    model, weights = load(run), run_files.weights_hash(run)
    width, generator = model.network.config.hidden, torch.Generator().manual_seed(0)
    for start in range(0, num_windows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, num_windows - start)
        vectors = normalize(torch.randn(count, model.data.num_frames, width, generator=generator), dim=-1)
        path = f"{folder}/part-{start:09}.parquet"
        write_tensors(path, vectors, vectors.clone(), weights)
        rows = [
            {
                "uri": f"/videos/{row // WINDOWS_PER_FILE:06}.mp4",
                "version": "1 0.0",
                "start_seconds": row % WINDOWS_PER_FILE * WINDOW_SECONDS,
                "end_seconds": (row % WINDOWS_PER_FILE + 1) * WINDOW_SECONDS,
            }
            for row in range(start, start + count)
        ]
        storage.write_table(path, pa.Table.from_pylist(rows, schema=EMBEDDED))
    run_files.write_json(f"{folder}/{INDEX}", {"model": weights, "videos": "/videos", "run": run})


def asked(
    actors: list[Any],
    *,
    port: int,
    num_clients: int,
    seconds: float,
    rate: float | None = None,
    rerank: int = 0,
    kills: bool = False,
) -> dict[str, Any]:
    """Run clients in another process for `seconds`, `rate` requests a second in all, or without a pause. `kills`: kill
    a replica after a third of that time."""
    texts = [caption.text for clip in clips_of(CorpusConfig()) for caption in clip.captions]
    pids = [process_id(actor) for actor in actors]
    processes = [psutil.Process(), *map(psutil.Process, pids)]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(ask_for, port, texts, 1, 0.0, 0, None).result()  # wait for the process to start
        clients = pool.submit(ask_for, port, texts, num_clients, seconds, rerank, rate)
        if kills:
            time.sleep(seconds / 3)
            os.kill(pids[0], signal.SIGKILL)
        milliseconds, lost, wall, cpu = clients.result()
    used = [
        0.0 if kills else sum(process.cpu_times()[:2]) - cpu for process, cpu in zip(processes, before, strict=True)
    ]
    count = len(milliseconds)
    costs = {"server_cpu_ms": 1e3 * used[0] / count, "replica_cpu_ms": 1e3 * sum(used[1:]) / count}
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "requests_per_second": count / wall,
        "num_requests": count,
        "lost": lost,
        "client_cpu_ms": 1e3 * cpu / count,
    } | ({} if kills else costs)


def process_id(actor: Any) -> int:
    """Return the id of a replica's process, once it answers."""
    while True:
        with contextlib.suppress(GoneError):
            return ask_actor(actor, "process_id")
        time.sleep(RETRY_SECONDS)
