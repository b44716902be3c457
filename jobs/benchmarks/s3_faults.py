"""An epoch of clips from a bucket, once from the plain store and once through a store with faults."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from typing import Any

from cluster.connection import connected_ray
from jobs.benchmarks.support.faulty_store import ENDPOINT, Faults, faulty_store, store_endpoint
from jobs.benchmarks.support.fixtures import NUM_FRAMES, SIZE_PX, clip_source, write_small_clips
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline import storage
from pipeline.corpus.manifest import read_manifest
from pipeline.stream.loader import ClipSource, clip_stream

BATCH = 8
"""Clips per step: so many that each step is a separate block."""
KEPT = ["clip_id", "weight", "num_retries"]


def s3_faults(
    num_clips: int = 150, slow_down_every: int = 10, cut_every: int = 50, latency_seconds: float = 0.2
) -> dict[str, Any]:
    """Return clips lost and doubled, retries and seconds of an epoch through a store with and without faults.

    The corpus is created, uploaded to a new bucket of the server in AWS_ENDPOINT_URL, and removed at the end.
    """
    endpoint = store_endpoint()
    faults = Faults(slow_down_every=slow_down_every, cut_every=cut_every, latency_seconds=latency_seconds)
    with storage.temporary_bucket(f"s3://snps3-benchmark-{uuid.uuid4().hex[:12]}") as bucket:
        captions = write_small_clips(bucket, num_clips)
        config = PrepareConfig(corpus="s3-faults", root=f"{bucket}/videos", annotations=(captions,), out=bucket)
        with connected_ray():
            manifest_path = prepare(config).manifest_path
            direct = epoch(manifest_path)
        with faulty_store(endpoint, faults) as store, connected_ray(worker_environment={ENDPOINT: store.endpoint}):
            faulty = epoch(manifest_path)
    return {
        "clips": num_clips,
        **{key: direct[key] + faulty[key] for key in ("lost", "doubled")},
        "retries": faulty["retries"],
        "retries_direct": direct["retries"],
        "faults": dict(store.counts),
        "seconds_direct": direct["seconds"],
        "seconds_faulty": faulty["seconds"],
    }


def epoch(manifest_path: str) -> dict[str, Any]:
    """Return the clips missing, those delivered more than once, retries and seconds of one epoch of training."""
    clip_ids = set(read_manifest(manifest_path).table["clip_id"].to_pylist())
    source = clip_source(manifest_path, num_frames=NUM_FRAMES, size_px=SIZE_PX, batch=BATCH)
    first = as_read(source, num_steps=2)  # warm up: workers start and read the manifest
    start = time.perf_counter()
    rows = as_read(source, num_steps=-(-len(clip_ids) // BATCH))
    seconds = time.perf_counter() - start
    counts = Counter(row["clip_id"] for row in rows if row["weight"])
    return {
        "lost": len(clip_ids - counts.keys()),
        "doubled": sum(count - 1 for count in counts.values()),
        "retries": sum(row["num_retries"] for row in first + rows),
        "seconds": seconds,
    }


def as_read(source: ClipSource, *, num_steps: int) -> list[dict[str, Any]]:
    """Return the outcome of each slot of the first steps, without its pixels."""
    stream = clip_stream(source, start_step=0, stop_step=num_steps, num_ranks=1).select_columns(KEPT)
    return stream.take_all()
