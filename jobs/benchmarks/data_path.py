"""The data path, measured: `ingest`, `cache` and `soak` of `python jobs/benchmark.py`.

All on generated clips: by default 200 of 10 s at 568×320, 30 fps, one key frame in 250, each with a moving texture of
its own. Both sides of a comparison decode the same clips to 8 frames of 224², with the same decoder on as many cores.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.connection import connected_ray
from cluster.worker_environment import WORKER_ENVIRONMENT
from jobs.benchmarks import loaders
from jobs.benchmarks.support.delivery import Delivery, deliver, steady_rate
from jobs.benchmarks.support.fixtures import NUM_FRAMES, SIZE_PX, clip_source, cores, process_pool
from jobs.benchmarks.support.processes import MARKER, bytes_spilled, pss_bytes, sampled
from jobs.benchmarks.support.timed_block import NAME as BLOCK_TIMES
from jobs.benchmarks.support.timed_block import timed_block
from jobs.corpus.packing import PackConfig, pack
from jobs.corpus.preparation import PrepareConfig, prepare
from pipeline.corpus.fetching import fetch
from pipeline.decode.codec import encode_video
from pipeline.decode.pixels import PixelBuffer
from pipeline.offline.shards import Content, PackingConfig
from pipeline.records import Kind
from pipeline.stream.loader import ClipSource, decode_slot
from pipeline.stream.source import split_rows

BATCH = 4
FIRST_BATCH = ("Ray starts", "worker group", "decode worker", "decoding", "delivery")
"""Phases of the time to the first batch: start of a local Ray; of Ray Train's worker, until it requests clips; of Ray
Data, until a worker begins to decode; the first block, including imports of the decoder; transfer to the rank."""
source_of = partial(clip_source, num_frames=NUM_FRAMES, size_px=SIZE_PX, batch=BATCH)
"""Source of all clips of a manifest in the order of training, epoch after epoch."""


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
        """The name of their folder, a function of the settings."""
        return f"{self.count}-{self.width}x{self.height}-{self.seconds}s-{self.fps}fps-gop{self.gop}"


def made_clips(clips: Clips, folder: str) -> str:
    """Make and prepare `clips` below `folder` if they are not there; return the path of their manifest."""
    root = Path(folder, clips.name)
    if not (root / "manifest" / "manifest.parquet").exists():
        (root / "videos").mkdir(parents=True, exist_ok=True)
        with process_pool() as pool:
            list(pool.map(partial(write_clip, clips=clips, folder=str(root / "videos")), range(clips.count)))
        prepare(PrepareConfig(corpus=clips.name, root=str(root / "videos"), out=str(root / "manifest")))
    return str(root / "manifest" / "manifest.parquet")


def moving_texture(index: int, clips: Clips) -> NDArray[np.uint8]:
    """Return the frames (T, H, W, 3) of a clip: a drifting texture of its own."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 255, (clips.height // 8 + 40, clips.width // 8 + 40, 3), np.uint8)
    texture = coarse.repeat(8, axis=0).repeat(8, axis=1) // 2 + rng.integers(0, 40, (1, 1, 3), np.uint8)
    grain = rng.integers(0, 24, (*texture.shape[:2], 1), np.uint8)
    texture, velocity = texture + grain, rng.uniform(0.2, 1.0, 2)
    corners = [(velocity * time_index).astype(int) % 300 for time_index in range(clips.seconds * clips.fps)]
    return np.stack([texture[y : y + clips.height, x : x + clips.width] for y, x in corners])


def write_clip(index: int, clips: Clips, folder: str) -> None:
    """Write a clip as H.264, with a caption beside it."""
    video = encode_video(moving_texture(index, clips), fps=clips.fps, gop=clips.gop)
    Path(folder, f"{index:04}.txt").write_text(f"texture number {index} moves\n")
    Path(folder, f"{index:04}.mp4").write_bytes(video)


def rows_of(step: int, source: ClipSource) -> list[dict[str, Any]]:
    """Return the rows of a step's clips."""
    planned = source.planned(step)
    table = split_rows(source.manifest_path, source.split)[planned.kind]
    return [table.slice(row, 1).to_pylist()[0] for row in planned.rows.tolist() if row >= 0]


def decord_step(step: int, source: ClipSource) -> int:
    """Decode a step's clips with decord, as other loaders do; return their number."""
    return len([loaders.decode(Path(row["uri"]).read_bytes()) for row in rows_of(step, source)])


def decode_step(step: int, source: ClipSource) -> int:
    """Decode a step's clips as the loader does; return the number of usable ones."""
    planned, rows = source.planned(step), rows_of(step, source)
    reads = [partial(fetch, row["uri"], row["checksum"]) for row in rows]
    pixels = PixelBuffer(len(rows) * source.clip_bytes)
    slots = (decode_slot(0, row, source, planned, read, pixels) for row, read in zip(rows, reads, strict=True))
    return sum(slot["weight"] > 0 for slot in slots)


def pool_rate(source: ClipSource, num_steps: int, decode: Callable[..., int] = decode_step) -> float:
    """Return the clips per second that a process pool decodes and discards."""
    with process_pool() as pool:
        decoded = pool.map(partial(decode, source=source), range(num_steps))
        return steady_rate([(time.perf_counter(), count) for count in decoded])


def delivered(source: ClipSource, num_steps: int, folder: str, decode_cpus: int | None = None) -> dict[str, Any]:
    """Return the arrival times of clips at one Train worker, fed by decoders on every core of a local Ray, and the
    phases of the time to the first batch."""
    decode_cpus, delivery = decode_cpus or cores(), Delivery(source=source, num_steps=num_steps, folder=folder)
    times, decode = [time.perf_counter()], partial(timed_block, folder=folder)
    with connected_ray(worker_environment=WORKER_ENVIRONMENT, num_cpus=decode_cpus + 1):
        times.append(time.perf_counter())
        # Ray refuses a worker without any CPU; that of this one is nearly all left to decoding
        (result,) = deliver(
            delivery, name="delivery", num_ranks=1, cpus_each=0.01, decode_cpus=decode_cpus, decode=decode
        )
    times += [result["started"], *json.loads(Path(folder, BLOCK_TIMES).read_text()), result["arrivals"][0][0]]
    return result | {"first_batch": dict(zip(FIRST_BATCH, np.diff(times).tolist(), strict=True))}


def ingest(
    folder: str = "corpora/benchmark",
    num_clips: int = 200,
    num_rounds: int = 5,
    num_passes: int = 3,
    manifest: str | None = None,
) -> dict[str, Any]:
    """Return the clips per second that reach a Train worker through Ray Data, over those of a process pool that only
    decodes, with our decoder or with decord. `first_batch_seconds` include the start of Ray.

    All pass over the clips `num_passes` times, since a pass of twenty seconds hardly reaches a steady state.
    `manifest`: clips to use instead of generated ones.
    """
    source = source_of(manifest or made_clips(Clips(count=num_clips), folder))
    num_clips = len(split_rows(source.manifest_path, source.split)[Kind.VIDEO])
    num_steps = num_passes * -(-num_clips // BATCH)
    rates: dict[str, list[float]] = {"ray": [], "pool": [], "decord_pool": []}
    first_batches = []
    for number in range(num_rounds):
        rates["pool"].append(pool_rate(source, num_steps))
        rates["decord_pool"].append(pool_rate(source, num_steps, decord_step))
        with tempfile.TemporaryDirectory() as scratch:
            delivery = delivered(source, num_steps, scratch)
        rates["ray"].append(steady_rate(delivery["arrivals"]))
        first_batches.append(delivery["first_batch"])
        last = {name: round(values[-1], 2) for name, values in rates.items()}
        print(f"round {number}: clips/s {last}, first batch {first_batches[-1]}", file=sys.stderr, flush=True)
    ratios = {
        f"ratio_to_{name}": [ray / other for ray, other in zip(rates["ray"], rates[name], strict=True)]
        for name in ("pool", "decord_pool")
    }
    return {
        **{name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        **{f"clips_per_second_{name}": statistics.median(values) for name, values in rates.items()},
        "first_batch_seconds": statistics.median(sum(parts.values()) for parts in first_batches),
        "first_batch": {part: statistics.median(parts[part] for parts in first_batches) for part in FIRST_BATCH},
        "cores": cores(),
        "num_clips": num_clips,
        "num_passes": num_passes,
    }


def cache(folder: str = "corpora/benchmark", num_clips: int = 200, num_rounds: int = 5) -> dict[str, Any]:
    """Return the time of a clip from raw video, over that from shards with its frames as JPEG; on one core, with
    reading."""
    raw = made_clips(Clips(count=num_clips), folder)
    packing = PackingConfig(content=Content.FRAMES, num_frames=NUM_FRAMES, frame_size_px=SIZE_PX)
    packed = pack(PackConfig(manifest=raw, out=f"{raw.rsplit('/', 2)[0]}/frames-{packing.hash}", packing=packing))
    steps = range(min(20, num_clips // BATCH))
    seconds: dict[str, list[float]] = {"raw": [], "frames": []}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the process that decodes inherits it
    for _ in range(num_rounds):
        for name, manifest in (("raw", raw), ("frames", packed.manifest_path)):
            source, before = source_of(manifest), time.perf_counter()
            num_decoded = sum(decode_step(step, source) for step in steps)
            if num_decoded != len(steps) * BATCH:
                raise RuntimeError(f"{num_decoded} of {len(steps) * BATCH} clips came from {manifest}")
            seconds[name].append((time.perf_counter() - before) / num_decoded)
    of_raw, of_frames = (statistics.median(seconds[name]) for name in ("raw", "frames"))
    shards = Path(packed.manifest_path).parent.glob("shards/*.parquet")
    return {
        "speedup_per_core": of_raw / of_frames,
        "seconds_raw": of_raw,
        "seconds_frames": of_frames,
        "bytes_raw": sum(split_rows(raw, "train")[Kind.VIDEO]["bytes"].to_pylist()),
        "bytes_frames": sum(path.stat().st_size for path in shards),
        "num_frames": NUM_FRAMES,
        "quality": packing.quality,
    }


def soak(folder: str = "corpora/benchmark", num_decodes: int = 20_000, num_warm: int = 2_000) -> dict[str, Any]:
    """Return the memory of all processes over many decodes of 5 s clips at 160×120, its slope, and Ray's spill to
    disk."""
    clips = Clips(count=100, width=160, height=120, seconds=5)
    source = source_of(made_clips(clips, folder), size_px=112)
    os.environ[MARKER] = marker = os.urandom(8).hex()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "rank-0.count")

        def read() -> tuple[int, Counter[str], int]:
            count = int(path.read_text() or 0) if path.exists() else 0
            return count, pss_bytes(marker), bytes_spilled()

        started = time.perf_counter()
        with sampled(read, 2.0) as samples:
            arrivals = delivered(source, num_decodes // BATCH, scratch)["arrivals"]
    end = max(count for _, (count, _, _) in samples)  # later samples may see processes that are ending
    steady = [(count, used) for _, (count, used, _) in samples if num_warm <= count < end]
    kinds = sorted({kind for _, used in steady for kind in used})
    counts, num_bytes = (
        np.array([count for count, _ in steady]),
        np.array([[used[k] for k in kinds] for _, used in steady]),
    )
    slopes = np.polyfit(counts / 1000, num_bytes / 1e6, 1)[0]
    return {
        "spilled_bytes": max(spilled for _, (_, _, spilled) in samples),
        "slope_mb_per_1000": float(slopes.sum()),
        "slope_by_process": dict(zip(kinds, slopes.round(3).tolist(), strict=True)),
        "num_decodes": sum(count for _, count in arrivals),
        "num_samples": len(steady),
        "mib_first": float(num_bytes[0].sum() / 2**20),
        "mib_last": float(num_bytes[-1].sum() / 2**20),
        "seconds": time.perf_counter() - started,
    }
