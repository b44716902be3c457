"""The data path, measured: `ingest`, `loaders`, `cache` and `soak` of `python jobs/benchmark.py`.

All on generated clips: by default 200 of 10 s at 568×320, 30 fps, one key frame in 250, each with a texture of its own
that moves. What is compared decodes the same clips to 8 frames of 224², with the same decoder on as many cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster import run as cluster_run
from cluster.connection import connected_ray
from jobs.benchmarks.support.processes import MARKER, bytes_spilled, pss_bytes, sampled
from jobs.corpus.packing import PackConfig, pack
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline.corpus.fetching import fetch
from pipeline.decode.codec import encode_video
from pipeline.offline.shards import Content, PackingConfig
from pipeline.records import Kind
from pipeline.storage import upload_folder
from pipeline.stream.epoch_plan import Plan
from pipeline.stream.loader import ClipSource, clip_rows, clip_stream, decode_slot, in_plan_order, split_rows

NUM_FRAMES, SIZE_PX, BATCH = 8, 224, 4
WARM_SHARE = 0.1
"""Share of the clips before the steady state."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Generated clips, made once and kept."""

    count: int = 200
    width: int = 568
    height: int = 320
    seconds: int = 10
    fps: int = 30
    gop: int = 250

    @property
    def name(self) -> str:
        """Of their folder: equal settings share it."""
        return f"{self.count}-{self.width}x{self.height}-{self.seconds}s-{self.fps}fps-gop{self.gop}"


def made_clips(clips: Clips, folder: str) -> str:
    """Path of the manifest of `clips`, which are made and prepared below `folder` if they are not there."""
    root = Path(folder, clips.name)
    if not (root / "manifest" / "manifest.parquet").exists():
        (root / "videos").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(cores(), mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(write_clip, clips=clips, folder=str(root / "videos")), range(clips.count)))
        prepare(PrepareConfig(corpus=clips.name, root=str(root / "videos"), out=str(root / "manifest")))
    return str(root / "manifest" / "manifest.parquet")


def write_clip(index: int, clips: Clips, folder: str) -> None:
    """A texture of its own that drifts under a second one, as H.264 with a caption beside it."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 255, (clips.height // 8 + 40, clips.width // 8 + 40, 3), np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1) // 2 + rng.integers(0, 40, (1, 1, 3), np.uint8)
    grain = rng.integers(0, 24, (*texture.shape[:2], 1), np.uint8)
    texture, velocity = texture + grain, rng.uniform(0.2, 1.0, 2)
    frames = []
    for time_index in range(clips.seconds * clips.fps):
        y, x = (velocity * time_index).astype(int) % 300
        frames.append(texture[y : y + clips.height, x : x + clips.width])
    video = encode_video(np.stack(frames), fps=clips.fps, gop=clips.gop)
    Path(folder, f"{index:04}.txt").write_text(f"texture number {index} moves\n")
    Path(folder, f"{index:04}.mp4").write_bytes(video)


def source_of(manifest: str, *, num_frames: int = NUM_FRAMES, size_px: int = SIZE_PX) -> ClipSource:
    """All clips of a manifest in the order of training, over and over."""
    count = len(split_rows(manifest, "train")[Kind.VIDEO])
    plan = Plan(seed=0, num_videos=count, num_images=0, global_batch=BATCH)
    return ClipSource(
        manifest_path=manifest,
        split="train",
        num_frames=num_frames,
        frame_size_px=size_px,
        decoder="decord",
        seed=0,
        plan=plan,
        batch=BATCH,
    )


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


# --- the bare pool ----------------------------------------------------------------------------------------------------


def decode_step(step: int, source: ClipSource) -> int:
    """Decodes a step's clips as the loader does; the number of usable ones."""
    planned = source.planned(step)
    table = split_rows(source.manifest_path, source.split)[planned.kind]
    rows = [table.slice(row, 1).to_pylist()[0] for row in planned.rows.tolist() if row >= 0]
    reads = [partial(fetch, row["uri"], row["checksum"]) for row in rows]
    return sum(decode_slot(0, row, source, planned, read)["weight"] > 0 for row, read in zip(rows, reads, strict=True))


def pool_rate(source: ClipSource, num_steps: int) -> float:
    """Clips per second that a process pool decodes, and drops."""
    arrivals = []
    with ProcessPoolExecutor(cores(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in pool.map(partial(decode_step, source=source), range(num_steps)):
            arrivals.append((time.perf_counter(), done))
    return steady_rate(arrivals)


def steady_rate(arrivals: list[tuple[float, int]]) -> float:
    """Clips per second after the first tenth of them, of (time, clips) pairs."""
    first = int(len(arrivals) * WARM_SHARE)
    return sum(count for _, count in arrivals[first + 1 :]) / (arrivals[-1][0] - arrivals[first][0])


# --- Ray Data to a Train worker ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    """What the worker has to do."""

    source: ClipSource
    num_steps: int
    result: str


def receive(delivery: Delivery, runtime: cluster_run.Runtime) -> None:
    """On the Train worker: each step's clips as arrays, and when they came."""
    source, started, arrivals = delivery.source, time.perf_counter(), []
    tables = runtime.tables("train", source.share(1))
    for step, table in enumerate(in_plan_order(tables, start_step=0, rank=0, num_ranks=1, share=source.share(1))):
        rows = clip_rows(table, source=source, epoch=source.planned(step).epoch)
        arrivals.append((time.perf_counter(), int(rows.weight.sum())))
        if step % 100 == 0:
            Path(f"{delivery.result}.count").write_text(str(sum(count for _, count in arrivals)))
    Path(delivery.result).write_text(json.dumps({"started": started, "arrivals": arrivals}))


def delivered(source: ClipSource, num_steps: int, folder: str, decode_cpus: int | None = None) -> dict[str, Any]:
    """A whole Ray of our own: `receive` on one Train worker, fed by decoders on every core."""
    decode_cpus = decode_cpus or cores()
    delivery = Delivery(source, num_steps, f"{folder}/delivered.json")
    workers = cluster_run.Workers(
        fewest=1,
        most=1,
        use_gpu=False,
        cpus_each=0.01,  # Ray refuses none at all
        threads_each=1,
        decode_cpus=decode_cpus,
        max_failures=0,
        num_kept_checkpoints=1,
    )
    with connected_ray(worker_environment=cluster_run.WORKER_ENVIRONMENT, num_cpus=decode_cpus + 1):
        cluster_run.run(
            receive,
            delivery,
            storage=cluster_run.Storage(path=folder, upload=upload_folder),
            name="delivery",
            datasets={
                "train": lambda num_ranks: clip_stream(source, start_step=0, stop_step=num_steps, num_ranks=num_ranks)
            },
            workers=workers,
        )
    return json.loads(Path(delivery.result).read_text())


def ingest(
    folder: str = "corpora/benchmark", num_clips: int = 200, num_rounds: int = 5, num_passes: int = 3
) -> dict[str, Any]:
    """Clips per second that reach a Train worker through Ray Data, over those of a process pool that only decodes.

    Both go over the clips `num_passes` times: twenty seconds would hold little of a steady state.
    """
    source = source_of(made_clips(Clips(count=num_clips), folder))
    num_steps = num_passes * -(-num_clips // BATCH)
    ray_rates, pool_rates, first_seconds = [], [], []
    for number in range(num_rounds):
        pool_rates.append(pool_rate(source, num_steps))
        with tempfile.TemporaryDirectory() as scratch:
            found = delivered(source, num_steps, scratch)
        ray_rates.append(steady_rate(found["arrivals"]))
        first_seconds.append(found["arrivals"][0][0] - found["started"])
        print(
            f"round {number}: pool {pool_rates[-1]:.2f}, Ray {ray_rates[-1]:.2f} clips/s", file=sys.stderr, flush=True
        )
    ratios = [ray / pool for ray, pool in zip(ray_rates, pool_rates, strict=True)]
    return {
        "ratio_to_pool": statistics.median(ratios),
        "ratios": ratios,
        "clips_per_second_ray": statistics.median(ray_rates),
        "clips_per_second_pool": statistics.median(pool_rates),
        "first_batch_seconds": statistics.median(first_seconds),
        "cores": cores(),
        "num_clips": num_clips,
        "num_passes": num_passes,
    }


# --- shards of JPEG frames against raw video --------------------------------------------------------------------------


def cache(folder: str = "corpora/benchmark", num_clips: int = 200, num_rounds: int = 5) -> dict[str, Any]:
    """Time of a clip from raw video, over that from shards with its frames as JPEG; on one core, reading included."""
    raw = made_clips(Clips(count=num_clips), folder)
    packing = PackingConfig(content=Content.FRAMES, num_frames=NUM_FRAMES, frame_size_px=SIZE_PX)
    packed = pack(PackConfig(manifest=raw, out=f"{raw.rsplit('/', 2)[0]}/frames-{packing.hash}", packing=packing))
    steps = range(min(20, num_clips // BATCH))
    seconds: dict[str, list[float]] = {"raw": [], "frames": []}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the process that decodes inherits it
    for _ in range(num_rounds):
        for name, manifest in (("raw", raw), ("frames", packed.manifest_path)):
            source, before = source_of(manifest), time.perf_counter()
            done = sum(decode_step(step, source) for step in steps)
            if done != len(steps) * BATCH:
                raise RuntimeError(f"{done} of {len(steps) * BATCH} clips came from {manifest}")
            seconds[name].append((time.perf_counter() - before) / done)
    of_raw, of_frames = (statistics.median(seconds[name]) for name in ("raw", "frames"))
    shards = sum(path.stat().st_size for path in Path(packed.manifest_path).parent.glob("shards/*.parquet"))
    return {
        "speedup_per_core": of_raw / of_frames,
        "seconds_raw": of_raw,
        "seconds_frames": of_frames,
        "bytes_raw": sum(row["bytes"] for row in split_rows(raw, "train")[Kind.VIDEO].to_pylist()),
        "bytes_frames": shards,
        "num_frames": NUM_FRAMES,
        "quality": packing.quality,
    }


# --- a long run -------------------------------------------------------------------------------------------------------


def soak(folder: str = "corpora/benchmark", num_decodes: int = 20_000, num_warm: int = 2_000) -> dict[str, Any]:
    """Memory of all processes over many decodes of 5 s clips at 160×120, its slope, and what Ray spilled to disk."""
    clips = Clips(count=100, width=160, height=120, seconds=5)
    source = source_of(made_clips(clips, folder), size_px=112)
    os.environ[MARKER] = marker = os.urandom(8).hex()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(f"{scratch}/delivered.json.count")

        def read() -> tuple[int, float, int]:
            count = int(path.read_text() or 0) if path.exists() else 0
            return count, pss_bytes(marker) / 2**20, bytes_spilled()

        started = time.perf_counter()
        with sampled(read, 2.0) as samples:
            found = delivered(source, num_decodes // BATCH, scratch)
    end = max(count for _, (count, _, _) in samples)  # from then on processes may be ending
    steady = [(count, mib) for _, (count, mib, _) in samples if num_warm <= count < end]
    counts, mib = np.array(steady).T
    return {
        "spilled_bytes": max(spilled for _, (_, _, spilled) in samples),
        "slope_mb_per_1000": float(np.polyfit(counts / 1000, mib * 2**20 / 1e6, 1)[0]),
        "num_decodes": sum(count for _, count in found["arrivals"]),
        "num_samples": len(steady),
        "mib_first": float(mib[0]),
        "mib_last": float(mib[-1]),
        "seconds": time.perf_counter() - started,
    }
